"""The handle on one sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Self

from sandbox.drivers.base import Box, HostFunction, Setup
from sandbox.errors import FileError, PolicyError, SandboxClosed
from sandbox.policy import Policy
from sandbox.result import FileEntry, Result

if TYPE_CHECKING:
    from types import TracebackType

    from sandbox.blocking import BlockingSandbox
    from sandbox.pool import SandboxPool

__all__ = ["Sandbox"]

_COMMAND_CHARS = 2 << 20  # Linux takes no more: a quarter of the stack limit, execve(2)
_PATH_CHARS = 4096  # PATH_MAX


class Sandbox:
    """One isolated world: a workspace, and an interpreter that keeps its state from run to run.

    Made by `SandboxPool.sandbox`, or by `Sandbox.open` in a script. Calls run one after another. What guest code does
    is never an exception here; `SandboxError` is our own fault.
    """

    def __init__(self, pool: SandboxPool, box: Box, *, seed: int | None, functions: Mapping[str, HostFunction]) -> None:
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
        words, variables = _checked_arguments(arguments), _checked_environment(environment)
        directory = _under_workspace(_checked_text("cwd", cwd))
        size = sum(len(text) for text in (*words, *variables, *variables.values()))
        if size > _COMMAND_CHARS:
            raise PolicyError(f"arguments and environment may have at most {_COMMAND_CHARS} characters, not {size}")
        seconds = self._seconds(timeout_s)
        async with self._lock:
            with self._use():
                return await self._box.run_command(words, directory=directory, environment=variables, timeout_s=seconds)

    async def write_file(self, path: str, data: bytes | str, *, mode: int = 0o644) -> None:
        """Make or replace a file of the workspace; missing directories are made. Raises `FileError`."""
        _checked_path(path)
        if type(mode) is not int or not 0 <= mode <= 0o777:
            raise PolicyError(f"mode must be a number from 0 to 0o777, not {mode!r}")
        raw = _checked_bytes(data)
        if len(raw) > self._limits.file_size_bytes:
            raise FileError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        async with self._lock:
            with self._use():
                await self._box.write_file(path, raw, mode)

    async def read_file(self, path: str, *, limit_bytes: int | None = None) -> bytes:
        """The content of a regular file of the workspace. Raises `FileError`: EFBIG beyond `limit_bytes`."""
        _checked_path(path)
        limit = self._limits.file_size_bytes if limit_bytes is None else limit_bytes
        if type(limit) is not int or limit < 0:
            raise PolicyError(f"limit_bytes must be a number of bytes, not {limit_bytes!r}")
        async with self._lock:
            with self._use():
                return await self._box.read_file(path, limit)

    async def list_files(self, path: str = ".") -> list[FileEntry]:
        """What a directory of the workspace holds, sorted by name; links are not followed. Raises `FileError`."""
        _checked_path(path)
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


def _checked_text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise PolicyError(f"{name} must be a string, not {type(value).__name__}")
    if "\0" in value:
        raise PolicyError(f"{name} must not contain NUL")
    return value


def _checked_arguments(arguments: object) -> list[str]:
    if not isinstance(arguments, list | tuple) or not arguments or arguments[0] == "":
        raise PolicyError("arguments must be a list of strings that begins with the program's name")
    return [_checked_text(f"arguments[{number}]", word) for number, word in enumerate(arguments)]


def _checked_environment(environment: object) -> dict[str, str]:
    if environment is None:
        return {}
    if not isinstance(environment, Mapping):
        raise PolicyError(f"environment must be a mapping of names to values, not {type(environment).__name__}")
    for name, value in environment.items():
        if not _checked_text("a name in environment", name) or "=" in name:
            raise PolicyError(f'environment: {name!r} is not a name for a variable; names have no "="')
        _checked_text(f"environment[{name!r}]", value)
    return dict(environment)


def _checked_path(path: object) -> None:
    """What is refused before the sandbox is asked; the errors are those that it would give."""
    if not isinstance(path, str):
        raise PolicyError(f"path must be a string, not {type(path).__name__}")
    if "\0" in path:
        raise FileError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    if len(path) >= _PATH_CHARS:
        raise FileError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)


def _checked_bytes(data: object) -> bytes:
    if isinstance(data, str):
        try:
            return data.encode()
        except UnicodeEncodeError as error:
            raise PolicyError(f"data cannot be written as UTF-8: {error}; pass bytes") from None
    if not isinstance(data, bytes | bytearray | memoryview):
        raise PolicyError(f"data must be bytes or a string, not {type(data).__name__}")
    return bytes(data)


def _under_workspace(path: str) -> str:
    return path if path.startswith("/") else f"/workspace/{path}"
