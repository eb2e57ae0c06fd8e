"""Memory and CPU limits of a whole sandbox where there is no cgroup to enforce them.

Looks at every process of the pid namespace at short intervals. It is weaker than a cgroup: a burst between two looks
is seen late, and memory that no process maps (a memory file, a pipe) is not counted, which is why such files are
refused by the system-call filter where this is used.
"""

from __future__ import annotations

import os

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Watchdog:
    """`check` says which limit the sandbox exceeds."""

    def __init__(self, *, memory_bytes: int, interval_ms: int = 50) -> None:
        self.memory_bytes = memory_bytes
        self.interval_ms = interval_ms

    def check(self) -> str | None:
        """ "memory" if the processes together, and the files of the workspace, use more than is allowed."""
        if self._resident_bytes() + self._workspace_bytes() > self.memory_bytes:
            return "memory"
        return None

    @staticmethod
    def _resident_bytes() -> int:
        total = 0
        for name in os.listdir("/proc"):
            if name.isdigit() and name != "1":
                try:
                    with open(f"/proc/{name}/statm", "rb") as file:
                        _, resident, shared, *_ = file.read().split()
                except OSError:
                    continue
                total += int(resident) - int(shared)
        return total * _PAGE_BYTES

    @staticmethod
    def _workspace_bytes() -> int:
        info = os.statvfs("/workspace")
        return (info.f_blocks - info.f_bfree) * info.f_frsize
