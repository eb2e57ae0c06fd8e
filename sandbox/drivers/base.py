"""The contract of a driver: something that makes boxes, and a box that runs guest code.

A driver says in its docstring what it *covers* and what it *does not cover*. Nothing here raises for what the guest
does; `SandboxError` means that the box, or the machine, let us down.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sandbox.result import FileEntry, Result

HostFunction = Callable[..., Any | Awaitable[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What a box is told before its first run."""

    seed: int | None = None
    functions: Mapping[str, HostFunction] = field(default_factory=dict)


class Box(Protocol):
    """One isolated world: a workspace and an interpreter that keeps its state. One call at a time."""

    @property
    def alive(self) -> bool:
        """Whether calls can still succeed."""

    @property
    def ended_by_guest(self) -> bool:
        """Whether it is not alive because of what the guest did, which a result has said."""

    def setup(self, setup: Setup) -> None:
        """Prepare the interpreter; at most once, before the first run."""

    async def run_code(self, source: str, timeout_s: float) -> Result:
        """Run one step. A cancelled call kills the box."""

    async def run_command(
        self, arguments: Sequence[str], *, directory: str, environment: Mapping[str, str], timeout_s: float
    ) -> Result:
        """Run a program to its end. A cancelled call kills the box."""

    async def write_file(self, path: str, data: bytes, mode: int) -> None:
        """Make or replace a regular file, with its missing directories. Raises `FileError`."""

    async def read_file(self, path: str, limit_bytes: int) -> bytes:
        """The content of a regular file. Raises `FileError`, with EFBIG beyond the limit."""

    async def list_files(self, path: str) -> list[FileEntry]:
        """What a directory holds. Raises `FileError`."""

    def kill(self) -> None:
        """End every process of the box, now. Idempotent; does not wait."""

    async def close(self) -> None:
        """Kill, wait until nothing is left, and give back what the box held. Idempotent."""


class Driver(Protocol):
    """Makes boxes under one policy."""

    name: str

    async def start(self) -> None:
        """Get ready, or raise `UnsupportedError` naming what this machine lacks."""

    async def create(self) -> Box:
        """A fresh box, ready to run."""

    async def close(self) -> None:
        """End every box and leave nothing behind. Idempotent."""
