"""Users, capabilities, and the promise never to gain any. capabilities(7), prctl(2)."""

from __future__ import annotations

import os

from sandbox.kernel import libc

CAP_KILL, CAP_SETGID, CAP_SETUID = 5, 6, 7
_PR_CAPBSET_DROP, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 24, 4, 38
_EINVAL = 22


def become(user: int) -> None:
    """Switch all user and group ids for good. From 0 to another id, the kernel clears every capability set."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def keep_capabilities(*capabilities: int) -> None:
    """Keep exactly these in the permitted and effective sets; the inheritable and ambient sets become empty."""
    libc.capset(sum(1 << capability for capability in capabilities))


def empty_bounding_set() -> None:
    """Let no execve ever give a capability again."""
    for capability in range(64):
        try:
            libc.prctl(_PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno == _EINVAL:  # past the last capability of this kernel
                return
            raise


def set_no_new_privileges() -> None:
    """Make set-user-id bits and file capabilities mean nothing from here on."""
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1)


def set_dumpable(dumpable: bool) -> None:
    """Let processes of the same user look into this one through /proc, or not. Switching users turns it off."""
    libc.prctl(_PR_SET_DUMPABLE, int(dumpable))
