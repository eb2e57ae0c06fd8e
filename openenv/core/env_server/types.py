"""The vocabulary of the wire: actions, observations, states, requests, replies. Imports pydantic only."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Scalar = int | float | bool

MAX_ID_LENGTH = 255


class ServerMode(StrEnum):
    """`simulation` serves reset, step and state over HTTP; `production` does not."""

    SIMULATION = "simulation"
    PRODUCTION = "production"


class HealthStatus(StrEnum):
    """What `/health` can say."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    DEGRADED = "degraded"


class WSErrorCode(StrEnum):
    """The codes of error frames. Which of them end a session is in `exceptions.ERROR_RULES`."""

    INVALID_JSON = "INVALID_JSON"
    UNKNOWN_TYPE = "UNKNOWN_TYPE"
    VALIDATION_ERROR = "VALIDATION_ERROR"
    EXECUTION_ERROR = "EXECUTION_ERROR"
    CAPACITY_REACHED = "CAPACITY_REACHED"
    FACTORY_ERROR = "FACTORY_ERROR"
    SESSION_ERROR = "SESSION_ERROR"


class Action(BaseModel):
    """Base of what an agent sends. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, arbitrary_types_allowed=True)

    metadata: dict[str, Any] = Field(default_factory=dict, description="Free-form facts about the action")


class Observation(BaseModel):
    """Base of what an agent sees. `done` ends the episode; `reward` is None when there is none."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, arbitrary_types_allowed=True)

    done: bool = Field(default=False, description="Whether the episode has ended")
    reward: bool | int | float | None = Field(default=None, description="Reward of the last action")
    metadata: dict[str, Any] = Field(default_factory=dict, description="Free-form facts about the observation")


class State(BaseModel):
    """Base of what an environment tells about its episode. Further fields are allowed."""

    model_config = ConfigDict(extra="allow", validate_assignment=True, arbitrary_types_allowed=True)

    episode_id: str | None = Field(default=None, description="Identifies the episode")
    step_count: int = Field(default=0, ge=0, description="Steps since the last reset")


class ResetRequest(BaseModel):
    """What starts an episode. Further keys go to the environment if its `reset` accepts them."""

    model_config = ConfigDict(extra="allow")

    seed: int | None = Field(default=None, ge=0, description="Seed of the episode")
    episode_id: str | None = Field(default=None, max_length=MAX_ID_LENGTH, description="Identifies the episode")


class StepRequest(BaseModel):
    """One action over HTTP. Further keys go to the environment if its `step` accepts them."""

    model_config = ConfigDict(extra="allow")

    action: dict[str, Any] = Field(description="The action, in the shape that /schema shows")
    timeout_s: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="Deadline in seconds")
    request_id: str | None = Field(default=None, max_length=MAX_ID_LENGTH, description="Chosen by the caller")


class ResetResponse(BaseModel):
    """The first observation of an episode."""

    model_config = ConfigDict(extra="forbid")

    observation: dict[str, Any]
    reward: float | None = None
    done: bool = False
    metadata: dict[str, Any] | None = None


class StepResponse(ResetResponse):
    """The observation that follows an action."""


class BaseMessage(BaseModel):
    """Base of protocol messages: no unknown keys."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class CodeExecResult(BaseMessage):
    """What a program wrote and how it ended."""

    stdout: str
    stderr: str
    exit_code: int


class EnvironmentMetadata(BaseMessage):
    """What `/metadata` tells about an environment."""

    name: str
    description: str
    readme_content: str | None = None
    version: str | None = None
    author: str | None = None
    documentation_url: str | None = None


class SchemaResponse(BaseMessage):
    """JSON Schemas of the environment's models; `reset_observation` only if it differs from `observation`."""

    action: dict[str, Any]
    observation: dict[str, Any]
    state: dict[str, Any]
    reset_observation: dict[str, Any] | None = None

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        if fields.get("reset_observation") is None:
            fields.pop("reset_observation", None)
        return fields


class HealthResponse(BaseMessage):
    """What `/health` answers."""

    status: HealthStatus = HealthStatus.HEALTHY


class ListTasksRequest(BaseMessage):
    """Asks for the tasks of a split."""

    split: str


class NumTasksRequest(BaseMessage):
    """Asks how many tasks a split has."""

    split: str


class GetTaskRequest(BaseMessage):
    """Asks for one task."""

    split: str
    index: int


class GetTaskRangeRequest(BaseMessage):
    """Asks for tasks `start` to `stop`, as a slice would."""

    split: str
    start: int | None = None
    stop: int | None = None


class WSResetMessage(BaseMessage):
    """Start an episode."""

    type: Literal["reset"] = "reset"
    data: dict[str, Any] = Field(default_factory=dict)


class WSStepMessage(BaseMessage):
    """Act; `data` is the action."""

    type: Literal["step"] = "step"
    data: dict[str, Any]


class WSStateMessage(BaseMessage):
    """Ask for the state."""

    type: Literal["state"] = "state"


class WSCloseMessage(BaseMessage):
    """End the session."""

    type: Literal["close"] = "close"


WSIncomingMessage = Annotated[
    WSResetMessage | WSStepMessage | WSStateMessage | WSCloseMessage, Field(discriminator="type")
]


class WSObservationResponse(BaseMessage):
    """Answers reset and step."""

    type: Literal["observation"] = "observation"
    data: dict[str, Any]


class WSStateResponse(BaseMessage):
    """Answers state."""

    type: Literal["state"] = "state"
    data: dict[str, Any]


class WSErrorResponse(BaseMessage):
    """Answers a request that failed; `data` holds message, code and further facts."""

    type: Literal["error"] = "error"
    data: dict[str, Any]


class ConcurrencyConfig(BaseMessage):
    """How many sessions at once, and after how many idle seconds one is ended (None: never)."""

    max_concurrent_envs: int = Field(default=1, ge=1)
    session_timeout: float | None = Field(default=None, gt=0)


class ServerCapacityStatus(BaseMessage):
    """How full a server is."""

    active_sessions: int = Field(ge=0)
    max_sessions: int = Field(ge=1)

    @model_validator(mode="after")
    def _within_bounds(self) -> "ServerCapacityStatus":
        if self.active_sessions > self.max_sessions:
            raise ValueError(f"active_sessions ({self.active_sessions}) exceeds max_sessions ({self.max_sessions})")
        return self

    @property
    def available_slots(self) -> int:
        """Sessions that could still start."""
        return self.max_sessions - self.active_sessions

    @property
    def is_at_capacity(self) -> bool:
        """Whether the next session would be refused."""
        return self.available_slots == 0

    @classmethod
    def from_counts(cls, active: int, max_sessions: int) -> "ServerCapacityStatus":
        """The status for these counts."""
        return cls(active_sessions=active, max_sessions=max_sessions)


class SessionInfo(BaseMessage):
    """One live session. Times are seconds since the epoch."""

    session_id: str
    created_at: float
    last_activity_at: float
    step_count: int = Field(default=0, ge=0)
    environment_type: str
