"""Many samples in a few numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Summary", "percentile", "summarize"]


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least `percent` of all samples do not exceed (nearest rank)."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a list of samples comes to, in their own unit."""

    n: int
    least: float
    p50: float
    p99: float
    most: float


def summarize(samples: Sequence[float]) -> Summary:
    """The summary of at least one sample."""
    return Summary(
        n=len(samples),
        least=min(samples),
        p50=percentile(samples, 50),
        p99=percentile(samples, 99),
        most=max(samples),
    )
