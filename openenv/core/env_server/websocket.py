"""The WebSocket transport: a connection is a session, a text frame a request, replies keep the order.

A connection is two tasks. The reader takes frames off the wire all the time, also while a step runs: only
so is a vanished client noticed (and are its pings answered, since servers stop reading when nobody
receives). The worker opens the session and answers frame after frame. Whichever ends first ends the
connection.
"""

import asyncio
import collections
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pydantic import BaseModel, ValidationError

from openenv.core import _json
from openenv.core._limits import MAX_MESSAGE_BYTES
from openenv.core.env_server.dispatch import (
    Dispatcher,
    Failed,
    GetState,
    Observed,
    Reply,
    Request,
    Reset,
    Step,
    failed,
    invalid,
)
from openenv.core.env_server.exceptions import (
    EnvironmentFactoryError,
    RequestRefused,
    SessionCapacityError,
)
from openenv.core.env_server.origins import OriginPolicy
from openenv.core.env_server.sessions import Session, SessionTable
from openenv.core.env_server.types import (
    WSCloseMessage,
    WSErrorCode,
    WSResetMessage,
    WSStateMessage,
    WSStepMessage,
)

logger = logging.getLogger(__name__)

MAX_PENDING_FRAMES = 1024
UNWIND_WAIT_S = 10.0

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]


class Goodbye:
    """The client's request to end the session; it has no reply."""


_GOODBYE = Goodbye()

_FRAMES: dict[str, tuple[type[BaseModel], Callable[[Any], Request | Goodbye]]] = {
    "reset": (WSResetMessage, lambda message: Reset(message.data)),
    "step": (WSStepMessage, lambda message: Step(message.data)),
    "state": (WSStateMessage, lambda message: GetState()),
    "close": (WSCloseMessage, lambda message: _GOODBYE),
}


def parse_frame(text: str) -> Request | Goodbye:
    """The request that a text frame makes.

    Raises:
        RequestRefused: it makes none.
    """
    try:
        message = _json.loads(text)
    except ValueError as error:
        raise RequestRefused(WSErrorCode.INVALID_JSON, f"Invalid JSON: {error}") from error
    if not isinstance(message, dict):
        kind = type(message).__name__
        raise RequestRefused(WSErrorCode.VALIDATION_ERROR, f"Invalid message: expected a JSON object, got {kind}")
    wanted = message.get("type")
    if not isinstance(wanted, str) or wanted not in _FRAMES:
        raise RequestRefused(WSErrorCode.UNKNOWN_TYPE, f"Unknown message type: {str(wanted)[:100]}")
    model, make = _FRAMES[wanted]
    try:
        return make(model.model_validate(message))
    except ValidationError as error:
        raise invalid("message", error) from error


def frame_of(reply: Reply) -> str:
    """The text frame that carries `reply`."""
    if isinstance(reply, Failed):
        data = {"message": reply.message, "code": reply.code.value, **reply.details}
        return _json.dumps({"type": "error", "data": data}).decode()
    kind = "observation" if isinstance(reply, Observed) else "state"
    try:
        return _json.dumps({"type": kind, "data": reply.payload}).decode()
    except TypeError as error:
        return frame_of(failed(WSErrorCode.EXECUTION_ERROR, str(error)))


class WebSocketEndpoint:
    """The ASGI application behind `/ws`."""

    def __init__(self, sessions: SessionTable, dispatcher: Dispatcher, origins: OriginPolicy) -> None:
        self.sessions = sessions
        self.dispatcher = dispatcher
        self.origins = origins

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection."""
        await receive()  # websocket.connect
        if not self.origins.allows(scope["headers"]):
            logger.warning("refused a WebSocket from a page of another origin")
            await send({"type": "websocket.close", "code": 1008})
            return
        await send({"type": "websocket.accept"})
        await _Connection(self, receive, send).run()


class _Inbox:
    """Frames between reader and worker, bounded by count and bytes; None only wakes the worker."""

    def __init__(self) -> None:
        self._frames: collections.deque[Event | None] = collections.deque()
        self._bytes = 0
        self._arrival: asyncio.Future[None] | None = None
        self._room = asyncio.Event()

    async def put(self, event: Event) -> None:
        self._bytes += _size(event)
        self._push(event)
        while len(self._frames) > MAX_PENDING_FRAMES or self._bytes > MAX_MESSAGE_BYTES:
            if len(self._frames) <= 1:
                return
            self._room.clear()
            await self._room.wait()

    def wake(self) -> None:
        self._push(None)

    def _push(self, event: Event | None) -> None:
        self._frames.append(event)
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    async def get(self) -> Event | None:
        while not self._frames:
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        event = self._frames.popleft()
        if event is not None:
            self._bytes -= _size(event)
        self._room.set()
        return event


def _size(event: Event) -> int:
    return len(event.get("text") or event.get("bytes") or b"")


class _Connection:
    def __init__(self, endpoint: WebSocketEndpoint, receive: Receive, send: Send) -> None:
        self._endpoint = endpoint
        self._receive = receive
        self._send = send
        self._inbox = _Inbox()
        self._session: Session | None = None

    async def run(self) -> None:
        reader = asyncio.ensure_future(self._read())
        worker = asyncio.ensure_future(self._work())
        try:
            await asyncio.wait({reader, worker}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if self._session is not None:
                # Before the worker has unwound: the slot is free at once, however long a step takes to stop.
                self._session.end("its connection is gone")
            reader.cancel()
            worker.cancel()
            await asyncio.wait({reader, worker}, timeout=UNWIND_WAIT_S)
        for task in (reader, worker):
            if task.done() and not task.cancelled():
                task.result()

    async def _read(self) -> None:
        while (event := await self._receive())["type"] != "websocket.disconnect":
            await self._inbox.put(event)

    async def _work(self) -> None:
        try:
            refusal = await self._open()
            if refusal is not None:
                await self._send_frame(refusal)
            else:
                await self._converse()
            await self._send({"type": "websocket.close", "code": 1000})
        except OSError:  # how ASGI servers say that the client is gone
            return

    async def _open(self) -> Failed | None:
        try:
            session = await self._endpoint.sessions.open("websocket")
        except SessionCapacityError as error:
            return failed(
                WSErrorCode.CAPACITY_REACHED,
                str(error),
                active_sessions=error.active_sessions,
                max_sessions=error.max_sessions,
            )
        except EnvironmentFactoryError as error:
            return failed(WSErrorCode.FACTORY_ERROR, str(error), factory_name=error.factory_name)
        self._session = session
        session.on_end = self._inbox.wake
        return None

    async def _converse(self) -> None:
        assert self._session is not None
        while True:
            reply = await self._answer(self._session, await self._inbox.get())
            if reply is None:
                return
            await self._send_frame(reply)
            if isinstance(reply, Failed) and reply.terminal:
                return

    async def _answer(self, session: Session, event: Event | None) -> Reply | None:
        if event is None:
            return failed(WSErrorCode.SESSION_ERROR, f"Session ended: {session.ended}")
        text = event.get("text")
        if text is None:
            return failed(WSErrorCode.INVALID_JSON, "Invalid JSON: binary frame; send JSON as a text frame")
        try:
            request = parse_frame(text)
        except RequestRefused as refused:
            return Failed.of(refused)
        if isinstance(request, Goodbye):
            return None
        return await self._endpoint.dispatcher.handle(session, request)

    async def _send_frame(self, reply: Reply) -> None:
        await self._send({"type": "websocket.send", "text": frame_of(reply)})
