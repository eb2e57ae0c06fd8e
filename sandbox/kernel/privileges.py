"""Users, capabilities, and the promise never to gain any. capabilities(7), prctl(2)."""

from __future__ import annotations

import os

from sandbox.kernel import libc

CAP_KILL, CAP_SETGID, CAP_SETUID = 5, 6, 7
_PR_CAPBSET_DROP, _PR_SET_DUMPABLE = 24, 4


def _last_capability() -> int:
    with open("/proc/sys/kernel/cap_last_cap", "rb") as file:
        return int(file.read())


def become(user: int) -> None:
    """Switch all user and group ids for good. From 0 to another id, the kernel clears every capability set."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def capabilities(*kept: int) -> libc.Capabilities:
    """Exactly these in the permitted and effective sets, to be applied with `keep()`; no inheritable, no ambient ones."""
    return libc.Capabilities(sum(1 << capability for capability in kept))


def bounding_set() -> range:
    """Every capability that this kernel knows."""
    return range(_last_capability() + 1)


def empty_bounding_set(known: range) -> None:
    """Let no execve ever give one of `known` again."""
    for capability in known:
        libc.prctl(_PR_CAPBSET_DROP, capability)


def set_dumpable(dumpable: bool) -> None:
    """Let processes of the same user look into this one through /proc, or not. Switching users turns it off."""
    libc.prctl(_PR_SET_DUMPABLE, int(dumpable))
