"""One slot: a group in every hierarchy that limits a sandbox; one sandbox after another uses it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from sandbox.kernel.cgroups import tree
from sandbox.kernel.cgroups.controls import (
    Control,
    CpuTimeV1,
    CpuTimeV2,
    CpuV1,
    CpuV2,
    MemoryV1,
    MemoryV2,
    Pids,
)
from sandbox.kernel.cgroups.limits import CgroupLimits, CgroupUsage

C = TypeVar("C", bound=Control)

# Page cache and kernel objects that outlived a sandbox count against the next one. Making the kernel give
# them back is no option: v1's memory.force_empty waits for dirty pages to be written (100 ms for 1 MB of them
# was measured).
_RESIDUE_BYTES = 1 << 20
_RESIDUE_SHARE = 1 / 64


@dataclass(frozen=True, kw_only=True)
class Owned:
    """The directory of this server in one hierarchy, and the controllers which that hierarchy answers for."""

    version: int
    controllers: frozenset[str]
    path: str


@dataclass
class _Controls:
    memory: MemoryV1 | MemoryV2 | None = None
    pids: Pids | None = None
    cpu: CpuV1 | CpuV2 | None = None
    cpu_time: CpuTimeV1 | CpuTimeV2 | None = None
    every: list[Control] = field(default_factory=list)

    def open(self, owned: Owned, group: str) -> None:
        """Add the controls of `group`. What is open is in `every` at once: a failure leaves nothing open."""
        v1 = owned.version == 1
        if "memory" in owned.controllers:
            self.memory = self._add(MemoryV1(group) if v1 else MemoryV2(group))
        if "pids" in owned.controllers:
            self.pids = self._add(Pids(group))
        if "cpu" in owned.controllers:
            self.cpu = self._add(CpuV1(group) if v1 else CpuV2(group))
        if "cpuacct" in owned.controllers:
            self.cpu_time = self._add(CpuTimeV1(group))
        elif not v1 and self.cpu_time is None:
            self.cpu_time = self._add(CpuTimeV2(group))

    def _add(self, control: C) -> C:
        self.every.append(control)
        return control


class Slot:
    """Limits, counters and an end for one sandbox at a time. Made by `Cgroups`; no one else constructs it.

    `attach_fds` and `clone_fd` are for the process that starts the sandbox, which must close its copies
    before code of the guest runs: who holds them can put itself into the group, and through `clone_fd` can
    walk the tree of groups.
    """

    name: str
    limits: CgroupLimits
    attach_fds: tuple[int, ...]
    clone_fd: int | None
    closed: bool

    def __init__(self, name: str, owners: Sequence[Owned], writable_by: int | None = None) -> None:
        self.name = name
        self.limits = CgroupLimits()
        self.attach_fds = ()
        self.clone_fd = None
        self.closed = False
        self._groups: list[tuple[int, str]] = []
        self._controls = _Controls()
        try:
            for owned in owners:
                self._open(owned, f"{owned.path}/{name}", writable_by)
        except BaseException:
            self.remove()
            raise

    def _open(self, owned: Owned, group: str, writable_by: int | None) -> None:
        os.mkdir(group)
        self._groups.append((owned.version, group))
        if owned.version == 1:
            self.attach_fds += (os.open(f"{group}/tasks", os.O_WRONLY | os.O_CLOEXEC),)
        else:
            self.clone_fd = os.open(group, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            if writable_by is not None:
                os.chown(f"{group}/cgroup.procs", writable_by, -1)
        self._controls.open(owned, group)

    def apply(self, limits: CgroupLimits) -> None:
        """Set the limits. Only for an empty slot."""
        for control in self._controls.every:
            control.apply(limits)
        self.limits = limits

    def restart(self) -> None:
        """The counters begin at nought."""
        for control in self._controls.every:
            control.restart()

    def cpu_s(self) -> float | None:
        return self._controls.cpu_time.cpu_s() if self._controls.cpu_time else None

    def memory_bytes(self) -> int | None:
        return self._controls.memory.memory_bytes() if self._controls.memory else None

    def memory_peak_bytes(self) -> int | None:
        return self._controls.memory.memory_peak_bytes() if self._controls.memory else None

    def oom_kills(self) -> int:
        return self._controls.memory.oom_kills() if self._controls.memory else 0

    def tasks(self) -> int | None:
        return self._controls.pids.tasks() if self._controls.pids else None

    def usage(self) -> CgroupUsage:
        return CgroupUsage(
            cpu_s=self.cpu_s(),
            memory_bytes=self.memory_bytes(),
            memory_peak_bytes=self.memory_peak_bytes(),
            oom_kills=self.oom_kills(),
            tasks=self.tasks(),
        )

    def kill(self) -> None:
        """SIGKILL to every process inside. The slot then has to be released before it is used again.

        The brakes come off first: a group without quota left stands still, also on its way to death, and a
        fork bomb would outrun killing by list.
        """
        for control in self._controls.every:
            control.release_brakes()
        tree.kill_listed(group for version, group in self._groups if version == 1)
        for version, group in self._groups:
            if version == 2:
                tree.kill(group)

    def populated(self) -> bool:
        return any(tree.processes(group) if version == 1 else tree.populated(group) for version, group in self._groups)

    def has_residue(self) -> bool:
        """Whether so much memory is still charged to the empty slot that the next sandbox would miss it."""
        limit, used = self.limits.memory_bytes, self.memory_bytes()
        return limit is not None and used is not None and used > max(_RESIDUE_BYTES, limit * _RESIDUE_SHARE)

    def close(self) -> None:
        """Close the descriptors; the groups stay, and cannot be used any more."""
        self.closed = True
        for control in self._controls.every:
            control.close()
        held, self.attach_fds, self.clone_fd = (*self.attach_fds, self.clone_fd), (), None
        for fd in held:
            if fd is not None:
                os.close(fd)

    def remove(self) -> None:
        """Close, and remove the groups, which must be empty."""
        self.close()
        while self._groups:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(self._groups[-1][1])
            self._groups.pop()
