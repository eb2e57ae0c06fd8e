"""System calls that the standard library does not offer. The only module that touches ctypes.

Most are prepared ahead of time, as a `Call`: number and arguments are laid out once, before any fork, and `run` makes
them in order. A sandbox then enters its walls without building a single object, and so without copying the pages of
its zygote on which objects would be built.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

__all__ = ["Call", "clone3", "flush_streams", "landlock_abi", "prepare", "run"]

_NUMBERS = {
    "x86_64": {
        "capset": 126,
        "chdir": 80,
        "clone3": 435,
        "fchmodat": 268,
        "fchownat": 260,
        "mkdirat": 258,
        "mount": 165,
        "prctl": 157,
        "prlimit64": 302,
        "setgroups": 116,
        "sethostname": 170,
        "setresgid": 119,
        "setresuid": 117,
        "setsid": 112,
        "umount2": 166,
        "unshare": 272,
    },
    "aarch64": {
        "capset": 91,
        "chdir": 49,
        "clone3": 435,
        "fchmodat": 53,
        "fchownat": 54,
        "mkdirat": 34,
        "mount": 40,
        "prctl": 167,
        "prlimit64": 261,
        "setgroups": 159,
        "sethostname": 161,
        "setresgid": 149,
        "setresuid": 147,
        "setsid": 157,
        "umount2": 39,
        "unshare": 97,
    },
}
_ARGUMENTS = 6

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fflush.argtypes = (ctypes.c_void_p,)
_syscall = ctypes.PyDLL(None, use_errno=True).syscall  # holds the GIL: a fork's child must own it
_syscall.argtypes = (ctypes.c_long,) * (1 + _ARGUMENTS)
_syscall.restype = ctypes.c_long
_before_fork: Callable[[], None] = ctypes.pythonapi.PyOS_BeforeFork
_after_fork_parent: Callable[[], None] = ctypes.pythonapi.PyOS_AfterFork_Parent
_after_fork_child: Callable[[], None] = ctypes.pythonapi.PyOS_AfterFork_Child


class Call(NamedTuple):
    """A system call, ready to be made."""

    arguments: tuple[int, ...]  # number first
    text: str  # for the error
    memory: tuple[ctypes.Array[ctypes.c_char], ...]  # what the pointers among the arguments point to


def prepare(name: str, *arguments: int | str | bytes) -> Call:
    """Lay out a system call. A string or bytes becomes a pointer to its bytes, a string with a NUL behind them."""
    values: list[int] = []
    memory: list[ctypes.Array[ctypes.c_char]] = []
    for argument in arguments:
        if isinstance(argument, int):
            values.append(argument)
            continue
        raw = os.fsencode(argument) + b"\0" if isinstance(argument, str) else argument
        buffer = ctypes.create_string_buffer(raw, len(raw))
        memory.append(buffer)
        values.append(ctypes.addressof(buffer))
    values += [0] * (_ARGUMENTS - len(values))
    shown = ", ".join(repr(argument) for argument in arguments if not isinstance(argument, bytes))
    return Call((_NUMBERS[os.uname().machine][name], *values), f"{name}({shown})", tuple(memory))


def address(call: Call, which: int) -> int:
    """Where the `which`th memory of a prepared call lies, for a call that points to it."""
    return ctypes.addressof(call.memory[which])


def run(calls: Iterable[Call]) -> None:
    """Make the calls in order; the first that fails raises `OSError` with the kernel's errno."""
    for call in calls:
        if _syscall(*call.arguments) < 0:
            raise _failure(call.text)


def clone3(flags: int, exit_signal: int, cgroup_fd: int | None = None) -> tuple[int, int]:
    """Fork with clone3(2): the child's pid and a pidfd in the parent, (0, -1) in the child.

    Only for a process with a single thread: glibc's own fork handlers do not run, and its cached thread id
    stays that of the parent.
    """
    clone_pidfd, clone_into_cgroup = 0x1000, 0x200000000
    _arguments.flags = flags | clone_pidfd | (clone_into_cgroup if cgroup_fd is not None else 0)
    _arguments.exit_signal = exit_signal
    _arguments.cgroup = cgroup_fd or 0
    _before_fork()
    pid: int = _syscall(*_clone3.arguments)
    if pid == 0:
        _after_fork_child()
        return 0, -1
    _after_fork_parent()
    if pid < 0:
        raise _failure("clone3")
    return pid, _pidfd.value


def give_back_free_memory() -> None:
    """Return what was freed to the kernel, so that forks need not copy its page tables: malloc_trim(3)."""
    _libc.malloc_trim(0)


def flush_streams() -> None:
    """Write out what C code has printed and buffered: fflush(NULL)."""
    _libc.fflush(None)


def landlock_abi() -> int:
    """Which version of Landlock this kernel has: ENOSYS without, EOPNOTSUPP if switched off. landlock(7)."""
    number, version_flag = 444, 1  # landlock_create_ruleset(2), the same on every architecture
    version: int = _syscall(number, 0, 0, version_flag, 0, 0, 0)
    if version < 0:
        raise _failure("landlock_create_ruleset")
    return version


def _failure(text: str) -> OSError:
    errno = ctypes.get_errno()
    return OSError(errno, f"{text}: {os.strerror(errno)}")


class _CloneArgs(ctypes.Structure):
    """`struct clone_args` of clone3(2)."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls",
            "set_tid", "set_tid_size", "cgroup",
        )
    ]  # fmt: skip


_pidfd = ctypes.c_int(-1)
_arguments = _CloneArgs(pidfd=ctypes.addressof(_pidfd))
_clone3 = prepare("clone3", ctypes.addressof(_arguments), ctypes.sizeof(_arguments))
