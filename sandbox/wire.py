"""The host's ends of a sandbox's sockets. Everything that arrives here is hostile until it has been checked.

Lengths are capped before anything is read, bodies are JSON and checked field by field, and whatever breaks a rule is a
`ProtocolError`, which ends that sandbox and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from sandbox.errors import ProtocolError
from sandbox.guest import frames

_READ_BYTES = 256 * 1024
_ENVELOPE_BYTES = 4096

Frame = Callable[[int, bytes], None]
Lost = Callable[[Exception | None], None]


def decode(body: bytes) -> dict[str, Any]:
    """A JSON object out of a hostile body. Text in it can be encoded: lone surrogates are replaced."""
    try:
        text = body.decode("utf-8", "replace")
        decoded = _parse(text)
        if "\\u" in text:
            decoded = json.loads(json.dumps(decoded, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a frame from inside is not JSON: {error}") from None
    if not isinstance(decoded, dict):
        raise ProtocolError("a frame from inside is not an object")
    return decoded


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not in JSON")


_parse = json.JSONDecoder(parse_constant=_no_number).decode


def whole(body: dict[str, Any], key: str, *, most: int = 1 << 62) -> int:
    """The whole number under `key`, 0 if it is missing."""
    value = body.get(key, 0)
    if type(value) is not int or not 0 <= value <= most:
        raise ProtocolError(f"{key!r} in a frame from inside is not a number from 0 to {most}")
    return value


class StreamChannel:
    """Frames to and from an interpreter. Calls `on_frame` for each, and `on_lost` once at the end."""

    def __init__(self, end: socket.socket, *, most_bytes: int, on_frame: Frame, on_lost: Lost) -> None:
        self._socket = end
        self._descriptor = end.fileno()
        self._most_bytes = most_bytes
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._unsent = bytearray()
        self._open = True
        end.setblocking(False)
        self._loop.add_reader(self._descriptor, self._readable)

    def send(self, kind: int, body: bytes) -> None:
        """Send one frame; what the socket does not take now is sent when it can."""
        data = frames.HEADER.pack(kind, len(body)) + body
        if not self._open:
            return
        if not self._unsent:
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._end(error)
                return
            if sent == len(data):
                return
            data = data[sent:]
            self._loop.add_writer(self._descriptor, self._writable)
        self._unsent += data

    @property
    def is_open(self) -> bool:
        """Whether neither side has hung up."""
        return self._open

    @property
    def unsent_bytes(self) -> int:
        """How much waits for the other side to read."""
        return len(self._unsent)

    def close(self) -> None:
        """Close the socket. Idempotent; `on_lost` is not called."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._descriptor)
            self._loop.remove_writer(self._descriptor)
            self._socket.close()

    def _writable(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error)
            return
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self._descriptor)

    def _readable(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error)
            return
        if not data:
            self._end(None)
            return
        self._received += data
        try:
            self._split()
        except ProtocolError as error:
            self._end(error)

    def _split(self) -> None:
        header = frames.HEADER.size
        while self._open and len(self._received) >= header:
            kind, length = frames.HEADER.unpack_from(self._received)
            if length > self._most_bytes + _ENVELOPE_BYTES:
                raise ProtocolError(f"a frame from inside claims {length} bytes")
            if len(self._received) < header + length:
                return
            body = bytes(self._received[header : header + length])
            del self._received[: header + length]
            self._on_frame(kind, body)

    def _end(self, error: Exception | None) -> None:
        if self._open:
            self.close()
            self._on_lost(error)


class PacketChannel:
    """Packets to and from a warden or a zygote; descriptors may come along."""

    def __init__(
        self, end: socket.socket, *, on_packet: Callable[[bytes, list[int]], None], on_lost: Lost, most_bytes: int
    ) -> None:
        self._socket = end
        self._descriptor = end.fileno()
        self._on_packet = on_packet
        self._on_lost = on_lost
        self._most_bytes = most_bytes
        self._loop = asyncio.get_running_loop()
        self._unsent: list[tuple[bytes, tuple[int, ...]]] = []
        self._open = True
        self._drained: asyncio.Event = asyncio.Event()
        self._drained.set()
        end.setblocking(False)
        self._loop.add_reader(self._descriptor, self._readable)

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send one packet, in order. Descriptors are duplicated if it has to wait; the caller may close its own."""
        if not self._open:
            return
        if not self._unsent:
            try:
                self._send_now(packet, descriptors)
            except BlockingIOError:
                pass
            except OSError as error:
                self._end(error)
                return
            else:
                return
            self._loop.add_writer(self._descriptor, self._writable)
        self._drained.clear()
        self._unsent.append((packet, tuple(map(os.dup, descriptors))))

    async def drained(self) -> None:
        """Wait until everything has been handed to the kernel: for senders of much."""
        await self._drained.wait()

    def close(self) -> None:
        """Close the socket. Idempotent; `on_lost` is not called."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._descriptor)
            self._loop.remove_writer(self._descriptor)
            self._socket.close()
            for _, descriptors in self._unsent:
                for descriptor in descriptors:
                    os.close(descriptor)
            self._unsent.clear()
            self._drained.set()

    def _send_now(self, packet: bytes, descriptors: Sequence[int]) -> None:
        if descriptors:
            socket.send_fds(self._socket, [packet], list(descriptors))
        else:
            self._socket.send(packet)

    def _writable(self) -> None:
        while self._unsent:
            packet, descriptors = self._unsent[0]
            try:
                self._send_now(packet, descriptors)
            except BlockingIOError:
                return
            except OSError as error:
                self._end(error)
                return
            for descriptor in descriptors:
                os.close(descriptor)
            del self._unsent[0]
        self._loop.remove_writer(self._descriptor)
        self._drained.set()

    def _readable(self) -> None:
        try:
            packet, descriptors, flags, _ = socket.recv_fds(self._socket, self._most_bytes, 1)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error)
            return
        if not packet:
            self._end(None)
            return
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                for descriptor in descriptors:
                    os.close(descriptor)
                raise ProtocolError("a packet from inside is too large")
            self._on_packet(packet, descriptors)
        except ProtocolError as error:
            self._end(error)

    def _end(self, error: Exception | None) -> None:
        if self._open:
            self.close()
            self._on_lost(error)
