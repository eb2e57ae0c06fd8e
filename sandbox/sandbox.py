"""The handle on one sandbox."""

from __future__ import annotations

import asyncio
import errno
import math
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Self, TypeVar

from sandbox.drivers.base import Box, HostFunction, Setup
from sandbox.errors import FileError, PolicyError, SandboxClosed, SandboxDied
from sandbox.policy import Policy
from sandbox.result import FileEntry, Result

if TYPE_CHECKING:
    from types import TracebackType

    from sandbox.blocking import BlockingSandbox
    from sandbox.pool import SandboxPool

__all__ = ["Sandbox"]

T = TypeVar("T")

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
        self._reason = "the sandbox is closed"
        self._limits = pool.policy.limits
        self._loop = asyncio.get_running_loop()
        self._opened_s = self._used_s = self._loop.time()
        self._timer = self._loop.call_later(min(self._limits.idle_s, self._limits.lifetime_s), self._look_at_age)

    @staticmethod
    def open(policy: Policy | None = None) -> BlockingSandbox:
        """The blocking form, for scripts: `with Sandbox.open() as box: box.run_code("...")`."""
        from sandbox.blocking import BlockingSandbox

        return BlockingSandbox(policy)

    @property
    def closed(self) -> bool:
        """Whether `close` was called, or its time is over."""
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
        return await self._call(lambda box: box.run_code(source, seconds))

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
        return await self._call(
            lambda box: box.run_command(words, directory=directory, environment=variables, timeout_s=seconds)
        )

    async def write_file(self, path: str, data: bytes | str, *, mode: int = 0o644) -> None:
        """Make or replace a file of the workspace; missing directories are made. Raises `FileError`."""
        _checked_path(path)
        if type(mode) is not int or not 0 <= mode <= 0o777:
            raise PolicyError(f"mode must be a number from 0 to 0o777, not {mode!r}")
        raw = _checked_bytes(data)
        if len(raw) > self._limits.file_size_bytes:
            raise FileError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        await self._call(lambda box: box.write_file(path, raw, mode))

    async def read_file(self, path: str, *, limit_bytes: int | None = None) -> bytes:
        """The content of a regular file of the workspace. Raises `FileError`: EFBIG beyond `limit_bytes`."""
        _checked_path(path)
        limit = self._limits.file_size_bytes if limit_bytes is None else limit_bytes
        if type(limit) is not int or limit < 0:
            raise PolicyError(f"limit_bytes must be a number of bytes, not {limit_bytes!r}")
        return await self._call(lambda box: box.read_file(path, limit))

    async def list_files(self, path: str = ".") -> list[FileEntry]:
        """What a directory of the workspace holds, sorted by name; links are not followed. Raises `FileError`."""
        _checked_path(path)
        return await self._call(lambda box: box.list_files(path))

    async def reset(self, *, seed: int | None = None) -> None:
        """A fresh interpreter and workspace, with the guarantees of a new sandbox: because it is one."""
        async with self._lock:
            self._check_open()
            await self._replace(Setup(seed=checked_seed(seed), functions=self._setup.functions))
            self._opened_s = self._used_s = self._loop.time()

    async def close(self) -> None:
        """End every process of the sandbox, also in the middle of a run. Idempotent."""
        if not self._closed:
            self._closed = True
            self._timer.cancel()
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

    async def _call(self, work: Callable[[Box], Awaitable[T]]) -> T:
        """One call after another, on a box that lives or that the guest itself has ended: then on a new one."""
        async with self._lock:
            self._check_open()
            if not self._box.alive and self._box.ended_by_guest:
                await self._replace(self._setup)
            try:
                return await work(self._box)
            except SandboxDied:
                self._check_open()  # a call that `close` has cut short says so
                raise
            finally:
                self._used_s = self._loop.time()

    async def _replace(self, setup: Setup) -> None:
        box = await self._pool.take(setup)
        if self._closed:
            self._pool.discard(box)
            self._check_open()
        old, self._box, self._setup = self._box, box, setup
        self._pool.discard(old)

    def _check_open(self) -> None:
        if self._closed:
            raise SandboxClosed(self._reason)

    def _look_at_age(self) -> None:
        """Close what is over. A call that runs is use, however long it takes; a lifetime ends in any case."""
        limits, now = self._limits, self._loop.time()
        used_s = now if self._lock.locked() else self._used_s
        left = {"lifetime_s": self._opened_s + limits.lifetime_s - now, "idle_s": used_s + limits.idle_s - now}
        name = min(left, key=left.__getitem__)
        if left[name] > 0:
            self._timer = self._loop.call_later(left[name], self._look_at_age)
            return
        self._closed = True
        self._reason = f"limits.{name} = {getattr(limits, name):g} is over and the sandbox was closed; open another"
        self._pool.expire(self, self._box)


def checked_seed(seed: object) -> int | None:
    """A seed, or a `PolicyError`."""
    if seed is None or type(seed) is int:
        return seed
    raise PolicyError(f"seed must be a whole number, not {seed!r}")


def _checked_text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise PolicyError(f"{name} must be a string, not {type(value).__name__}")
    if "\0" in value:
        raise PolicyError(f"{name} must not contain NUL")
    if not _is_encodable(value):
        raise PolicyError(f"{name} contains lone surrogates, which no program can be given")
    return value


def _is_encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


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
    if "\0" in path or not _is_encodable(path):
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
