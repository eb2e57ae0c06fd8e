"""Users, capabilities and sessions, as calls to be run. capabilities(7), prctl(2)."""

from __future__ import annotations

import struct

from sandbox.kernel import libc

CAP_KILL, CAP_SETGID, CAP_SETUID = 5, 6, 7
_PR_CAPBSET_DROP, _PR_SET_DUMPABLE = 24, 4
_CAPABILITY_VERSION_3 = 0x20080522


def become(user: int) -> tuple[libc.Call, ...]:
    """Switch all user and group ids for good. From 0 to another id, the kernel clears every capability set."""
    return (
        libc.prepare("setgroups", 0, 0),
        libc.prepare("setresgid", user, user, user),
        libc.prepare("setresuid", user, user, user),
    )


def keep_capabilities(*kept: int) -> libc.Call:
    """Exactly these in the permitted and effective sets, none in the inheritable and ambient ones. capset(2)."""
    mask = sum(1 << capability for capability in kept)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    return libc.prepare(
        "capset",
        struct.pack("=Ii", _CAPABILITY_VERSION_3, 0),
        struct.pack("=6I", low, low, 0, high, high, 0),
    )


def empty_bounding_set() -> tuple[libc.Call, ...]:
    """Let no execve ever give a capability that this kernel knows."""
    with open("/proc/sys/kernel/cap_last_cap", "rb") as file:
        last = int(file.read())
    return tuple(libc.prepare("prctl", _PR_CAPBSET_DROP, capability) for capability in range(last + 1))


def dumpable(yes: bool) -> libc.Call:
    """Let processes of the same user look into this one through /proc, or not. Switching users turns it off."""
    return libc.prepare("prctl", _PR_SET_DUMPABLE, int(yes))


def new_session() -> libc.Call:
    """Leave the session and its terminal. setsid(2)."""
    return libc.prepare("setsid")
