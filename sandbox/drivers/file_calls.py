"""File calls as the host makes them: the warden opens the file, with the guest's rights; the host gets bytes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from sandbox.errors import FileError, ProtocolError, SandboxDied
from sandbox.guest import frames
from sandbox.result import FileEntry
from sandbox.wire import PacketChannel, decode, whole


class FileCalls:
    """One call at a time over the warden's channel. A call that is given up kills the sandbox, by `kill`: the rest
    of its answer would be taken for that of the next.
    """

    def __init__(self, control: PacketChannel, kill: Callable[[str], None]) -> None:
        self._control = control
        self._kill = kill
        self._answers: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()

    def on_answer(self, kind: int, body: bytes) -> None:
        """A packet of an answer has arrived."""
        self._answers.put_nowait((kind, body))

    def on_gone(self) -> None:
        """There will be no more answers."""
        self._answers.put_nowait(None)

    async def write(self, path: str, data: bytes, mode: int) -> None:
        """Make or replace a regular file. Raises `FileError`."""
        self._ask(frames.FILE_WRITE, {"path": path, "mode": mode})
        for start in range(0, len(data), frames.FILE_CHUNK_BYTES):
            self._control.send(bytes([frames.FILE_DATA]) + data[start : start + frames.FILE_CHUNK_BYTES])
            await self._control.drained()
        self._control.send(bytes([frames.FILE_END]))
        await self._next()

    async def read(self, path: str, limit_bytes: int) -> bytes:
        """The content of a regular file. Raises `FileError`."""
        self._ask(frames.FILE_READ, {"path": path, "limit_bytes": limit_bytes})
        data = bytearray()
        while (chunk := await self._next()) is not None:
            if isinstance(chunk, bytes):
                data += chunk
                if len(data) > limit_bytes + frames.FILE_CHUNK_BYTES:
                    raise ProtocolError("more of a file arrived than was asked for")
        return bytes(data[:limit_bytes])

    async def entries(self, path: str) -> list[FileEntry]:
        """What a directory holds. Raises `FileError`."""
        self._ask(frames.FILE_LIST, {"path": path})
        found: list[FileEntry] = []
        while (answer := await self._next()) is not None:
            if isinstance(answer, dict):
                found.append(FileEntry(**answer))
        return found

    def _ask(self, kind: int, body: dict[str, Any]) -> None:
        self._control.send(bytes([kind]) + frames.dump(body))

    async def _next(self) -> bytes | dict[str, Any] | None:
        """A chunk of a file, an entry of a directory, or None at the end."""
        try:
            item = await self._answers.get()
        except BaseException:
            self._kill("a file call was given up")
            raise
        if item is None:
            self._answers.put_nowait(None)
            raise SandboxDied("the sandbox ended during a file call")
        kind, body = item
        if kind == frames.FILE_DATA:
            return body
        answer = decode(body)
        if "errno" in answer:
            code = whole(answer, "errno", most=4095)
            raise FileError(code, os.strerror(code), str(answer.get("path")))
        entry = answer.get("entry")
        return entry if isinstance(entry, dict) else None
