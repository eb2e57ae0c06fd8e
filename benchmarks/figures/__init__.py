"""The figures, one module per group. Each has `measure(options) -> list[Figure]`."""

from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.stats import Summary

__all__ = ["Figure", "Measured", "Options", "amount", "times"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much to measure."""

    quick: bool = False

    def count(self, full: int) -> int:
        """How many samples: `full` of them, or a tenth if it has to be quick."""
        return max(5, full // 10) if self.quick else full

    def seconds(self, full: float) -> float:
        """For how long: `full` seconds, or a fifth."""
        return full / 5 if self.quick else full


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measurement: a single value, or a median with its tail."""

    value: float
    p99: float | None = None
    summary: Summary | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line: what was measured of this project, what is aimed at, and what peers took in the same run."""

    name: str
    unit: str
    ours: Measured
    goal: str = ""
    peers: dict[str, Measured] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def times(samples_s: list[float], **facts: Any) -> Measured:
    """Durations, shown in milliseconds."""
    from benchmarks.stats import summarize

    summary = summarize([sample * 1000 for sample in samples_s])
    return Measured(value=summary.p50, p99=summary.p99, summary=summary, facts=facts)


def amount(value: float, **facts: Any) -> Measured:
    """One value."""
    return Measured(value=value, facts=facts)
