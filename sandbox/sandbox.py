"""The handle on one sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Self

from sandbox.drivers.base import Box, HostFunction, Setup
from sandbox.errors import PolicyError, SandboxClosed
from sandbox.policy import Policy
from sandbox.result import FileEntry, Result

if TYPE_CHECKING:
    from types import TracebackType

    from sandbox.blocking import BlockingSandbox
    from sandbox.pool import SandboxPool

__all__ = ["Sandbox"]


class Sandbox:
    """One isolated world: a workspace, and an interpreter that keeps its state from run to run.

    Made by `SandboxPool.sandbox`, or by `Sandbox.open` in a script. Calls run one after another. What guest code does
    is never an exception here; `SandboxError` is our own fault.
    """

    def __init__(
        self, pool: SandboxPool, box: Box, *, seed: int | None, functions: Mapping[str, HostFunction]
    ) -> None:
        self._pool = pool
        self._box = box
        self._setup = Setup(seed=seed, functions=functions)
        self._lock = asyncio.Lock()
        self._closed = False
        self._limits = pool.policy.limits
        self._opened_s = self._used_s = time.monotonic()

    @staticmethod
    def open(policy: Policy | None = None) -> BlockingSandbox:
        """The blocking form, for scripts: `with Sandbox.open() as box: box.run_code("...")`."""
        from sandbox.blocking import BlockingSandbox

        return BlockingSandbox(policy)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    async def run_code(self, source: str, *, timeout_s: float | None = None) -> Result:
        """Run Python in the interpreter of this sandbox, and say what happened.

        `timeout_s` may only shorten `limits.wall_s`. Raises `PolicyError` for a wrong argument, `SandboxClosed` after
        `close`, `SandboxDied` if the sandbox ended by no doing of the guest.
        """
        if not isinstance(source, str):
            raise PolicyError(f"source must be a string, not {type(source).__name__}")
        size = len(source) if source.isascii() else len(source.encode("utf-8", "surrogatepass"))
        if size > self._limits.source_bytes:
            raise PolicyError(f"the source has {size} bytes; limits.source_bytes allows {self._limits.source_bytes}")
        seconds = self._seconds(timeout_s)
        async with self._lock:
            with self._use():
                return await self._box.run_code(source, seconds)

    async def run_command(
        self,
        arguments: Sequence[str],
        *,
        cwd: str = ".",
        environment: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Result:
        """Run a program inside, without a shell, in a directory of the workspace.

        A program that does not exist ends with exit code 127, as in a shell. `environment` adds to the guest's own.
        """
        if isinstance(arguments, str) or not arguments or not all(isinstance(word, str) for word in arguments):
            raise PolicyError("arguments must be a list of strings that begins with the program's name")
        if any("\0" in word for word in (*arguments, cwd, *(environment or {}), *(environment or {}).values())):
            raise PolicyError("arguments, cwd and environment must not contain NUL")
        seconds = self._seconds(timeout_s)
        async with self._lock:
            with self._use():
                return await self._box.run_command(
                    arguments, directory=_under_workspace(cwd), environment=dict(environment or {}), timeout_s=seconds
                )

    async def write_file(self, path: str, data: bytes | str, *, mode: int = 0o644) -> None:
        """Make or replace a file of the workspace; missing directories are made. Raises `FileError`."""
        raw = data.encode() if isinstance(data, str) else bytes(data)
        async with self._lock:
            with self._use():
                await self._box.write_file(path, raw, mode & 0o777)

    async def read_file(self, path: str, *, limit_bytes: int | None = None) -> bytes:
        """The content of a regular file of the workspace. Raises `FileError`: EFBIG beyond `limit_bytes`."""
        limit = self._limits.file_size_bytes if limit_bytes is None else limit_bytes
        async with self._lock:
            with self._use():
                return await self._box.read_file(path, limit)

    async def list_files(self, path: str = ".") -> list[FileEntry]:
        """What a directory of the workspace holds, sorted by name; links are not followed. Raises `FileError`."""
        async with self._lock:
            with self._use():
                return await self._box.list_files(path)

    async def reset(self, *, seed: int | None = None) -> None:
        """A fresh interpreter and workspace, with the guarantees of a new sandbox: because it is one."""
        async with self._lock:
            self._check_open()
            self._setup = Setup(seed=seed, functions=self._setup.functions)
            old = self._box
            self._box = await self._pool.take(self._setup)
            self._opened_s = self._used_s = time.monotonic()
            self._pool.discard(old)

    async def close(self) -> None:
        """End every process of the sandbox, also in the middle of a run. Idempotent."""
        if not self._closed:
            self._closed = True
            await self._pool.forget(self, self._box)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _seconds(self, timeout_s: float | None) -> float:
        if timeout_s is None:
            return self._limits.wall_s
        if type(timeout_s) not in (int, float) or not math.isfinite(timeout_s) or timeout_s <= 0:
            raise PolicyError(f"timeout_s must be a number of seconds above 0, not {timeout_s!r}")
        return min(float(timeout_s), self._limits.wall_s)

    @contextlib.contextmanager
    def _use(self) -> Iterator[None]:
        self._check_open()
        now = time.monotonic()
        for name, since in (("lifetime_s", self._opened_s), ("idle_s", self._used_s)):
            if now - since > getattr(self._limits, name):
                self._box.kill()
                raise SandboxClosed(f"limits.{name} = {getattr(self._limits, name):g} is over; call reset()")
        try:
            yield
        finally:
            self._used_s = time.monotonic()

    def _check_open(self) -> None:
        if self._closed:
            raise SandboxClosed("the sandbox is closed")


def _under_workspace(path: str) -> str:
    return path if path.startswith("/") else f"/workspace/{path}"
