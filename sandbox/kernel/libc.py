"""System calls that the standard library does not offer. The only module that touches ctypes.

Every function raises `OSError` with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

__all__ = [
    "Capabilities",
    "SeccompFilter",
    "clone3",
    "flush_streams",
    "mount",
    "prctl",
    "sethostname",
    "umount2",
    "unshare",
]

_SYS_CLONE3 = 435  # the same on every architecture
_LINUX_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_holding_gil = ctypes.PyDLL(None, use_errno=True)
_before_fork: Callable[[], None] = ctypes.pythonapi.PyOS_BeforeFork
_after_fork_parent: Callable[[], None] = ctypes.pythonapi.PyOS_AfterFork_Parent
_after_fork_child: Callable[[], None] = ctypes.pythonapi.PyOS_AfterFork_Child

# Declared once: a call then makes no objects, and so touches no page that a sandbox would have to copy.
_ulong = ctypes.c_ulong
_holding_gil.syscall.argtypes = (ctypes.c_long, ctypes.c_void_p, ctypes.c_size_t)
_holding_gil.syscall.restype = ctypes.c_long
_libc.prctl.argtypes = (ctypes.c_int, _ulong, _ulong, _ulong, _ulong)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, _ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.sethostname.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.capset.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
_libc.fflush.argtypes = (ctypes.c_void_p,)


class _CloneArgs(ctypes.Structure):
    """`struct clone_args` of clone3(2)."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls",
            "set_tid", "set_tid_size", "cgroup",
        )
    ]  # fmt: skip


class _SockFprog(ctypes.Structure):
    """`struct sock_fprog` of seccomp(2)."""

    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapData(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def _check(result: int, what: str) -> int:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{what}: {os.strerror(errno)}")
    return result


def clone3(flags: int, exit_signal: int, cgroup_fd: int | None = None) -> tuple[int, int]:
    """Fork with clone3(2): the child's pid and a pidfd in the parent, (0, -1) in the child.

    Only for a process with a single thread: glibc's own fork handlers do not run, and its cached thread id
    stays that of the parent. The GIL is held across the call, so that the child owns it.
    """
    clone_pidfd, clone_into_cgroup = 0x1000, 0x200000000
    pidfd = ctypes.c_int(-1)
    arguments = _CloneArgs(
        flags=flags | clone_pidfd | (clone_into_cgroup if cgroup_fd is not None else 0),
        pidfd=ctypes.addressof(pidfd),
        exit_signal=exit_signal,
        cgroup=cgroup_fd or 0,
    )
    _before_fork()
    pid = _holding_gil.syscall(_SYS_CLONE3, ctypes.addressof(arguments), ctypes.sizeof(arguments))
    if pid == 0:
        _after_fork_child()
        return 0, -1
    _after_fork_parent()
    _check(pid, "clone3")
    return pid, pidfd.value


def mount(source: str, target: str, fstype: str, flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(source.encode(), target.encode(), fstype.encode(), flags, options.encode() or None)
    if result < 0:
        _check(result, f"mount {fstype or source} on {target}")


def umount2(target: str, flags: int) -> None:
    """umount2(2)."""
    _check(_libc.umount2(target.encode(), flags), f"umount {target}")


def prctl(option: int, argument: int = 0) -> int:
    """prctl(2) with one integer argument."""
    result: int = _libc.prctl(option, argument, 0, 0, 0)
    return result if result >= 0 else _check(result, f"prctl {option}")


class SeccompFilter:
    """A raw BPF program, an array of `struct sock_filter`, laid out for the kernel ahead of time."""

    def __init__(self, program: bytes) -> None:
        instruction_bytes = 8
        self._buffer = ctypes.create_string_buffer(program, len(program))
        self._description = _SockFprog(len(program) // instruction_bytes, ctypes.addressof(self._buffer))
        self._address = ctypes.addressof(self._description)

    def install(self) -> None:
        """Filter the calling thread and its children from here on. There is no way back. seccomp(2)."""
        pr_set_seccomp, mode_filter = 22, 2
        _check(_libc.prctl(pr_set_seccomp, mode_filter, self._address, 0, 0), "prctl PR_SET_SECCOMP")


class Capabilities:
    """Permitted and effective sets of capset(2), a bit mask, laid out ahead of time; the inheritable set is empty."""

    def __init__(self, permitted: int) -> None:
        low, high = permitted & 0xFFFFFFFF, permitted >> 32
        self._header = _CapHeader(_LINUX_CAPABILITY_VERSION_3, 0)
        self._data = (_CapData * 2)(_CapData(low, low, 0), _CapData(high, high, 0))

    def keep(self) -> None:
        """Make these the sets of the calling thread."""
        _check(_libc.capset(ctypes.addressof(self._header), ctypes.addressof(self._data)), "capset")


def sethostname(name: str) -> None:
    """sethostname(2)."""
    raw = name.encode()
    _check(_libc.sethostname(raw, len(raw)), "sethostname")


def flush_streams() -> None:
    """Write out what C code has printed and buffered: fflush(NULL)."""
    _libc.fflush(None)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(flags), "unshare")
