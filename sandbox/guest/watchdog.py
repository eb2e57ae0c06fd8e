"""The memory limit of a whole sandbox where there is no cgroup to enforce it.

Looks at every process of the pid namespace at short intervals. It is weaker than a cgroup: a burst between two looks
is seen late, and memory that no process maps (a memory file, a pipe) is not counted, which is why such files are
refused by the system-call filter where this is used. A file of the workspace that is mapped counts twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_EXACT = (b"Pss_Anon:", b"Pss_Shmem:")  # a page that several processes map counts once: smaps_rollup
_AT_MOST = (b"RssAnon:", b"RssShmem:")  # it counts for each: status, which nobody can be refused


class Watchdog:
    """`check` says which limit the sandbox exceeds."""

    def __init__(self, *, memory_bytes: int, interval_ms: int = 50) -> None:
        self.memory_bytes = memory_bytes
        self.interval_ms = interval_ms

    def check(self) -> str | None:
        """ "memory" if the processes together, and the files of the workspace, use more than is allowed."""
        room = self.memory_bytes - _workspace_bytes()
        if sum(map(_mapped_bytes, _processes())) <= room:
            return None  # cheap, and more than they can be blamed for: the interpreter's code is included
        return "memory" if sum(map(_own_bytes, _processes())) > room else None


def _processes() -> Iterator[str]:
    return (name for name in os.listdir("/proc") if name.isdigit() and name != "1")


def _mapped_bytes(pid: str) -> int:
    return int((_read(f"/proc/{pid}/statm").split() or [b"0", b"0"])[1]) * _PAGE_BYTES


def _own_bytes(pid: str) -> int:
    return _sum(f"/proc/{pid}/smaps_rollup", _EXACT) or _sum(f"/proc/{pid}/status", _AT_MOST)


def _sum(path: str, names: tuple[bytes, ...]) -> int:
    lines = (line.split() for line in _read(path).splitlines())
    return sum(int(words[1]) * 1024 for words in lines if words[:1] and words[0] in names)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # ended meanwhile, or hides from all but its own kind
        return b""


def _workspace_bytes() -> int:
    info = os.statvfs("/workspace")
    return (info.f_blocks - info.f_bfree) * info.f_frsize
