"""Who holds an environment: the table of sessions, its capacity, and the end of every session.

A session ends once, for one reason, and three things follow: it leaves the table at once (its slot is
free), no request is answered from it any more, and its environment is closed in the background after the
call that may still be running. A blocking call cannot be stopped, so its environment is closed when the
call returns.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from openenv.core.env_server.exceptions import EnvironmentFactoryError, SessionCapacityError
from openenv.core.env_server.hosting import EnvironmentFactory, EnvironmentFault, EnvironmentHost
from openenv.core.env_server.types import SessionInfo
from openenv.core.env_server.worker import SessionThread

logger = logging.getLogger(__name__)

CLOSE_WAIT_S = 10.0
"""How long a newcomer waits for the previous environment of a class that allows one at a time to close."""

SHUTDOWN_WAIT_S = 5.0
"""How long a server that stops waits for its environments to close."""


@dataclass(frozen=True, kw_only=True)
class SessionLimits:
    """Capacity, and after how many idle seconds a session of either transport ends (None: never)."""

    max_sessions: int = 1
    exclusive: bool = True
    idle_s: float | None = None
    http_idle_s: float | None = 3600.0
    single_thread: bool = False

    def idle_limit_s(self, transport: str) -> float | None:
        """The limit for a session of this transport."""
        if transport != "http" or self.idle_s is not None:
            return self.idle_s
        return self.http_idle_s


class Session:
    """One environment in use. `ended` is None while it lives, then the reason of its end."""

    def __init__(self, table: "SessionTable", transport: str, host: EnvironmentHost) -> None:
        self.id = uuid.uuid4().hex
        self.transport = transport
        self.host = host
        self.created_at = time.time()
        self.last_activity = time.monotonic()
        self.step_count = 0
        self.episode_started = False
        self.ended: str | None = None
        self.on_end: Callable[[], None] | None = None
        self.built: asyncio.Future[None] = asyncio.ensure_future(host.build())
        self._table = table
        self._requests = 0

    @property
    def busy(self) -> bool:
        """Whether a request is being answered or a call still runs."""
        return self._requests > 0 or self.host.busy

    def enter(self) -> None:
        """A request begins."""
        self._requests += 1

    def leave(self) -> None:
        """A request ends."""
        self._requests -= 1
        self.last_activity = time.monotonic()

    def end(self, reason: str) -> None:
        """End the session for `reason`. The first reason stands."""
        self._table.end(self, reason)

    def info(self) -> SessionInfo:
        """What the server tells about this session."""
        return SessionInfo(
            session_id=self.id,
            created_at=self.created_at,
            last_activity_at=time.time() - (time.monotonic() - self.last_activity),
            step_count=self.step_count,
            environment_type=self._table.factory.name,
        )


class SessionTable:
    """All sessions of one server. Belongs to the event loop that uses it."""

    def __init__(self, factory: EnvironmentFactory, limits: SessionLimits) -> None:
        self.factory = factory
        self.limits = limits
        self._sessions: dict[str, Session] = {}
        self._finishing: dict[asyncio.Task[None], Session] = {}
        self._stuck: set[Session] = set()
        self._reaper: asyncio.Task[None] | None = None
        self._shared_thread = SessionThread("openenv-env-shared") if limits.single_thread else None

    @property
    def sessions(self) -> dict[str, Session]:
        """The live sessions by id, those that are being built included."""
        return self._sessions

    async def open(self, transport: str) -> Session:
        """A new session with an environment of its own.

        Raises:
            SessionCapacityError: no slot is free.
            EnvironmentFactoryError: the environment could not be made.
        """
        if self.limits.exclusive:
            await self._wait_for_closing()
        if len(self._sessions) >= self.limits.max_sessions:
            raise SessionCapacityError(len(self._sessions), self.limits.max_sessions)
        session = Session(self, transport, self._new_host())
        self._sessions[session.id] = session
        self._start_reaper()
        session.enter()
        try:
            # Building goes on when the caller is gone: what it makes must still be closed.
            await asyncio.shield(session.built)
        except EnvironmentFault as fault:
            self.end(session, "its environment could not be made")
            logger.error("environment factory %s failed", self.factory.name, exc_info=fault.error)
            raise EnvironmentFactoryError(self.factory.name) from fault
        except asyncio.CancelledError:
            self.end(session, "its client went away")
            raise
        finally:
            session.leave()
        return session

    def end(self, session: Session, reason: str) -> None:
        """Take the session out of the table and close its environment in the background."""
        if session.ended is not None:
            return
        session.ended = reason
        self._sessions.pop(session.id, None)
        task = asyncio.get_running_loop().create_task(self._finish(session))
        self._finishing[task] = session
        task.add_done_callback(self._finishing.pop)
        if session.host.blocked_thread:
            self._stuck.add(session)
        if session.on_end is not None:
            session.on_end()

    async def shutdown(self, timeout_s: float = SHUTDOWN_WAIT_S) -> None:
        """End every session and wait up to `timeout_s` for all environments to close."""
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
        for session in list(self._sessions.values()):
            self.end(session, "the server is shutting down")
        if self._finishing:
            await asyncio.wait(list(self._finishing), timeout=timeout_s)
        for session in self._finishing.values():
            logger.warning("session %s did not close within %g s", session.id, timeout_s)
        if self._shared_thread is not None:
            self._shared_thread.stop()

    def _new_host(self) -> EnvironmentHost:
        thread = self._shared_thread or SessionThread("openenv-env")
        return EnvironmentHost(self.factory, thread, owns_thread=thread is not self._shared_thread)

    async def _wait_for_closing(self) -> None:
        # Not for environments whose thread is in a call that nothing can stop.
        closing = [task for task, session in self._finishing.items() if session not in self._stuck]
        if closing:
            await asyncio.wait(closing, timeout=CLOSE_WAIT_S)

    async def _finish(self, session: Session) -> None:
        try:
            await asyncio.wait({session.built})
            await session.host.close()
        except EnvironmentFault as fault:
            logger.error("session %s did not close cleanly", session.id, exc_info=fault.error)
        finally:
            self._stuck.discard(session)

    def _start_reaper(self) -> None:
        limits = [self.limits.idle_limit_s(transport) for transport in ("http", "websocket")]
        shortest = min((limit for limit in limits if limit is not None), default=None)
        if shortest is None:
            return
        loop = asyncio.get_running_loop()
        if self._reaper is None or self._reaper.done() or self._reaper.get_loop() is not loop:
            self._reaper = loop.create_task(self._reap(min(max(shortest / 4, 0.05), 30.0)))

    async def _reap(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            for session in list(self._sessions.values()):
                limit_s = self.limits.idle_limit_s(session.transport)
                idle_s = time.monotonic() - session.last_activity
                if limit_s is not None and idle_s > limit_s and not session.busy:
                    session.end(f"idle for more than {limit_s:g} s")
