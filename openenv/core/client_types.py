"""What a client hands back."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

ActT = TypeVar("ActT")
ObsT = TypeVar("ObsT")
StateT = TypeVar("StateT")


@dataclass
class StepResult(Generic[ObsT]):
    """One observation with its reward, and whether the episode ended.

    `metadata` is what the environment attached to the observation, None if it attached nothing.
    """

    observation: ObsT
    reward: float | None = None
    done: bool = False
    metadata: dict[str, Any] | None = None

    @property
    def truncated(self) -> bool:
        """The episode was cut short by a limit: `metadata["truncated"]` is exactly True."""
        return (self.metadata or {}).get("truncated") is True

    @property
    def terminated(self) -> bool:
        """The episode ended by itself."""
        return self.done and not self.truncated

    @property
    def info(self) -> dict[str, Any]:
        """`metadata`, or an empty dictionary."""
        return self.metadata or {}
