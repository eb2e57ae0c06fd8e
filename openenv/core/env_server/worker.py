"""A thread that makes blocking calls for one session."""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class _Outcome(NamedTuple):
    value: Any
    error: BaseException | None


class _Job(NamedTuple):
    call: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[_Outcome]"


class SessionThread:
    """Runs calls one after another on one thread, started by the first call.

    The thread is a daemon: a call that never returns must not keep the server from exiting. An awaited call
    can be abandoned (cancelled) but not stopped; calls that were queued behind it still run, in order.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._unfinished = 0

    @property
    def busy(self) -> bool:
        """Whether a call is queued or running, abandoned ones included."""
        return self._unfinished > 0

    async def call(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """What `function(*args, **kwargs)` returns or raises on the thread."""
        loop = asyncio.get_running_loop()
        job = _Job(lambda: function(*args, **kwargs), loop, loop.create_future())
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._unfinished += 1
        self._jobs.put(job)
        outcome = await job.future
        if outcome.error is not None:
            raise outcome.error
        return outcome.value  # type: ignore[no-any-return]

    def stop(self) -> None:
        """End the thread after the calls that are queued. Idempotent."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread = None

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                outcome = _Outcome(job.call(), None)
            except BaseException as error:  # SystemExit in an environment must not end its thread
                outcome = _Outcome(None, error)
            try:
                job.loop.call_soon_threadsafe(self._deliver, job.future, outcome)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return
            del job, outcome

    def _deliver(self, future: "asyncio.Future[_Outcome]", outcome: _Outcome) -> None:
        self._unfinished -= 1
        if not future.done():
            future.set_result(outcome)
