"""Frames between the host and what runs inside.

The interpreter speaks over a stream socket: one byte of kind, four bytes of length (little endian), the body.
The warden speaks over a sequential-packet socket: one byte of kind, the body; a packet is a frame.
Bodies are JSON objects in UTF-8, except where a kind says "raw". Lone surrogates pass as they are.
"""

from __future__ import annotations

import json
import os
import select
import struct
from typing import Any

# Host to interpreter.
CONFIGURE, RUN, RETURN = 1, 2, 3
# Interpreter to host.
READY, DONE, CALL = 16, 17, 18

# Host to warden.
SPAWN, INTERRUPT, SWEEP, KILL_ALL = 32, 33, 34, 35
COMMAND = 36
FILE_WRITE, FILE_DATA, FILE_END, FILE_READ, FILE_LIST = 40, 41, 42, 43, 44  # FILE_DATA is raw
DRAIN, DRAIN_STOP = 48, 49
# Warden to host.
INTERPRETER_EXITED, COMMAND_EXITED, FILE_ANSWER, SWEPT, DRAINED, OVER_LIMIT = 64, 66, 67, 68, 69, 70

HEADER = struct.Struct("<BI")
PACKET_BYTES = 64 * 1024
FILE_CHUNK_BYTES = PACKET_BYTES - 1

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_decode = json.JSONDecoder().decode


def dump(body: dict[str, Any]) -> bytes:
    """Encode a body."""
    return _encode(body).encode("utf-8", "surrogatepass")


def load(body: bytes) -> dict[str, Any]:
    """Decode a body that the trusted side made."""
    decoded: dict[str, Any] = _decode(body.decode("utf-8", "surrogatepass"))
    return decoded


class Stream:
    """Frames over a blocking stream descriptor, as the interpreter uses it.

    Guest code shares this process and may replace any function of any module: what is needed later is bound here.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._read = os.read
        self._write = os.write
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def wait(self) -> None:
        """Wait until there is something to receive."""
        self._poll.poll()

    def receive(self) -> tuple[int, bytes] | None:
        """The next frame, or None at the end of the stream."""
        header = self._exactly(HEADER.size)
        if header is None:
            return None
        kind, length = HEADER.unpack(header)
        body = self._exactly(length)
        return None if body is None else (kind, body)

    def send(self, kind: int, body: bytes) -> None:
        """Send one frame."""
        rest = memoryview(HEADER.pack(kind, len(body)) + body)
        while rest:
            rest = rest[self._write(self.descriptor, rest) :]

    def _exactly(self, count: int) -> bytes | None:
        data = self._read(self.descriptor, count) if count else b""
        if len(data) == count:
            return data
        parts = [data]
        missing = count - len(data)
        while missing:
            if not parts[-1]:
                return None
            parts.append(self._read(self.descriptor, min(missing, 1 << 20)))
            missing -= len(parts[-1])
        return b"".join(parts)
