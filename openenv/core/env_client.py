"""The client of an environment.

One client is one session on the server, over one WebSocket. It can be used in three ways, one at a time:

```python
async with MyEnv(base_url="http://localhost:8000") as env:   # from async code
    result = await env.reset()

with MyEnv(base_url="http://localhost:8000").sync() as env:  # blocking, with types that say so
    result = env.reset()

with MyEnv(base_url="http://localhost:8000") as env:         # blocking, where no event loop runs
    result = env.reset()
```

A session that is lost stays lost. After a timeout, a dropped connection or a cancelled call, `step` and
`state` raise SessionLost, because the state they mean is gone. `reset` starts a new episode anyway and
therefore may open a new session; so does an explicit `connect`.
"""

import asyncio
import dataclasses
import logging
import os
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

from pydantic import BaseModel, ValidationError

from openenv.core._channel import Channel, ChannelOptions
from openenv.core._generics import declared_types
from openenv.core._limits import MAX_MESSAGE_MB, PING_INTERVAL_S, PING_TIMEOUT_S
from openenv.core._portal import Portal
from openenv.core.client_types import ActT, ObsT, StateT, StepResult
from openenv.core.env_server.serialization import adapter_of, fields_of
from openenv.core.errors import ProtocolError, SessionLost
from openenv.core.utils import convert_to_ws_url

if TYPE_CHECKING:
    from openenv.core.sync_client import SyncEnvClient

logger = logging.getLogger(__name__)

T = TypeVar("T")

_RESULT_FIELDS = ("done", "reward", "metadata")
_MODES = ("simulation", "production")


class EnvClient(Generic[ActT, ObsT, StateT]):
    """Talks to one session of an environment server.

    Subclass it with the environment's models, `class MyEnv(EnvClient[MyAction, MyObservation, MyState])`,
    and actions, observations and states are converted; override `_step_payload`, `_parse_result` or
    `_parse_state` to do it differently. Calls that overlap are answered one after another.

    Args:
        base_url: Where the server is: http, https, ws or wss, or a bare host. A path is kept.
        connect_timeout_s: Longest wait for a connection.
        message_timeout_s: Longest wait for a reply; None waits for ever. A call that waits longer raises
            StepTimeout and loses the session.
        max_message_size_mb: Largest reply accepted, in MiB.
        websocket_ping_interval_s, websocket_ping_timeout_s: Keep-alive of the connection; None turns it off.
        provider: An object that starts the server: `start_container()` or `start()` returns its base URL, and
            `stop_container()` or `stop()` ends it. Started by the first connection, stopped by `close`.
        mode: `simulation` or `production`; None: `OPENENV_CLIENT_MODE`, or else simulation.
        headers: Further headers of the connection request.

    Raises:
        ValueError: neither `base_url` nor `provider`, or an unknown mode.
    """

    def __init__(  # noqa: PLR0917, the order that existing callers use
        self,
        base_url: str | None = None,
        connect_timeout_s: float = 10.0,
        message_timeout_s: float | None = 60.0,
        max_message_size_mb: float = MAX_MESSAGE_MB,
        websocket_ping_interval_s: float | None = PING_INTERVAL_S,
        websocket_ping_timeout_s: float | None = PING_TIMEOUT_S,
        provider: Any = None,
        mode: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if base_url is None and provider is None:
            raise ValueError(f"{type(self).__name__} requires either base_url or provider.")
        self._base_url = None if base_url is None else base_url.rstrip("/")
        self._provider = provider
        self._mode = _checked_mode(mode)
        self._message_timeout_s = message_timeout_s
        self._options = ChannelOptions(
            connect_timeout_s=connect_timeout_s,
            max_message_mb=max_message_size_mb,
            ping_interval_s=websocket_ping_interval_s,
            ping_timeout_s=websocket_ping_timeout_s,
            headers=headers,
        )
        self._channel: Channel | None = None
        self._turn: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None
        self._portal = Portal("openenv-client")
        if base_url is not None:
            convert_to_ws_url(base_url)  # a wrong scheme is an error here, not at the first call

    @property
    def base_url(self) -> str | None:
        """Where the server is; None until a provider has started it."""
        return self._base_url

    @property
    def mode(self) -> str:
        """`simulation` or `production`."""
        return self._mode

    # Coroutines where an event loop runs, as annotated; elsewhere they block and return the value.

    def connect(self) -> Coroutine[Any, Any, Self]:
        """Open a session; returns the client. A session that is still open is kept.

        Raises:
            ConnectFailed: the server cannot be reached.
        """
        return self._either(self._connect)

    def disconnect(self) -> Coroutine[Any, Any, None]:
        """End the session. The next `reset` or `connect` opens a new one."""
        return self._either(self._disconnect)

    def reset(self, **kwargs: Any) -> Coroutine[Any, Any, StepResult[ObsT]]:
        """Start an episode; `seed`, `episode_id` and whatever else the environment takes go along.

        Raises:
            ServerError, SessionLost, StepTimeout, ConnectFailed: see `openenv.core.errors`.
        """
        return self._either(lambda: self._reset(kwargs))

    def step(
        self, action: ActT, *, timeout_s: float | None = None, **kwargs: Any
    ) -> Coroutine[Any, Any, StepResult[ObsT]]:
        """Act. `timeout_s` replaces the message timeout for this call; further keywords have no effect.

        Raises:
            ServerError, SessionLost, StepTimeout, ConnectFailed: see `openenv.core.errors`.
        """
        return self._either(lambda: self._step(action, timeout_s))

    def state(self) -> Coroutine[Any, Any, StateT]:
        """The environment's state.

        Raises:
            ServerError, SessionLost, StepTimeout, ConnectFailed: see `openenv.core.errors`.
        """
        return self._either(self._state)

    def close(self) -> Coroutine[Any, Any, None]:
        """End the session and stop the server that a provider started. Idempotent."""
        try:
            return self._either(self._close)
        finally:
            if not _loop_is_running():
                self._portal.close()

    def sync(self) -> "SyncEnvClient[ActT, ObsT, StateT]":
        """The blocking form of this client."""
        from openenv.core.sync_client import SyncEnvClient

        return SyncEnvClient(self)

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._close()

    def __enter__(self) -> Self:
        if _loop_is_running():
            raise TypeError(f"an event loop runs here: use 'async with {type(self).__name__}(...)'")
        self._portal.call(self._connect())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.sync().close()

    # Hooks.

    def _step_payload(self, action: ActT) -> dict[str, Any]:
        """What to send for `action`. Empty metadata are left out: not every server's models have them."""
        payload = fields_of(action)
        if not payload.get("metadata", True):
            del payload["metadata"]
        return payload

    def _parse_result(self, payload: dict[str, Any]) -> StepResult[ObsT]:
        """The result that the `data` of an observation frame describes."""
        nested = dict(payload.get("observation") or {})
        metadata = _metadata_of(payload)
        model = self._declared()[1]
        if model is not None:
            found = {
                "done": payload.get("done", False),
                "reward": payload.get("reward"),
                "metadata": metadata,
            }
            known = _field_names(model)
            nested = {key: found[key] for key in _RESULT_FIELDS if key in known and found[key] is not None} | nested
        observation = cast("ObsT", _converted(nested, model))
        return StepResult(observation, payload.get("reward"), bool(payload.get("done", False)), metadata)

    def _parse_state(self, payload: dict[str, Any]) -> StateT:
        """The state that the `data` of a state frame describes."""
        return cast("StateT", _converted(payload, self._declared()[2]))

    def _declared(self) -> tuple[Any, ...]:
        cls: Any = type(self)
        return declared_types(cls, EnvClient)

    # The async side.

    async def _connect(self) -> Self:
        async with self._my_turn():
            if self._channel is None or self._channel.lost is not None:
                await self._open()
        return self

    async def _disconnect(self) -> None:
        if self._channel is not None:
            await self._channel.close()

    async def _close(self) -> None:
        try:
            await self._disconnect()
        finally:
            provider, self._provider = self._provider, None
            if provider is not None and self._base_url is not None:
                stop = getattr(provider, "stop_container", None) or provider.stop
                await asyncio.to_thread(stop)

    async def _reset(self, kwargs: Mapping[str, Any]) -> StepResult[ObsT]:
        message = {"type": "reset", "data": dict(kwargs)}
        return self._result(await self._ask(message, "observation", starts_episode=True))

    async def _step(self, action: ActT, timeout_s: float | None) -> StepResult[ObsT]:
        message = {"type": "step", "data": self._step_payload(action)}
        return self._result(await self._ask(message, "observation", timeout_s))

    async def _state(self) -> StateT:
        return self._parse_state(await self._ask({"type": "state"}, "state"))

    def _result(self, payload: dict[str, Any]) -> StepResult[ObsT]:
        result = self._parse_result(payload)
        if result.metadata is None:  # hooks written for servers that had none
            result.metadata = _metadata_of(payload)
        return result

    async def _ask(
        self,
        message: dict[str, Any],
        expected: str,
        timeout_s: float | None = None,
        *,
        starts_episode: bool = False,
    ) -> dict[str, Any]:
        async with self._my_turn():
            channel = self._channel
            if channel is None:
                channel = await self._open()
            elif channel.lost is not None:
                if not starts_episode:
                    raise SessionLost(
                        f"the session is gone ({channel.lost}) and its state with it; "
                        "reset() or connect() starts a new one"
                    )
                logger.info("opening a new session, the last one ended: %s", channel.lost)
                channel = await self._open()
            return await channel.exchange(message, expected, timeout_s or self._message_timeout_s)

    async def _open(self) -> Channel:
        if self._base_url is None:
            self._base_url = await asyncio.to_thread(_start, self._provider)
        self._channel = await Channel.open(f"{convert_to_ws_url(self._base_url)}/ws", self._options)
        return self._channel

    def _my_turn(self) -> asyncio.Lock:
        loop = asyncio.get_running_loop()
        channel = self._channel
        if channel is not None and channel.lost is None and channel.loop is not loop:
            raise RuntimeError("this client is connected in another event loop; disconnect it there first")
        if self._turn is None or self._turn[0] is not loop:
            self._turn = (loop, asyncio.Lock())
        return self._turn[1]

    def _either(self, operation: Callable[[], Coroutine[Any, Any, T]]) -> Coroutine[Any, Any, T]:
        if _loop_is_running():
            return operation()
        return cast("Coroutine[Any, Any, T]", self._portal.call(operation()))


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _checked_mode(mode: str | None) -> str:
    chosen = (mode or os.environ.get("OPENENV_CLIENT_MODE") or _MODES[0]).lower()
    if chosen not in _MODES:
        raise ValueError(f"Invalid mode: '{chosen}'. Must be 'simulation' or 'production'.")
    return chosen


def _start(provider: Any) -> str:
    start = getattr(provider, "start_container", None) or provider.start
    base_url = str(start())
    if hasattr(provider, "start_container"):
        provider.wait_for_ready(base_url)
    else:
        provider.wait_for_ready()
    return base_url.rstrip("/")


def _metadata_of(payload: Mapping[str, Any]) -> dict[str, Any] | None:
    nested = payload.get("observation")
    inner = nested.get("metadata") if isinstance(nested, dict) else None
    return payload.get("metadata") or inner or None


def _field_names(model: Any) -> frozenset[str]:
    if isinstance(model, type) and issubclass(model, BaseModel):
        return frozenset(model.model_fields)
    if dataclasses.is_dataclass(model):
        return frozenset(field.name for field in dataclasses.fields(model))
    return frozenset()


def _converted(fields: dict[str, Any], model: Any) -> Any:
    if model is None:
        return fields
    try:
        return adapter_of(model).validate_python(fields)
    except ValidationError as error:
        name = getattr(model, "__name__", str(model))
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ProtocolError(f"the server's reply does not fit {name}: {where}: {first['msg']}") from error
