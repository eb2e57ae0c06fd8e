"""File calls, answered by the warden with the rights of the guest.

No component of a path may be a symbolic link: a caller on the host gets the file that it named or an error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Any

WORKSPACE = "/workspace"
ROOTS = (WORKSPACE, "/tmp")  # noqa: S108
MAX_ENTRIES = 10_000
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def _refuse(code: int, path: str) -> OSError:
    return OSError(code, os.strerror(code), path)


def _split(path: str) -> tuple[str, list[str]]:
    """The root that `path` lies under, and its components. Relative paths start at the workspace."""
    if "\0" in path:
        raise _refuse(errno.EINVAL, path)
    for root in ROOTS:
        if path == root or path.startswith(root + "/"):
            base, rest = root, path[len(root) :]
            break
    else:
        if path.startswith("/"):
            raise _refuse(errno.EACCES, path)
        base, rest = WORKSPACE, path
    parts = [part for part in rest.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _refuse(errno.EACCES, path)
    return base, parts


def _open_directory(path: str, parts: list[str], base: str, *, create: bool) -> int:
    current = os.open(base, os.O_DIRECTORY | _FLAGS)
    try:
        for part in parts:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=current)
            step = _step(part, current)
            os.close(current)
            current = step
    except OSError as error:
        os.close(current)
        raise _refuse(error.errno or errno.EIO, path) from None
    return current


def _step(part: str, directory: int) -> int:
    try:
        return os.open(part, os.O_DIRECTORY | _FLAGS, dir_fd=directory)
    except NotADirectoryError:  # what the kernel says of a link as well
        if stat.S_ISLNK(os.lstat(part, dir_fd=directory).st_mode):
            raise _refuse(errno.ELOOP, part) from None
        raise


def _open(path: str, flags: int, mode: int = 0, *, create: bool = False) -> int:
    base, parts = _split(path)
    if not parts:
        raise _refuse(errno.EISDIR, path)
    directory = _open_directory(path, parts[:-1], base, create=create)
    try:
        descriptor = os.open(parts[-1], flags | _FLAGS, mode, dir_fd=directory)
    except OSError as error:
        code = errno.EINVAL if error.errno == errno.ENXIO else error.errno  # a socket, or a pipe that nobody reads
        raise _refuse(code or errno.EIO, path) from None
    finally:
        os.close(directory)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        code = errno.EISDIR if stat.S_ISDIR(os.fstat(descriptor).st_mode) else errno.EINVAL
        os.close(descriptor)
        raise _refuse(code, path)
    return descriptor


def open_for_reading(path: str) -> tuple[int, int]:
    """A descriptor of a regular file and its size in bytes."""
    descriptor = _open(path, os.O_RDONLY)
    return descriptor, os.fstat(descriptor).st_size


def open_for_writing(path: str, mode: int) -> int:
    """A descriptor of a new or emptied regular file; missing directories are made."""
    return _open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode, create=True)


def entries(path: str) -> Iterator[dict[str, Any]]:
    """What a directory holds, in the order of names. More than `MAX_ENTRIES` is an error: EOVERFLOW."""
    base, parts = _split(path)
    directory = _open_directory(path, parts, base, create=False)
    prefix = "/".join(parts) if base == WORKSPACE else "/".join([base, *parts])
    try:
        names = sorted(os.listdir(directory))
        if len(names) > MAX_ENTRIES:
            raise _refuse(errno.EOVERFLOW, path)
        for name in names:
            try:
                info = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                continue  # removed since it was listed
            yield {
                "path": f"{prefix}/{name}" if prefix else name,
                "kind": _kind(info.st_mode),
                "size_bytes": info.st_size,
                "mode": stat.S_IMODE(info.st_mode),
                "modified_s": info.st_mtime,
            }
    finally:
        os.close(directory)


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "symlink" if stat.S_ISLNK(mode) else "other"
