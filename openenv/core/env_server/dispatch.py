"""What a request means. No transport here: an adapter makes a request, `handle` makes the reply."""

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from openenv.core.env_server.exceptions import ERROR_RULES, RequestRefused
from openenv.core.env_server.hosting import EnvironmentFault
from openenv.core.env_server.serialization import (
    adapter_of,
    deserialize_action,
    fields_of,
    serialize_observation,
    validation_errors,
)
from openenv.core.env_server.sessions import Session
from openenv.core.env_server.types import ResetRequest, WSErrorCode

logger = logging.getLogger(__name__)

OWN_DEADLINE_GRACE_S = 1.0
"""An environment that is told the deadline gets this much longer: its own answer tells more."""

CANCEL_GRACE_S = 1.0
"""How long a cancelled step may take to clean up before it counts as stuck."""

MAX_MESSAGE_CHARS = 10_000

_RESET_FIELDS = frozenset(ResetRequest.model_fields)


@dataclass(frozen=True, slots=True)
class Reset:
    """Start an episode. `data` holds seed, episode_id and whatever else the environment takes."""

    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """Act. `timeout_s` is the caller's deadline, `extras` are keywords for environments that take them."""

    data: Mapping[str, Any]
    timeout_s: float | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GetState:
    """Ask for the state."""


Request = Reset | Step | GetState


@dataclass(frozen=True, slots=True)
class Observed:
    """`observation`, `reward`, `done` and, when there is any, `metadata`."""

    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stated:
    """The fields of the state."""

    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """Why there is no answer. `terminal`: the session is over."""

    code: WSErrorCode
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)
    http_status: int = 500
    terminal: bool = False

    @classmethod
    def of(cls, refused: RequestRefused) -> "Failed":
        """The reply to a refused request."""
        return cls(refused.code, refused.message, refused.details, refused.http_status, refused.terminal)


Reply = Observed | Stated | Failed


def failed(code: WSErrorCode, message: str, **details: Any) -> Failed:
    """A failure by the rules of its code."""
    rule = ERROR_RULES[code]
    return Failed(code, message[:MAX_MESSAGE_CHARS], details, rule.http_status, rule.terminal)


def invalid(what: str, error: ValidationError) -> RequestRefused:
    """The refusal of something that does not fit its model; the message names the first field."""
    errors = validation_errors(error)
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"])
    summary = f"{where}: {first['msg']}" if where else first["msg"]
    return RequestRefused(WSErrorCode.VALIDATION_ERROR, f"Invalid {what}: {summary}", details={"errors": errors})


class Dispatcher:
    """Answers requests of sessions whose environment takes `action_cls`."""

    def __init__(self, action_cls: Any, *, max_step_s: float | None = None) -> None:
        self._action_cls = action_cls
        self._max_step_s = max_step_s
        adapter_of(action_cls)  # a class that cannot be validated is an error at start-up

    async def handle(self, session: Session, request: Request) -> Reply:
        """The reply to `request`. Never raises for anything that an environment or a client did."""
        session.enter()
        try:
            if session.ended is not None:
                return failed(WSErrorCode.SESSION_ERROR, f"Session ended: {session.ended}")
            if isinstance(request, Step):
                return Observed(await self._step(session, request))
            if isinstance(request, Reset):
                return Observed(serialize_observation(await self._reset(session, request.data)))
            return Stated(fields_of(await session.host.state()))
        except RequestRefused as refused:
            return Failed.of(refused)
        except EnvironmentFault as fault:
            return self._fault(session, fault.error, str(fault))
        except (TypeError, ValueError) as error:  # what the environment returned cannot be sent
            return self._fault(session, error, str(error))
        finally:
            session.leave()

    def _fault(self, session: Session, error: BaseException, message: str) -> Failed:
        if isinstance(error, NotImplementedError) and message == "NotImplementedError":
            message = "this environment does not implement the operation"
        logger.error("environment of session %s raised", session.id, exc_info=error)
        return failed(WSErrorCode.EXECUTION_ERROR, message)

    async def _reset(self, session: Session, data: Mapping[str, Any]) -> Any:
        try:
            checked = ResetRequest.model_validate(data)
        except ValidationError as error:
            raise invalid("reset", error) from error
        keywords = dict(checked.model_extra or {})
        keywords |= {name: getattr(checked, name) for name in _RESET_FIELDS & checked.model_fields_set}
        observation = await session.host.reset(keywords)
        session.episode_started = True
        session.step_count = 0
        return observation

    async def _step(self, session: Session, request: Step) -> dict[str, Any]:
        action = self._action(request.data)
        if not session.episode_started:
            await self._reset(session, {})
        keywords = dict(request.extras)
        limit_s = self._limit_s(request.timeout_s)
        if request.timeout_s is not None:
            keywords["timeout_s"] = limit_s
        call = session.host.step(action, keywords)
        if limit_s is None:
            observation = await call
        else:
            told = request.timeout_s is not None and session.host.step_knows_deadlines
            observation = await _bounded(session, call, limit_s, OWN_DEADLINE_GRACE_S if told else 0.0)
        session.step_count += 1
        return serialize_observation(observation)

    def _action(self, data: Mapping[str, Any]) -> Any:
        try:
            return deserialize_action(data, self._action_cls)
        except ValidationError as error:
            raise invalid("action", error) from error
        except Exception as error:  # a validator of the environment's own raised something else
            raise EnvironmentFault(error) from error

    def _limit_s(self, asked_s: float | None) -> float | None:
        limits = [limit for limit in (asked_s, self._max_step_s) if limit is not None]
        return min(limits, default=None)


async def _bounded(session: Session, call: Coroutine[Any, Any, Any], limit_s: float, grace_s: float) -> Any:
    """What `call` returns, if it does in time; otherwise a refusal, which ends a session that is stuck."""
    task = asyncio.ensure_future(call)
    try:
        await asyncio.wait({task}, timeout=limit_s + grace_s)
        late = not task.done()
        if late and session.host.step_can_be_cancelled:
            task.cancel()
            await asyncio.wait({task}, timeout=CANCEL_GRACE_S)
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task})
        raise
    message = f"step exceeded {limit_s:g} s"
    if not task.done():
        task.cancel()
        task.add_done_callback(_consume)
        session.end(message)
        raise RequestRefused(
            WSErrorCode.EXECUTION_ERROR,
            f"{message} and cannot be stopped; the session has ended",
            http_status=504,
            terminal=True,
        )
    if late and (task.cancelled() or task.exception() is not None):
        raise RequestRefused(WSErrorCode.EXECUTION_ERROR, message, http_status=504)
    return task.result()  # also when late: an environment may turn the cancellation into an observation


def _consume(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled():
        task.exception()
