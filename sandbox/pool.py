"""Sandboxes ahead of demand. The pool owns the driver, decides who gets in, and hides the cost of making and ending.

A taken sandbox is replaced a little later than at once (`pool.refill_delay_s`): on few processors, forking competes
with the very step that the sandbox was taken for. Ended sandboxes are torn down off the caller's path.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Self

from sandbox.drivers import open_driver
from sandbox.drivers.base import Box, Driver, HostFunction, Setup
from sandbox.errors import CapacityError, PolicyError, SandboxClosed, SandboxDied, SandboxError
from sandbox.policy import Policy
from sandbox.sandbox import Sandbox, checked_seed

__all__ = ["SandboxPool"]

_log = logging.getLogger(__name__)
_RETRY_S = (0.05, 0.2, 1.0)
_IDLE_SANDBOX_BYTES = 4 * 1024 * 1024  # of the machine's memory, generously: what `max_sandboxes = "auto"` divides by


class SandboxPool:
    """Makes sandboxes under one policy; an async context manager.

        async with SandboxPool(Policy.load("policy.toml")) as pool:
            async with pool.sandbox() as box:
                result = await box.run_code("print(6 * 7)")

    Entering raises `UnsupportedError` if this machine cannot enforce the policy. Leaving ends every sandbox and
    removes every process, mount, cgroup and file that belonged to them.
    """

    def __init__(self, policy: Policy | None = None, *, driver: Driver | None = None) -> None:
        self.policy = policy if policy is not None else Policy.default()
        self._driver = driver if driver is not None else open_driver(self.policy)
        self._ready: collections.deque[Box] = collections.deque()
        self._live = 0
        self._making = 0
        self._max = _capacity(self.policy)
        self._tasks: set[asyncio.Task[None]] = set()
        self._refill_timer: asyncio.TimerHandle | None = None
        self._sandboxes: set[Sandbox] = set()
        self._closed = True

    @property
    def max_sandboxes(self) -> int:
        """How many sandboxes may be in use at once."""
        return self._max

    @property
    def live(self) -> int:
        """How many are in use now."""
        return self._live

    @property
    def driver(self) -> Driver:
        """The driver that makes them."""
        return self._driver

    async def start(self) -> None:
        """Start the driver, and wait for the first ready sandbox: a policy that cannot work fails here."""
        await self._driver.start()
        self._closed = False
        try:
            self._ready.append(await self._driver.create())
        except BaseException:
            await self.close()
            raise
        self._refill()

    async def close(self) -> None:
        """End everything. Idempotent."""
        if self._closed and not self._tasks:
            return
        self._closed = True
        if self._refill_timer is not None:
            self._refill_timer.cancel()
        await asyncio.gather(*(sandbox.close() for sandbox in self._sandboxes))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._driver.close()
        self._ready.clear()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @contextlib.asynccontextmanager
    async def sandbox(
        self, *, seed: int | None = None, functions: Mapping[str, HostFunction] | None = None
    ) -> AsyncIterator[Sandbox]:
        """A sandbox for the length of the block."""
        sandbox = await self.open(seed=seed, functions=functions)
        try:
            yield sandbox
        finally:
            await sandbox.close()

    async def open(self, *, seed: int | None = None, functions: Mapping[str, HostFunction] | None = None) -> Sandbox:
        """A sandbox that the caller closes. Raises `CapacityError` if all places are taken.

        `functions` are what guest code may call on the host; their names must be in the policy.
        """
        self._check_open()
        checked_seed(seed)
        named = self.policy.host_functions.names
        if unknown := sorted(set(functions or ()) - set(named)):
            raise PolicyError(f"host_functions.names has no {', '.join(unknown)}; the policy names {list(named)}")
        if self._live >= self._max:
            raise CapacityError(f"all {self._max} sandboxes are in use; close one, or raise pool.max_sandboxes")
        self._live += 1
        try:
            box = await self.take(Setup(seed=seed, functions=dict(functions or {})))
        except BaseException:
            self._live -= 1
            raise
        if self._closed:  # while the box was made
            self._live -= 1
            await box.close()
            self._check_open()
        sandbox = Sandbox(self, box, seed=seed, functions=dict(functions or {}))
        self._sandboxes.add(sandbox)
        return sandbox

    def _check_open(self) -> None:
        if self._closed:
            raise SandboxClosed("the pool is closed, or was never entered")

    # For `Sandbox`.

    async def take(self, setup: Setup) -> Box:
        """A box that nobody has used, from the ready ones if there are any."""
        box: Box | None = None
        while self._ready and box is None:
            candidate = self._ready.popleft()
            if candidate.alive:
                box = candidate
            else:
                self.discard(candidate)
        self._refill_later()
        if box is None:
            box = await self._create()
        box.setup(setup)
        return box

    async def _create(self) -> Box:
        try:
            return await self._driver.create()
        except SandboxDied:
            if self._closed:
                raise SandboxClosed("the pool is closed") from None
            return await self._driver.create()  # the fork server died under the request; now there is another one

    def discard(self, box: Box) -> None:
        """End a box a little later: ending it competes with the step that its successor is about to run."""
        asyncio.get_running_loop().call_later(self.policy.pool.refill_delay_s, self._end, box)

    def _end(self, box: Box) -> None:
        if not self._closed:  # else the driver has ended it
            self._start(box.close())

    def expire(self, sandbox: Sandbox, box: Box) -> None:
        """The time of a sandbox is over: its place is free at once, its box ends off the caller's path."""
        if sandbox in self._sandboxes:
            self._sandboxes.discard(sandbox)
            self._live -= 1
        box.kill()
        self._end(box)

    async def forget(self, sandbox: Sandbox, box: Box) -> None:
        """A sandbox was closed. A pool that is closing waits for its box."""
        self.expire(sandbox, box)
        if self._closed:
            await box.close()

    # Refilling.

    def _refill_later(self) -> None:
        if self._refill_timer is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._refill_timer = loop.call_later(self.policy.pool.refill_delay_s, self._refill)

    def _refill(self) -> None:
        self._refill_timer = None
        missing = self.policy.pool.ready - len(self._ready) - self._making
        room = self._max - self._live - len(self._ready) - self._making
        if not self._closed and min(missing, room) > 0:
            self._making += 1
            self._start(self._make_ready())

    async def _make_ready(self) -> None:
        """One more ready box, then the next: never two forks at once; a step in between waits for one at most."""
        try:
            for pause_s in (*_RETRY_S, None):
                try:
                    self._ready.append(await self._create())
                    break
                except SandboxError as error:
                    if pause_s is None or self._closed:
                        _log.error("no sandbox could be made ahead of demand: %s", error)
                        return
                    await asyncio.sleep(pause_s)
        finally:
            self._making -= 1
        if not self._closed and self._refill_timer is None:
            self._refill()

    def _start(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("ending a sandbox failed", exc_info=task.exception())


def _capacity(policy: Policy) -> int:
    """What the machine can hold: by memory, by processes, and by descriptors (about 16 each)."""
    if isinstance(policy.pool.max_sandboxes, int):
        return policy.pool.max_sandboxes
    with open("/proc/meminfo", encoding="ascii") as file:
        facts = dict(line.split(":", 1) for line in file)
    available_bytes = int(facts["MemAvailable"].split()[0]) * 1024
    with open("/proc/sys/kernel/pid_max", encoding="ascii") as file:
        pids = int(file.read())
    by_memory = int(available_bytes * 0.8) // _IDLE_SANDBOX_BYTES
    by_descriptors = _raise_descriptor_limit() // 16
    return max(1, min(by_memory, pids // 4, by_descriptors))


def _raise_descriptor_limit() -> int:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20
