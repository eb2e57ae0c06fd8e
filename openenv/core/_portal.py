"""The one crossing between blocking code and async code.

A portal owns a thread with an event loop. The loop must keep running between calls: it answers the server's
pings while the caller computes, and a session whose pings stay unanswered is closed.
"""

import asyncio
import threading
import warnings
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Portal:
    """An event loop on a thread of its own. Start it by use, stop it with `close()`."""

    def __init__(self, name: str = "openenv-portal") -> None:
        self._name = name
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` on the loop; block until it ends; return or raise what it does.

        A KeyboardInterrupt while waiting cancels the coroutine.
        """
        loop = self._running_loop()
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("a blocking call from the event loop's own thread would wait for itself")
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def close(self) -> None:
        """Stop the loop and join its thread. Idempotent; the next call starts a new loop."""
        with self._guard:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._guard:
            if self._loop is None:
                started: Future[asyncio.AbstractEventLoop] = Future()
                # A daemon, so that a forgotten client cannot keep the interpreter from exiting.
                self._thread = threading.Thread(target=_serve, args=(started,), name=self._name, daemon=True)
                self._thread.start()
                self._loop = started.result()
            return self._loop

    def __del__(self) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            warnings.warn(f"unclosed {self._name}: call close() or use 'with'", ResourceWarning, stacklevel=2)
            loop.call_soon_threadsafe(loop.stop)


def _serve(started: "Future[asyncio.AbstractEventLoop]") -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    started.set_result(loop)
    try:
        loop.run_forever()
    finally:
        pending = asyncio.all_tasks(loop)
        for task in pending:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run one coroutine to its end on a loop of its own, whatever loop this thread may be running."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    portal = Portal("openenv-run-blocking")
    try:
        return portal.call(coroutine)
    finally:
        portal.close()
