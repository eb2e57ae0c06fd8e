"""The blocking client: every call crosses to the event loop of the async one."""

import functools
import inspect
from typing import Any, Generic, Self

from openenv.core.client_types import ActT, ObsT, StateT, StepResult
from openenv.core.env_client import EnvClient


class SyncEnvClient(Generic[ActT, ObsT, StateT]):
    """Blocking form of an EnvClient, with the same operations and errors.

    It may be used while an event loop runs in the calling thread (a notebook), which it then blocks.
    Coroutine methods that a subclass of EnvClient adds are offered here too, as blocking calls.
    """

    def __init__(self, async_client: EnvClient[ActT, ObsT, StateT]) -> None:
        self._client = async_client
        self._portal = async_client._portal

    @property
    def async_client(self) -> EnvClient[ActT, ObsT, StateT]:
        """The client behind this one."""
        return self._client

    def connect(self) -> Self:
        """Open a session; see `EnvClient.connect`."""
        self._portal.call(self._client._connect())
        return self

    def disconnect(self) -> None:
        """End the session; see `EnvClient.disconnect`."""
        self._portal.call(self._client._disconnect())

    def reset(self, **kwargs: Any) -> StepResult[ObsT]:
        """Start an episode; see `EnvClient.reset`."""
        return self._portal.call(self._client._reset(kwargs))

    def step(self, action: ActT, *, timeout_s: float | None = None, **kwargs: Any) -> StepResult[ObsT]:
        """Act; see `EnvClient.step`."""
        return self._portal.call(self._client._step(action, timeout_s))

    def state(self) -> StateT:
        """The environment's state; see `EnvClient.state`."""
        return self._portal.call(self._client._state())

    def close(self) -> None:
        """End the session and the background thread; see `EnvClient.close`."""
        try:
            self._portal.call(self._client._close())
        finally:
            self._portal.close()

    def __enter__(self) -> Self:
        return self.connect()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        if name == "_client":  # not set yet: copying or unpickling
            raise AttributeError(name)
        value = getattr(self._client, name)
        if not inspect.iscoroutinefunction(value):
            return value

        @functools.wraps(value)
        def blocking(*args: Any, **kwargs: Any) -> Any:
            return self._portal.call(value(*args, **kwargs))

        return blocking
