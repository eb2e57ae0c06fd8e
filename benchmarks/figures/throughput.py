"""How many fresh sandboxes per second: through the engine alone, and over WebSockets."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from benchmarks import peers
from benchmarks.figures import Figure, Measured, Options, amount
from benchmarks.server import lean_policy, running_server
from envs.coding_env import CodeAction, CodingEnv
from sandbox import Policy, SandboxPool

_SESSIONS = (1, 2, 4, 8, 16)
_WARM_UP_S = 0.5


def measure(options: Options) -> list[Figure]:
    """Both, each with several numbers of sessions at once; the best of them is the figure."""
    duration_s = options.seconds(5.0)
    with lean_policy() as policy:
        with asyncio.Runner(loop_factory=_server_loop()) as runner:
            engine = runner.run(_engine(policy, duration_s))
        with running_server(policy) as url:
            wire = asyncio.run(_wire(url, duration_s))
    beside = {
        "python3 -c": _rate_of(peers.run_python, duration_s),
        "nsjail -- python3": _rate_of(peers.run_nsjail, duration_s),
        "smolagents, in process": _rate_of(peers.run_in_process, duration_s),
    }
    return [
        Figure(
            name="fresh sandboxes, first step, closed; engine only", unit="/s", goal="≥ 400", ours=engine, peers=beside
        ),
        Figure(name="connect, reset, step, close; over WebSockets", unit="/s", goal="≥ 250", ours=wire),
    ]


def _server_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The event loop that the server uses."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _engine(policy: str, duration_s: float) -> Measured:
    async with SandboxPool(Policy.load(policy)) as pool:

        async def cycle() -> None:
            async with pool.sandbox() as box:
                result = await box.run_code(peers.LINE)
                if result.stdout != "2\n":
                    raise RuntimeError(f"wrong answer: {result}")

        return await _best(cycle, duration_s)


async def _wire(url: str, duration_s: float) -> Measured:
    async def cycle() -> None:
        async with CodingEnv(base_url=url) as env:
            await env.reset()
            await env.step(CodeAction(code=peers.LINE))

    return await _best(cycle, duration_s)


async def _best(cycle: Callable[[], Awaitable[None]], duration_s: float) -> Measured:
    rates = {}
    await _rate(cycle, 4, _WARM_UP_S)
    for sessions in _SESSIONS:
        rates[sessions] = await _rate(cycle, sessions, duration_s)
    return amount(max(rates.values()), by_sessions_at_once=rates)


async def _rate(cycle: Callable[[], Awaitable[None]], sessions: int, duration_s: float) -> float:
    """Cycles per second: those that ended, over the time until the last of them ended."""
    started_s = time.perf_counter()

    async def work() -> int:
        done = 0
        while time.perf_counter() - started_s < duration_s:
            await cycle()
            done += 1
        return done

    total = sum(await asyncio.gather(*(work() for _ in range(sessions))))
    return total / (time.perf_counter() - started_s)


def _rate_of(call: Callable[[], object], duration_s: float) -> Measured:
    """Calls per second of a peer, on as many threads as there are processors."""
    workers = os.cpu_count() or 1
    started_s = time.perf_counter()

    def work() -> int:
        done = 0
        while time.perf_counter() - started_s < duration_s:
            call()
            done += 1
        return done

    with ThreadPoolExecutor(workers) as pool:
        total = sum(future.result() for future in [pool.submit(work) for _ in range(workers)])
    return amount(total / (time.perf_counter() - started_s), threads=workers)
