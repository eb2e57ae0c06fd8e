"""One WebSocket connection, which is one session: a request goes out, its reply comes back.

Frames carry no ids, so a reply belongs to a request only by its place. Whatever breaks that order (a
timeout, a cancelled call, an unexpected frame) therefore ends the connection: a late reply must have
nowhere to arrive.
"""

import asyncio
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed, WebSocketException

from openenv.core import _json
from openenv.core._limits import MAX_MESSAGE_MB, PING_INTERVAL_S, PING_TIMEOUT_S
from openenv.core.errors import ConnectFailed, ProtocolError, ServerError, SessionLost, StepTimeout

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

TERMINAL_CODES = frozenset({"CAPACITY_REACHED", "FACTORY_ERROR", "SESSION_ERROR"})
CLOSE_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class ChannelOptions:
    """How to connect. Times in seconds."""

    connect_timeout_s: float = 10.0
    max_message_mb: float = MAX_MESSAGE_MB
    ping_interval_s: float | None = PING_INTERVAL_S
    ping_timeout_s: float | None = PING_TIMEOUT_S
    headers: Mapping[str, str] | None = None


class Channel:
    """A connection to `/ws`. `lost` is None while it can be used, then why it cannot."""

    def __init__(self, socket: "ClientConnection") -> None:
        self._socket = socket
        self.loop = asyncio.get_running_loop()
        self.lost: str | None = None

    @classmethod
    async def open(cls, url: str, options: ChannelOptions) -> "Channel":
        """Connect to the WebSocket at `url`.

        Raises:
            ConnectFailed: it cannot be reached in time, or refuses.
        """
        from websockets.asyncio.client import connect

        try:
            socket = await connect(
                url,
                compression=None,
                open_timeout=options.connect_timeout_s,
                ping_interval=options.ping_interval_s,
                ping_timeout=options.ping_timeout_s,
                close_timeout=CLOSE_TIMEOUT_S,
                max_size=int(options.max_message_mb * 1024 * 1024),
                additional_headers=options.headers,
                proxy=None if _is_loopback(url) else True,
            )
        except (OSError, WebSocketException, ValueError) as error:
            why = str(error) or type(error).__name__
            raise ConnectFailed(f"Failed to connect to {url}: {why}") from error
        return cls(socket)

    async def exchange(self, message: Mapping[str, Any], expected: str, timeout_s: float | None) -> dict[str, Any]:
        """The `data` of the `expected` reply to `message`. One exchange at a time.

        Raises:
            TypeError: the message cannot be written as JSON; nothing was sent.
            ServerError: the server answered with an error.
            StepTimeout, SessionLost, ProtocolError: no usable reply; the connection is lost.
        """
        text = _json.dumps(message)
        try:
            async with asyncio.timeout(timeout_s):
                frame = _parsed(await self._round_trip(text))
        except TimeoutError as error:
            self.drop(f"no reply within {timeout_s:g} s")
            raise StepTimeout(f"no reply within {timeout_s:g} s; the connection was dropped") from error
        except ConnectionClosed as error:
            self.drop(f"{type(error).__name__}: {error}")
            raise SessionLost(f"the connection was lost: {self.lost}") from error
        except BaseException as error:
            self.drop(f"a call was given up: {type(error).__name__}")
            raise
        return self._data(frame, expected)

    async def close(self) -> None:
        """Say goodbye and disconnect; a call in flight gets SessionLost."""
        self.lost = self.lost or "disconnected"
        await self._socket.close()

    def drop(self, reason: str) -> None:
        """Disconnect at once."""
        self.lost = self.lost or reason
        self._socket.transport.abort()

    async def _round_trip(self, text: bytes) -> bytes:
        try:
            await self._socket.send(text, text=True)
        except ConnectionClosed:
            # A server that is full or ends the session says so before it closes: that frame may be waiting.
            reply = await self._socket.recv(decode=False)
            if _parsed(reply)["type"] != "error":
                raise
            return reply
        return await self._socket.recv(decode=False)

    def _data(self, frame: dict[str, Any], expected: str) -> dict[str, Any]:
        data = frame.get("data")
        if isinstance(data, dict) and frame["type"] == expected:
            return data
        if isinstance(data, dict) and frame["type"] == "error":
            error = ServerError.from_frame(data)
            if error.code in TERMINAL_CODES:
                self.drop(str(error))
            raise error
        self.drop("the server sent an unexpected frame")
        raise ProtocolError(f"expected a frame of type '{expected}', got '{frame['type']}'")


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        frame = _json.loads(raw)
    except ValueError as error:
        raise ProtocolError(f"the server sent something that is not JSON: {error}") from error
    if not isinstance(frame, dict) or not isinstance(frame.get("type"), str):
        raise ProtocolError("the server sent a frame without a type")
    return frame


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
