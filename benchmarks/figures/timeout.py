"""Deadlines: how late the answer comes, and what of the guest still runs 100 ms later, seen from the host."""

import asyncio
import time

import psutil

from benchmarks import peers
from benchmarks.figures import Figure, Measured, Options, amount, times
from benchmarks.server import lean_policy
from sandbox import Outcome, Policy, Sandbox, SandboxPool

_TIMEOUT_S = 0.3
_LATER_S = 0.1
_WATCH_S = 0.2

_YIELDS = "while True: pass"
# Children in sessions of their own, a thread, no ear for signals, and a C call that no interrupt ends.
_HARD = """
import itertools, os, signal, threading
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        while True: pass
threading.Thread(target=lambda: sum(itertools.count())).start()
sum(itertools.count())
"""


def measure(options: Options) -> list[Figure]:
    """For code that yields to the interrupt, and for code that has to be killed."""
    with lean_policy(ready=0) as path:
        policy = Policy.load(path)
        soft, hard, left, busy = asyncio.run(_measure(policy, options.count(50)))
    return [
        Figure(
            name="answer after the deadline, code that can be interrupted", unit="ms", goal="≤ 50", ours=times(soft)
        ),
        Figure(
            name=f"answer after the deadline, code that must be killed (grace {policy.limits.grace_s:g} s included)",
            unit="ms", goal="≤ 50", ours=times(hard), peers={"smolagents, in process": _in_process()},
        ),
        Figure(
            name="processes of the killed step alive 100 ms after the answer, worst case",
            unit="", goal="0", ours=amount(max(left), runs=len(left)),
        ),
        Figure(
            name="CPU time that the sandbox used from 100 to 300 ms after the answer, worst case",
            unit="ms", goal="0", ours=amount(max(busy) * 1000, runs=len(busy)),
        ),
    ]  # fmt: skip


async def _measure(policy: Policy, count: int) -> tuple[list[float], list[float], list[int], list[float]]:
    hard: list[float] = []
    left: list[int] = []
    busy: list[float] = []
    async with SandboxPool(policy) as pool, pool.sandbox() as box:
        soft = [await _lateness(box, _YIELDS) - _TIMEOUT_S for _ in range(count)]
        for _ in range(count):
            await box.reset()
            before = _guest_processes()
            watch = asyncio.create_task(_started_since(before))
            hard.append(await _lateness(box, _HARD) - _TIMEOUT_S)
            await asyncio.sleep(_LATER_S)
            left.append(len([process for process in await watch if _runs(process)]))
            started_s = _cpu_s()
            await asyncio.sleep(_WATCH_S)
            busy.append(max(0.0, _cpu_s() - started_s))
    return soft, hard, left, busy


async def _lateness(box: Sandbox, code: str) -> float:
    started_s = time.perf_counter()
    result = await box.run_code(code, timeout_s=_TIMEOUT_S)
    taken_s = time.perf_counter() - started_s
    if result.outcome is not Outcome.TIMEOUT:
        raise RuntimeError(f"not a timeout: {result}")
    return taken_s


def _guest_processes() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


async def _started_since(before: set[psutil.Process]) -> set[psutil.Process]:
    """The processes that the step has started by half of its time."""
    await asyncio.sleep(_TIMEOUT_S / 2)
    started = _guest_processes() - before
    if len(started) < 3:
        raise RuntimeError(f"the step did not start its children: {started}")
    return started


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _cpu_s() -> float:
    """CPU time of all living guest processes together, in the kernel's ticks of 10 ms."""
    total = 0.0
    for process in _guest_processes():
        try:
            used = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += used.user + used.system
    return total


def _in_process() -> Measured:
    """A sleep of three seconds with a limit of one."""
    executor = peers.in_process(timeout_s=1, imports=("time",))
    started_s = time.perf_counter()
    try:
        executor("import time\ntime.sleep(3)")
    except Exception as error:
        told = type(error).__name__
    else:
        told = "no error"
    return amount((time.perf_counter() - started_s - 1.0) * 1000, told=told)
