"""What an environment implements, and what it may use."""

import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, Protocol, TypedDict, TypeVar

from openenv.core.env_server.types import Action, EnvironmentMetadata, Observation, State

__all__ = [
    "ActT",
    "Action",
    "Environment",
    "EnvironmentMetadata",
    "Message",
    "ModelTokenizer",
    "ObsT",
    "Observation",
    "State",
    "StateT",
    "TaskProvider",
    "Transform",
]

# Dataclasses and dictionaries are welcome next to the pydantic bases, so none of these is bound.
ActT = TypeVar("ActT")
ObsT = TypeVar("ObsT")
StateT = TypeVar("StateT")


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class ModelTokenizer(Protocol):
    """What chat environments need of a tokenizer."""

    def apply_chat_template(
        self,
        conversation: list[Message],
        tokenize: bool = True,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """The conversation as tokens (or text)."""
        ...

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> str:
        """The text of tokens."""
        ...


class TaskProvider(Protocol):
    """An environment that can list its tasks. Methods may be async; they must work on a fresh instance."""

    def list_splits(self) -> Any:
        """The names of the splits."""
        ...

    def list_tasks(self, split: str) -> Any:
        """Every task of a split."""
        ...

    def num_tasks(self, split: str) -> Any:
        """How many tasks a split has."""
        ...

    def get_task(self, split: str, index: int) -> Any:
        """One task."""
        ...

    def get_task_range(self, split: str, start: int | None = None, stop: int | None = None) -> Any:
        """Tasks `start` to `stop`, as a slice would."""
        ...


class Transform(ABC, Generic[ObsT]):
    """Rewrites an observation on its way out, for example to add a reward."""

    @abstractmethod
    def __call__(self, observation: ObsT) -> ObsT:
        """The observation to send."""


class Environment(ABC, Generic[ActT, ObsT, StateT]):
    """One world that one session acts in.

    Override `reset` and `step` for a blocking environment: the server calls everything, constructor and
    `close` included, on a thread that belongs to the session. Override `reset_async` and `step_async` for an
    async one: the server awaits them on its event loop, so they must not block it. An async environment has
    no use for the blocking pair, but Python wants the abstract methods defined.

    Arguments of `reset` and `step` beyond the action arrive only if the signature names them, or takes
    `**kwargs`.
    """

    SUPPORTS_CONCURRENT_SESSIONS: ClassVar[bool] = False
    """Whether instances share nothing, so that several sessions may run at once."""

    REQUIRES_SINGLE_THREAD_EXECUTOR: ClassVar[bool] = False
    """Whether all sessions of a blocking environment must share one thread."""

    # On the class, because many environments never call `super().__init__()`.
    transform: Transform[Any] | None = None
    rubric: Any = None

    def __init__(self, transform: Transform[ObsT] | None = None, rubric: Any = None) -> None:
        self.transform = transform
        self.rubric = rubric

    @abstractmethod
    def reset(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> ObsT:
        """Start an episode and return its first observation."""

    @abstractmethod
    def step(self, action: ActT, timeout_s: float | None = None, **kwargs: Any) -> ObsT:
        """Act, and return what came of it. `timeout_s` is the caller's deadline in seconds."""

    async def reset_async(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> ObsT:
        """As `reset`, on the event loop."""
        return self.reset(seed=seed, episode_id=episode_id, **kwargs)

    async def step_async(self, action: ActT, timeout_s: float | None = None, **kwargs: Any) -> ObsT:
        """As `step`, on the event loop."""
        return self.step(action, timeout_s=timeout_s, **kwargs)

    @property
    @abstractmethod
    def state(self) -> StateT:
        """The state of the episode. A plain method serves as well as a property."""

    @classmethod
    def default_max_sessions(cls) -> int:
        """How many sessions to serve when nobody said, given SUPPORTS_CONCURRENT_SESSIONS. At least 1."""
        return 1

    def get_metadata(self) -> EnvironmentMetadata:
        """What `/metadata` answers. A classmethod override spares the server building an instance to ask."""
        name = type(self).__name__
        return EnvironmentMetadata(name=name, description=f"{name} environment", version="1.0.0")

    def close(self) -> Any:
        """Give everything back. Called once, also after errors, never while a call is running."""

    async def close_async(self) -> None:
        """As `close`, on the event loop; calls `close` unless overridden."""
        outcome = self.close()
        if inspect.isawaitable(outcome):
            await outcome

    def _apply_transform(self, observation: ObsT) -> ObsT:
        return observation if self.transform is None else self.transform(observation)

    def _apply_rubric(self, action: ActT, observation: ObsT) -> Any:
        """The rubric's score, 0.0 without one; of an async rubric an awaitable."""
        return 0.0 if self.rubric is None else self.rubric(action, observation)

    async def _apply_rubric_async(self, action: ActT, observation: ObsT) -> Any:
        score = self._apply_rubric(action, observation)
        return await score if inspect.isawaitable(score) else score

    def _reset_rubric(self) -> None:
        if self.rubric is not None:
            self.rubric.reset()

    async def _reset_rubric_async(self) -> None:
        if self.rubric is None:
            return
        outcome = getattr(self.rubric, "reset_async", self.rubric.reset)()
        if inspect.isawaitable(outcome):
            await outcome
