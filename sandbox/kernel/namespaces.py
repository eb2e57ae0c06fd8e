"""Namespaces: a child in seven new ones, and the ids that exist in its user namespace. namespaces(7)."""

from __future__ import annotations

import _signal
import os

from sandbox.kernel import libc

NEWNS = 0x00020000
NEWCGROUP = 0x02000000
NEWUTS = 0x04000000
NEWIPC = 0x08000000
NEWUSER = 0x10000000
NEWPID = 0x20000000
NEWNET = 0x40000000
ALL = NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET


def fork_into_new(flags: int, cgroup_fd: int | None = None) -> tuple[int, int]:
    """Fork into new namespaces: (pid, pidfd) in the parent, (0, -1) in the child. clone3(2)."""
    return libc.clone3(flags, _signal.SIGCHLD, cgroup_fd)


def map_ids(pid: int, text: bytes) -> None:
    """Give the new user namespace of `pid` its users and groups: lines of inside, outside, count. user_namespaces(7).

    A map can be written once. The writer needs CAP_SETUID and CAP_SETGID in the parent namespace.
    """
    for name in ("uid_map", "gid_map"):
        descriptor = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text)
        finally:
            os.close(descriptor)


def hostname(name: str) -> libc.Call:
    """Name the host as this UTS namespace sees it. sethostname(2)."""
    return libc.prepare("sethostname", name, len(os.fsencode(name)))


def new_cgroup_namespace() -> libc.Call:
    """Go on with the groups that this process is in as the roots of all that it sees. cgroup_namespaces(7)."""
    return libc.prepare("unshare", NEWCGROUP)


def new_mount_namespace() -> libc.Call:
    """Go on in a copy of the mount namespace. Needs CAP_SYS_ADMIN. unshare(2)."""
    return libc.prepare("unshare", NEWNS)
