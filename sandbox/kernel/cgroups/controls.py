"""One controller of one slot: its limit and its counters, in the files of cgroup v1 and v2."""

from __future__ import annotations

import contextlib
import errno
import os

from sandbox.kernel.cgroups.limits import CgroupLimits
from sandbox.kernel.cgroups.tree import read, write


class Gauge:
    """A kernel file that stays open, so that a reading is a single pread."""

    def __init__(self, path: str, flags: int = os.O_RDONLY) -> None:
        self._fd = os.open(path, flags | os.O_CLOEXEC)

    def number(self) -> int:
        return int(os.pread(self._fd, 32, 0))

    def field(self, key: bytes) -> int:
        """The number after `key` in a file of "key value" lines."""
        words = os.pread(self._fd, 4096, 0).split()
        return int(words[words.index(key) + 1])

    def reset(self, text: bytes) -> None:
        os.pwrite(self._fd, text, 0)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Control:
    """What every controller of a slot can do; each does the part that it has."""

    def apply(self, limits: CgroupLimits) -> None:
        """Set the limits. Raises the kernel's OSError."""

    def restart(self) -> None:
        """A new user: its counters begin at nought."""

    def release_brakes(self) -> None:
        """Let what is killed run to its end at once, without multiplying; `apply` puts the limits back."""

    def close(self) -> None:
        """Close the descriptors."""


class MemoryV1(Control):
    def __init__(self, group: str) -> None:
        self._group = group
        self._limit: int | None = None
        self._oom_before = 0
        self._swap_counted = os.path.exists(f"{group}/memory.memsw.limit_in_bytes")
        with contextlib.suppress(
            OSError
        ):  # only matters where swap is not counted; then 0 means that ours is never used
            write(f"{group}/memory.swappiness", "0")
        self._oom = Gauge(f"{group}/memory.oom_control")
        try:
            self._peak = Gauge(f"{group}/memory.max_usage_in_bytes", os.O_RDWR)
        except OSError:
            self._oom.close()
            raise

    def apply(self, limits: CgroupLimits) -> None:
        new, old = limits.memory_bytes, self._limit
        if new == old:
            return
        names = ["memory.limit_in_bytes"]
        if self._swap_counted:
            # Memory with swap may at no moment be below memory alone: raise it first, lower it last.
            raising = new is None or (old is not None and new > old)
            names.insert(0 if raising else 1, "memory.memsw.limit_in_bytes")
        for name in names:
            write(f"{self._group}/{name}", str(-1 if new is None else new))
        self._limit = new

    def restart(self) -> None:
        self._peak.reset(b"0")
        self._oom_before = self._oom.field(b"oom_kill")

    def memory_bytes(self) -> int:
        return int(read(f"{self._group}/memory.usage_in_bytes"))

    def memory_peak_bytes(self) -> int | None:
        return self._peak.number()

    def oom_kills(self) -> int:
        return self._oom.field(b"oom_kill") - self._oom_before

    def close(self) -> None:
        self._oom.close()
        self._peak.close()


class MemoryV2(Control):
    def __init__(self, group: str) -> None:
        self._group = group
        self._limit: int | None = None
        self._oom_before = 0
        self._peak_before = 0
        self._peak_resets = False
        self._swap_counted = os.path.exists(f"{group}/memory.swap.max")
        if self._swap_counted:
            write(f"{group}/memory.swap.max", "0")
        write(f"{group}/memory.oom.group", "0")  # the kernel ends the biggest process; the warden lives to tell
        self._peak: Gauge | None = None
        self._oom = Gauge(f"{group}/memory.events")
        try:
            self._open_peak()
        except OSError:
            self.close()
            raise

    def _open_peak(self) -> None:
        """Readable since Linux 5.19; since 6.12 a write starts the peak anew for that descriptor."""
        path = f"{self._group}/memory.peak"
        with contextlib.suppress(FileNotFoundError):
            self._peak = Gauge(path)
            # Root may open the file for writing everywhere; only the write itself tells.
            with contextlib.suppress(PermissionError):
                writable = Gauge(path, os.O_RDWR)
                try:
                    writable.reset(b"0")
                except OSError:
                    writable.close()
                else:
                    self._peak.close()
                    self._peak, self._peak_resets = writable, True

    def apply(self, limits: CgroupLimits) -> None:
        if limits.memory_bytes != self._limit:
            value = limits.memory_bytes
            write(f"{self._group}/memory.max", "max" if value is None else str(value))
            self._limit = value

    def restart(self) -> None:
        self._oom_before = self._oom.field(b"oom_kill")
        if self._peak is not None and self._peak_resets:
            self._peak.reset(b"0")
        elif self._peak is not None:
            self._peak_before = self._peak.number()

    def memory_bytes(self) -> int:
        return int(read(f"{self._group}/memory.current"))

    def memory_peak_bytes(self) -> int | None:
        """None where the peak cannot be told from that of an earlier and bigger user of the slot."""
        if self._peak is None:
            return None
        peak = self._peak.number()
        return peak if self._peak_resets or peak > self._peak_before else None

    def oom_kills(self) -> int:
        return self._oom.field(b"oom_kill") - self._oom_before

    def close(self) -> None:
        self._oom.close()
        if self._peak is not None:
            self._peak.close()


class Pids(Control):
    """Both versions use the same files."""

    def __init__(self, group: str) -> None:
        self._group = group
        self._written: str | None = None

    def apply(self, limits: CgroupLimits) -> None:
        self._write("max" if limits.tasks is None else str(limits.tasks))

    def release_brakes(self) -> None:
        self._write("0")

    def _write(self, value: str) -> None:
        if value != self._written:
            write(f"{self._group}/pids.max", value)
            self._written = value

    def tasks(self) -> int:
        return int(read(f"{self._group}/pids.current"))


class CpuV1(Control):
    def __init__(self, group: str) -> None:
        self._group = group
        self._written: tuple[int | None, int] = (None, 0)

    def apply(self, limits: CgroupLimits) -> None:
        quota, period = limits.bandwidth_us()
        if (quota, period) == self._written:
            return
        if period != self._written[1]:
            self.release_brakes()  # a period is refused while it would make the old quota too big a share
            write(f"{self._group}/cpu.cfs_period_us", str(period))
        try:
            write(f"{self._group}/cpu.cfs_quota_us", str(-1 if quota is None else quota))
        except OSError as error:
            # More than the share of a group above us: v1 refuses that, and without a quota of its own this
            # group has exactly the share of the one above, which is less than what was asked for.
            if error.errno != errno.EINVAL:
                raise
            write(f"{self._group}/cpu.cfs_quota_us", "-1")
        self._written = (quota, period)

    def release_brakes(self) -> None:
        if self._written[0] is not None:
            write(f"{self._group}/cpu.cfs_quota_us", "-1")
            self._written = (None, self._written[1])


class CpuV2(Control):
    def __init__(self, group: str) -> None:
        self._group = group
        self._written: tuple[int | None, int] | None = None

    def apply(self, limits: CgroupLimits) -> None:
        self._write(*limits.bandwidth_us())

    def release_brakes(self) -> None:
        self._write(None, CgroupLimits().bandwidth_us()[1])

    def _write(self, quota: int | None, period: int) -> None:
        if (quota, period) != self._written:
            write(f"{self._group}/cpu.max", f"{'max' if quota is None else quota} {period}")
            self._written = (quota, period)


class CpuTimeV1(Control):
    def __init__(self, group: str) -> None:
        self._used_ns = Gauge(f"{group}/cpuacct.usage")
        self._before = 0

    def restart(self) -> None:
        self._before = self._used_ns.number()

    def cpu_s(self) -> float:
        return (self._used_ns.number() - self._before) / 1e9

    def close(self) -> None:
        self._used_ns.close()


class CpuTimeV2(Control):
    """Counted in every v2 group since Linux 4.16, with or without the cpu controller."""

    def __init__(self, group: str) -> None:
        self._used = Gauge(f"{group}/cpu.stat")
        self._before = 0

    def restart(self) -> None:
        self._before = self._used.field(b"usage_usec")

    def cpu_s(self) -> float:
        return (self._used.field(b"usage_usec") - self._before) / 1e6

    def close(self) -> None:
        self._used.close()
