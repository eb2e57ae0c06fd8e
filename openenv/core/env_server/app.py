"""From an environment class to a web application."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI

from openenv.core._generics import declared_types
from openenv.core.env_server.dispatch import Dispatcher, failed
from openenv.core.env_server.exceptions import (
    ConcurrencyConfigurationError,
    RequestRefused,
    SessionNotFoundError,
)
from openenv.core.env_server.hosting import EnvironmentFactory, EnvironmentFault, EnvironmentHost
from openenv.core.env_server.http import build_router
from openenv.core.env_server.http_sessions import HttpSessions
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.origins import OriginPolicy
from openenv.core.env_server.serialization import fields_of, json_schema_of
from openenv.core.env_server.sessions import SessionLimits, SessionTable
from openenv.core.env_server.settings import ServerSettings, parse_mode
from openenv.core.env_server.types import (
    ConcurrencyConfig,
    EnvironmentMetadata,
    SchemaResponse,
    ServerCapacityStatus,
    ServerMode,
    SessionInfo,
    State,
    WSErrorCode,
)
from openenv.core.env_server.websocket import WebSocketEndpoint
from openenv.core.env_server.worker import SessionThread

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Any]]

HTTP_IDLE_S = 3600.0


class HTTPEnvServer:
    """Serves an environment to sessions over WebSocket and HTTP.

    Args:
        env: A class, a factory function or a `functools.partial`: every session gets an environment of
            its own. A ready instance is served to one session at a time.
        action_cls, observation_cls, state_cls, reset_observation_cls: pydantic models, dataclasses or `dict`.
        max_concurrent_envs: How many sessions at once. None: `MAX_CONCURRENT_ENVS`, or else the environment's
            `default_max_sessions()` if it supports concurrent sessions, or else 1.
        concurrency_config: The same together with an idle limit; instead of `max_concurrent_envs`.
        env_name: The name to show; default the class's or function's.
        max_step_s: Longest step in seconds. None: `OPENENV_MAX_STEP_S`, or else no limit.
        allowed_origins: Origins of web pages, beside the server's own, that may connect. None:
            `OPENENV_ALLOWED_ORIGINS`, or else no other.
        http_idle_s: An HTTP session that is not used for so long ends (None: never), because there is no
            connection whose end would tell.

    Raises:
        TypeError: `env` is nothing of the above.
        ValueError: both ways to give the capacity, or an unusable environment variable.
        ConcurrencyConfigurationError: more than one session, of a class that does not support it.
    """

    def __init__(  # noqa: PLR0917, the order that existing callers use
        self,
        env: Any,
        action_cls: Any,
        observation_cls: Any,
        max_concurrent_envs: int | type | None = None,
        concurrency_config: ConcurrencyConfig | None = None,
        env_name: str | None = None,
        state_cls: Any = State,
        *,
        reset_observation_cls: Any = None,
        max_step_s: float | None = None,
        allowed_origins: Iterable[str] | None = None,
        http_idle_s: float | None = HTTP_IDLE_S,
    ) -> None:
        if isinstance(max_concurrent_envs, type):  # the state class in the older order of arguments
            max_concurrent_envs, state_cls = None, max_concurrent_envs
        if max_concurrent_envs is not None and concurrency_config is not None:
            raise ValueError("Cannot specify both max_concurrent_envs and concurrency_config")
        settings = ServerSettings.from_environ(os.environ)
        self._factory = EnvironmentFactory(env)
        self.action_cls = action_cls
        self.observation_cls = observation_cls
        self.reset_observation_cls = reset_observation_cls
        self.state_cls = _declared_state(self._factory.cls) if state_cls is State else state_cls
        self.env_name = env_name or self._factory.name
        self._concurrency = concurrency_config or ConcurrencyConfig(
            max_concurrent_envs=_capacity(self._factory, max_concurrent_envs, settings)
        )
        _check_concurrency(self._factory, self._concurrency.max_concurrent_envs)
        self.sessions = SessionTable(self._factory, self._limits(http_idle_s))
        self.dispatcher = Dispatcher(action_cls, max_step_s=max_step_s or settings.max_step_s)
        self.origins = OriginPolicy(settings.allowed_origins or () if allowed_origins is None else allowed_origins)
        self.http_sessions = HttpSessions(self.sessions, self.dispatcher)
        self.websocket = WebSocketEndpoint(self.sessions, self.dispatcher, self.origins)
        self._metadata: dict[str, Any] | None = None
        self._metadata_lock = asyncio.Lock()
        self._schema: dict[str, Any] | None = None

    def _limits(self, http_idle_s: float | None) -> SessionLimits:
        cls = self._factory.cls
        return SessionLimits(
            max_sessions=self._concurrency.max_concurrent_envs,
            exclusive=not getattr(cls, "SUPPORTS_CONCURRENT_SESSIONS", False),
            idle_s=self._concurrency.session_timeout,
            http_idle_s=http_idle_s,
            single_thread=bool(getattr(cls, "REQUIRES_SINGLE_THREAD_EXECUTOR", False)),
        )

    @property
    def active_sessions(self) -> int:
        """Sessions that hold a slot."""
        return len(self.sessions.sessions)

    @property
    def max_concurrent_envs(self) -> int:
        """How many sessions may hold one."""
        return self._concurrency.max_concurrent_envs

    @property
    def concurrency_config(self) -> ConcurrencyConfig:
        """Capacity and idle limit in force."""
        return self._concurrency

    @property
    def is_concurrency_safe(self) -> bool:
        """Whether the environment supports sessions at the same time."""
        return bool(getattr(self._factory.class_for_checks(), "SUPPORTS_CONCURRENT_SESSIONS", False))

    def get_capacity_status(self) -> ServerCapacityStatus:
        """How full the server is."""
        return ServerCapacityStatus.from_counts(self.active_sessions, self.max_concurrent_envs)

    def get_session_info(self, session_id: str) -> SessionInfo:
        """What is known about a live session.

        Raises:
            SessionNotFoundError: there is none of that id.
        """
        session = self.sessions.sessions.get(session_id)
        if session is None:
            raise SessionNotFoundError(session_id)
        return session.info()

    @asynccontextmanager
    async def lifespan(self, app: Any = None) -> AsyncIterator[None]:
        """Ends every session on exit. Part of the router: an application that includes it needs no more."""
        try:
            yield
        finally:
            await self.sessions.shutdown()
            self.http_sessions.forget()

    @property
    def router(self) -> APIRouter:
        """A router with every route of simulation mode, for `app.include_router`."""
        return build_router(self, ServerMode.SIMULATION)

    def register_routes(self, app: FastAPI, mode: ServerMode | str = ServerMode.SIMULATION) -> None:
        """Add the routes to `app`; in production mode without reset, step and state over HTTP."""
        app.include_router(build_router(self, parse_mode(mode)))

    def schema(self) -> dict[str, Any]:
        """What `/schema` answers."""
        if self._schema is None:
            reset = self.reset_observation_cls
            self._schema = SchemaResponse(
                action=json_schema_of(self.action_cls),
                observation=json_schema_of(self.observation_cls),
                state=json_schema_of(self.state_cls),
                reset_observation=None if reset is None else json_schema_of(reset),
            ).model_dump()
        return self._schema

    async def metadata(self) -> dict[str, Any]:
        """What `/metadata` answers. Builds an environment, once, only if the class itself cannot tell.

        Raises:
            RequestRefused: the environment failed.
        """
        async with self._metadata_lock:
            if self._metadata is None:
                try:
                    self._metadata = fields_of(await self._ask_for_metadata())
                except (EnvironmentFault, TypeError) as fault:
                    reply = failed(WSErrorCode.EXECUTION_ERROR, str(fault))
                    raise RequestRefused(reply.code, reply.message) from fault
            return self._metadata

    async def _ask_for_metadata(self) -> Any:
        cls: Any = self._factory.cls or self._factory
        if isinstance(cls, type):
            told: Any = getattr(cls, "get_metadata", Environment.get_metadata)
            if told is Environment.get_metadata:
                name = cls.__name__
                return EnvironmentMetadata(name=name, description=f"{name} environment", version="1.0.0")
            if getattr(told, "__self__", None) is cls:
                return told()
        host = EnvironmentHost(self._factory, SessionThread("openenv-metadata"), owns_thread=True)
        try:
            await host.build()
            return await host.metadata()
        finally:
            await host.close()


def _capacity(factory: EnvironmentFactory, given: int | None, settings: ServerSettings) -> int:
    chosen = given if given is not None else settings.max_sessions
    if chosen is not None:
        return chosen
    cls = factory.cls
    if factory.shared_instance or not getattr(cls, "SUPPORTS_CONCURRENT_SESSIONS", False):
        return 1
    default: Callable[[], int] | None = getattr(cls, "default_max_sessions", None)
    return max(1, default()) if default is not None else 1


def _check_concurrency(factory: EnvironmentFactory, max_sessions: int) -> None:
    if max_sessions == 1:
        return
    supported = getattr(factory.class_for_checks(), "SUPPORTS_CONCURRENT_SESSIONS", False)
    if factory.shared_instance or not supported:
        raise ConcurrencyConfigurationError(factory.name, max_sessions)


def _declared_state(cls: type | None) -> Any:
    declared = declared_types(cls, Environment) if cls is not None else ()
    return declared[2] if len(declared) == 3 and declared[2] is not None else State


def create_fastapi_app(  # noqa: PLR0917, the order that existing callers use
    env: Any,
    action_cls: Any,
    observation_cls: Any,
    max_concurrent_envs: int | None = None,
    concurrency_config: ConcurrencyConfig | None = None,
    env_name: str | None = None,
    state_cls: Any = State,
    *,
    mode: ServerMode | str | None = None,
    reset_observation_cls: Any = None,
    lifespan: Lifespan | None = None,
    max_step_s: float | None = None,
    allowed_origins: Iterable[str] | None = None,
    http_idle_s: float | None = HTTP_IDLE_S,
) -> FastAPI:
    """The application that serves `env`; `app.state.openenv` is its HTTPEnvServer.

    Arguments are those of HTTPEnvServer, and:
        mode: `simulation` or `production`. None: `OPENENV_MODE`, or else simulation.
        lifespan: An async context manager of the application, entered before the first session and left after
            the last one has ended: the place to start and stop what sessions share.
    """
    server = HTTPEnvServer(
        env,
        action_cls,
        observation_cls,
        max_concurrent_envs,
        concurrency_config,
        env_name,
        state_cls,
        reset_observation_cls=reset_observation_cls,
        max_step_s=max_step_s,
        allowed_origins=allowed_origins,
        http_idle_s=http_idle_s,
    )
    app = FastAPI(
        title="OpenEnv Environment HTTP API",
        version="1.0.0",
        description=f"Episodes of {server.env_name} over HTTP and WebSocket.",
        lifespan=lifespan,
    )
    chosen = mode or ServerSettings.from_environ(os.environ).mode or ServerMode.SIMULATION
    server.register_routes(app, chosen)
    app.state.openenv = server
    return app


def create_app(  # noqa: PLR0917, the order that existing callers use
    env: Any,
    action_cls: Any,
    observation_cls: Any,
    env_name: str | None = None,
    max_concurrent_envs: int | None = None,
    concurrency_config: ConcurrencyConfig | None = None,
    *,
    state_cls: Any = State,
    mode: ServerMode | str | None = None,
    reset_observation_cls: Any = None,
    lifespan: Lifespan | None = None,
    max_step_s: float | None = None,
    allowed_origins: Iterable[str] | None = None,
    http_idle_s: float | None = HTTP_IDLE_S,
) -> FastAPI:
    """As `create_fastapi_app`, in the order of arguments that environments use."""
    return create_fastapi_app(
        env,
        action_cls,
        observation_cls,
        max_concurrent_envs,
        concurrency_config,
        env_name,
        state_cls,
        mode=mode,
        reset_observation_cls=reset_observation_cls,
        lifespan=lifespan,
        max_step_s=max_step_s,
        allowed_origins=allowed_origins,
        http_idle_s=http_idle_s,
    )
