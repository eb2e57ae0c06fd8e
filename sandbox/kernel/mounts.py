"""Mounts inside a mount namespace of one's own, as calls to be run. mount(2), mount_namespaces(7)."""

from __future__ import annotations

from sandbox.kernel import libc

_NOSUID, _NODEV, _NOEXEC = 2, 4, 8
_BIND, _REC, _PRIVATE = 0x1000, 0x4000, 0x40000
_DETACH = 2
_AT_FDCWD = -100


def proc(target: str) -> libc.Call:
    """A procfs of this pid namespace that shows processes and nothing of the machine. proc(5), subset=pid."""
    return libc.prepare("mount", "proc", target, "proc", _NOSUID | _NODEV | _NOEXEC, "subset=pid")


def tmpfs(target: str, *, size_bytes: int, inodes: int, mode: int) -> libc.Call:
    """An empty tmpfs of a fixed size. Beyond it, writers get ENOSPC. tmpfs(5)."""
    options = f"size={size_bytes},nr_inodes={inodes},mode={mode:o}"
    return libc.prepare("mount", "tmpfs", target, "tmpfs", _NOSUID | _NODEV, options)


def bind(source: str, target: str) -> libc.Call:
    """Show `source` at `target` as well."""
    return libc.prepare("mount", source, target, 0, _BIND)


def private(target: str) -> libc.Call:
    """Let no mount below `target` spread to another mount namespace any more."""
    return libc.prepare("mount", "none", target, 0, _REC | _PRIVATE)


def detach(target: str) -> libc.Call:
    """Take a mount out of the tree; it goes away with its last user. umount2(2)."""
    return libc.prepare("umount2", target, _DETACH)


def directory(path: str, *, mode: int, owner: int) -> tuple[libc.Call, ...]:
    """A new directory with exactly this mode and owner."""
    return (
        libc.prepare("mkdirat", _AT_FDCWD, path, 0o700),
        libc.prepare("fchownat", _AT_FDCWD, path, owner, owner),
        libc.prepare("fchmodat", _AT_FDCWD, path, mode),
    )


def enter(path: str) -> libc.Call:
    """Make `path` the working directory. chdir(2)."""
    return libc.prepare("chdir", path)
