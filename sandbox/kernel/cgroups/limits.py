"""What is asked of a group and what it reports."""

from __future__ import annotations

from dataclasses import dataclass

# A group that has spent its quota stands still until the period ends: 64 threads spend one core's share of
# 100 ms in 1.6 ms and then stall for 98. It also delays death, because a throttled process that is killed
# runs its exit in the next period (measured on two cores: worst 54 ms with a period of 100 ms, 14 ms with 20
# ms). The cost of a shorter period did not show above noise down to 5 ms; the kernel hands out quota in
# slices of 5 ms.
PERIOD_US = 20_000
MIN_QUOTA_US = 1_000
MAX_PERIOD_US = 1_000_000


@dataclass(frozen=True, kw_only=True)
class CgroupLimits:
    """None leaves that resource unlimited by this group."""

    memory_bytes: int | None = None
    tasks: int | None = None
    cpu_cores: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("memory_bytes", self.memory_bytes), ("tasks", self.tasks)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.cpu_cores is not None and not self.cpu_cores >= MIN_QUOTA_US / MAX_PERIOD_US:
            raise ValueError(f"cpu_cores must be at least 0.001, not {self.cpu_cores}")

    @property
    def controllers(self) -> frozenset[str]:
        """The controllers without which these limits would not hold."""
        wanted = {"memory": self.memory_bytes, "pids": self.tasks, "cpu": self.cpu_cores}
        return frozenset(name for name, value in wanted.items() if value is not None)

    def bandwidth_us(self) -> tuple[int | None, int]:
        """(quota, period). The kernel refuses a quota under 1 ms, so small shares get a longer period."""
        if self.cpu_cores is None:
            return None, PERIOD_US
        period = max(PERIOD_US, round(MIN_QUOTA_US / self.cpu_cores))
        return round(self.cpu_cores * period), period


@dataclass(frozen=True, kw_only=True)
class CgroupUsage:
    """Since the slot was acquired. None where this machine cannot tell."""

    cpu_s: float | None
    memory_bytes: int | None
    memory_peak_bytes: int | None
    oom_kills: int
    tasks: int | None
