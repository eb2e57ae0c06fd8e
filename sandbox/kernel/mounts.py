"""Mounts inside a mount namespace of one's own. mount(2), mount_namespaces(7)."""

from __future__ import annotations

import os

from sandbox.kernel import libc

NOSUID, NODEV, NOEXEC = 2, 4, 8
_BIND, _REC, _PRIVATE = 0x1000, 0x4000, 0x40000
_DETACH = 2


def mount_proc(target: str) -> None:
    """Mount a procfs of this pid namespace that shows processes and nothing of the machine. proc(5), subset=pid."""
    libc.mount("proc", target, "proc", NOSUID | NODEV | NOEXEC, "subset=pid")


class Tmpfs:
    """An empty tmpfs of a fixed size, described ahead of time. Beyond it, writers get ENOSPC. tmpfs(5)."""

    def __init__(self, *, size_bytes: int, inodes: int, mode: int) -> None:
        self._options = f"size={size_bytes},nr_inodes={inodes},mode={mode:o}"

    def mount(self, target: str) -> None:
        """Mount a new one."""
        libc.mount("tmpfs", target, "tmpfs", NOSUID | NODEV, self._options)


def bind(source: str, target: str) -> None:
    """Show `source` at `target` as well."""
    libc.mount(source, target, "", _BIND)


def make_private(target: str) -> None:
    """Let no mount below `target` spread to another mount namespace any more."""
    libc.mount("none", target, "", _REC | _PRIVATE)


def detach(target: str) -> None:
    """Take a mount out of the tree; it goes away with its last user."""
    libc.umount2(target, _DETACH)


def make_directory(path: str, *, mode: int, owner: int) -> None:
    """Make a directory with exactly this mode and owner."""
    os.mkdir(path)
    os.chown(path, owner, owner)
    os.chmod(path, mode)
