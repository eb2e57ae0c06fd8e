"""The blocking form of the sandbox, and the package's only crossing between sync and async."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from sandbox.drivers.base import HostFunction
from sandbox.policy import Policy
from sandbox.pool import SandboxPool
from sandbox.result import FileEntry, Result
from sandbox.sandbox import Sandbox

__all__ = ["BlockingSandbox"]

T = TypeVar("T")


class BlockingSandbox:
    """A pool of one and its sandbox, on an event loop in a thread of its own. A context manager."""

    def __init__(self, policy: Policy | None = None, *, functions: Mapping[str, HostFunction] | None = None) -> None:
        self._policy = policy if policy is not None else Policy.default()
        self._functions = functions
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sandbox", daemon=True)
        self._pool: SandboxPool | None = None
        self._sandbox: Sandbox | None = None
        self._opening: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._call(self._open())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run_code(self, source: str, *, timeout_s: float | None = None) -> Result:
        """See `Sandbox.run_code`."""
        return self._call(self._box.run_code(source, timeout_s=timeout_s))

    def run_command(
        self,
        arguments: Sequence[str],
        *,
        cwd: str = ".",
        environment: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Result:
        """See `Sandbox.run_command`."""
        return self._call(self._box.run_command(arguments, cwd=cwd, environment=environment, timeout_s=timeout_s))

    def write_file(self, path: str, data: bytes | str, *, mode: int = 0o644) -> None:
        """See `Sandbox.write_file`."""
        self._call(self._box.write_file(path, data, mode=mode))

    def read_file(self, path: str, *, limit_bytes: int | None = None) -> bytes:
        """See `Sandbox.read_file`."""
        return self._call(self._box.read_file(path, limit_bytes=limit_bytes))

    def list_files(self, path: str = ".") -> list[FileEntry]:
        """See `Sandbox.list_files`."""
        return self._call(self._box.list_files(path))

    def reset(self, *, seed: int | None = None) -> None:
        """See `Sandbox.reset`."""
        self._call(self._box.reset(seed=seed))

    def close(self) -> None:
        """End the sandbox, the pool and the thread. Idempotent."""
        if self._loop.is_closed():
            return
        if self._thread.is_alive():
            self._call(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    @property
    def _box(self) -> Sandbox:
        if self._sandbox is None:
            raise RuntimeError("use it as a context manager: with Sandbox.open() as box: ...")
        return self._sandbox

    async def _open(self) -> None:
        self._opening = asyncio.current_task()
        self._pool = SandboxPool(self._policy)
        await self._pool.start()
        self._sandbox = await self._pool.open(functions=self._functions)

    async def _close(self) -> None:
        if self._opening is not None:  # interrupted by Ctrl-C, it still cleans up
            await asyncio.wait([self._opening])
        if self._pool is not None:
            await self._pool.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C while waiting: end the run too
            raise
