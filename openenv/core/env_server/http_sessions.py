"""Sessions of HTTP callers, by the name they send in a header; without one, all share the default."""

import asyncio
import re
from dataclasses import dataclass, field

from openenv.core._limits import SESSION_HEADER
from openenv.core.env_server.dispatch import Dispatcher, Failed, Reply, Request, Reset, failed
from openenv.core.env_server.exceptions import (
    EnvironmentFactoryError,
    RequestRefused,
    SessionCapacityError,
)
from openenv.core.env_server.sessions import Session, SessionTable
from openenv.core.env_server.types import WSErrorCode

DEFAULT = ""
MAX_REMEMBERED = 10_000

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


@dataclass
class _Slot:
    """A name's session. It outlives the session, so that a late step is told that its state is gone."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    session: Session | None = None
    waiting: int = 0


def checked_name(header: str | None) -> str:
    """The session name in a header's value, or the default's.

    Raises:
        RequestRefused: the value cannot name a session.
    """
    if header is None:
        return DEFAULT
    if not _NAME.fullmatch(header):
        raise RequestRefused(
            WSErrorCode.VALIDATION_ERROR,
            f"Invalid {SESSION_HEADER} header: use 1 to 128 letters, digits, '_', '.' and '-'",
        )
    return header


class HttpSessions:
    """Finds or opens the session of each request and keeps the calls of one session one after another."""

    def __init__(self, sessions: SessionTable, dispatcher: Dispatcher) -> None:
        self._sessions = sessions
        self._dispatcher = dispatcher
        self._slots: dict[str, _Slot] = {}

    async def handle(self, name: str, request: Request) -> Reply:
        """The reply to a request of the session of this name."""
        slot = self._slots.setdefault(name, _Slot())
        slot.waiting += 1
        try:
            async with slot.lock:
                session = await self._session_of(name, slot, starts_over=isinstance(request, Reset))
                return await self._dispatcher.handle(session, request)
        except RequestRefused as refused:
            return Failed.of(refused)
        except SessionCapacityError as error:
            return failed(
                WSErrorCode.CAPACITY_REACHED,
                str(error),
                active_sessions=error.active_sessions,
                max_sessions=error.max_sessions,
            )
        except EnvironmentFactoryError as error:
            return failed(WSErrorCode.FACTORY_ERROR, str(error), factory_name=error.factory_name)
        finally:
            slot.waiting -= 1
            self._forget_some(name, slot)

    def end(self, name: str) -> bool:
        """End the session of this name, also in the middle of a call. Returns whether there was one."""
        slot = self._slots.get(name)
        if slot is None or slot.session is None or slot.session.ended is not None:
            return False
        slot.session.end("ended by its client")
        return True

    def forget(self) -> None:
        """Forget every name, as a server that starts anew would have."""
        self._slots.clear()

    async def _session_of(self, name: str, slot: _Slot, *, starts_over: bool) -> Session:
        session = slot.session
        if session is not None and session.ended is None:
            return session
        if session is not None and not starts_over:
            shown = f"session '{name}'" if name else "the default session"
            raise RequestRefused(
                WSErrorCode.SESSION_ERROR,
                f"{shown} has ended ({session.ended}), its state is gone; POST /reset starts a new episode",
            )
        slot.session = await self._sessions.open("http")
        return slot.session

    def _forget_some(self, name: str, slot: _Slot) -> None:
        if slot.session is None and not slot.waiting:
            self._slots.pop(name, None)
        if len(self._slots) > MAX_REMEMBERED:
            for old, other in self._slots.items():
                if not other.waiting and (other.session is None or other.session.ended is not None):
                    del self._slots[old]
                    return
