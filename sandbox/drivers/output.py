"""What a run prints: two pipes, read without ever waiting for them to end, and kept up to a limit."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from collections.abc import Callable

_CHUNK_BYTES = 64 * 1024
_PATIENCE_S = 0.002  # a run that is over by then costs one read and no wake-up
_FIONREAD = 0x541B
_FLOOD_BYTES = 4 * 1024 * 1024  # beyond the limit by this much, the sandbox throws away the rest itself


def open_pipe() -> tuple[int, int]:
    """Read and write end of a pipe that a guest, who is another user, may open by name: `echo x > /dev/stderr`."""
    read, write = os.pipe2(os.O_CLOEXEC)
    os.fchmod(write, 0o622)
    return read, write


class Stream:
    """The read end of one pipe."""

    def __init__(self, name: str, descriptor: int, limit_bytes: int) -> None:
        self.name = name
        self.descriptor = descriptor
        self._limit_bytes = limit_bytes
        self._kept = bytearray()
        self.dropped_bytes = 0
        os.set_blocking(descriptor, False)

    def read(self) -> int:
        """Take a piece of what is there; the number of bytes."""
        try:
            data = os.read(self.descriptor, _CHUNK_BYTES)
        except BlockingIOError:
            return 0
        room = max(0, self._limit_bytes - len(self._kept))
        self._kept += data[:room]
        self.dropped_bytes += max(0, len(data) - room)
        return len(data)

    def read_rest(self) -> None:
        """Take what is there now, and not what somebody who goes on printing adds meanwhile."""
        if self.descriptor < 0:
            return
        rest = int.from_bytes(fcntl.ioctl(self.descriptor, _FIONREAD, bytes(4)), sys.byteorder)
        while rest > 0 and (count := self.read()):
            rest -= count

    def take(self) -> tuple[str, int]:
        """What was kept, as text, and how many bytes were dropped; then start anew."""
        text, dropped = self._kept.decode("utf-8", "replace"), self.dropped_bytes
        self._kept = bytearray()
        self.dropped_bytes = 0
        return text, dropped


class Output:
    """Both streams of one run at a time."""

    def __init__(self, stdout: int, stderr: int, *, limit_bytes: int) -> None:
        self.stdout = Stream("stdout", stdout, limit_bytes)
        self.stderr = Stream("stderr", stderr, limit_bytes)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._watching: list[int] = []
        self._on_flood: Callable[[Stream], None] | None = None

    def start(self, on_flood: Callable[[Stream], None]) -> None:
        """Begin a run. `on_flood` is called, and reading stops, when far more than the limit is printed to a stream."""
        self._on_flood = on_flood
        self._timer = self._loop.call_later(_PATIENCE_S, self._watch)

    def finish(self) -> None:
        """Take what is still in the pipes. Everything a process has written before its frame is there."""
        self.pause()
        self._on_flood = None
        for stream in (self.stdout, self.stderr):
            stream.read_rest()

    def pause(self) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for descriptor in self._watching:
            self._loop.remove_reader(descriptor)
        self._watching.clear()

    def close(self) -> None:
        """Close both pipes."""
        self.pause()
        for stream in (self.stdout, self.stderr):
            if stream.descriptor >= 0:
                os.close(stream.descriptor)
                stream.descriptor = -1

    def _watch(self) -> None:
        self._timer = None
        for stream in (self.stdout, self.stderr):
            self._loop.add_reader(stream.descriptor, self._readable, stream)
            self._watching.append(stream.descriptor)

    def _readable(self, stream: Stream) -> None:
        count = stream.read()
        flooded = stream.dropped_bytes > _FLOOD_BYTES
        if flooded or count == 0:  # nobody is left who could write, or somebody else reads from here on
            self._loop.remove_reader(stream.descriptor)
            self._watching.remove(stream.descriptor)
        if flooded and self._on_flood is not None:
            self._on_flood(stream)
