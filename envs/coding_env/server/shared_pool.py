"""The one pool of sandboxes of a server process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from sandbox import Policy, SandboxPool

__all__ = ["SharedPool"]


class SharedPool:
    """Started by its first holder, closed by its last one.

    The application holds it from start to stop, so that a machine that cannot keep the policy is an error at
    start-up. Each environment holds it too, so that one that is used without an application works and leaves
    nothing behind.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._pool = SandboxPool(policy)
        self._holders = 0
        self._turn = asyncio.Lock()

    @property
    def max_sandboxes(self) -> int:
        """How many sandboxes there may be at once: what the policy says, or what this machine can hold."""
        return self._pool.max_sandboxes

    @property
    def live(self) -> int:
        """How many are in use."""
        return self._pool.live

    async def acquire(self) -> SandboxPool:
        """The running pool; every `acquire` needs a `release`.

        Raises:
            sandbox.UnsupportedError: this machine cannot keep the policy.
        """
        async with self._turn:
            if not self._holders:
                await self._pool.start()
            self._holders += 1
            return self._pool

    async def release(self) -> None:
        """Give it back. The last one closes the pool; a later `acquire` starts another."""
        async with self._turn:
            if self._holders == 1:
                await self._close()
            self._holders = max(0, self._holders - 1)  # 0 already if `running` has ended

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[SandboxPool]:
        """The pool for the length of the block; on leaving it is closed, whoever else still holds it."""
        pool = await self.acquire()
        try:
            yield pool
        finally:
            self._holders = 0
            await self._close()

    async def _close(self) -> None:
        pool, self._pool = self._pool, SandboxPool(self._policy)
        self._turn = asyncio.Lock()  # the next holder may live in another event loop
        await pool.close()
