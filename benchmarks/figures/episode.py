"""Latency of an episode over a WebSocket: reset and first step in a fresh sandbox, warm steps, new connections."""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable

import uvloop

from benchmarks import peers
from benchmarks.figures import Figure, Options, times
from benchmarks.server import lean_policy, running_server
from envs.coding_env import CodeAction, CodingEnv

_ACTION = CodeAction(code=peers.LINE)
_GAP_S = 0.03
_WARM_UP = 20
_TURN = 25

Call = Callable[[], Awaitable[object]]


def measure(options: Options) -> list[Figure]:
    """Spaced samples beside the peers, in turns; then bursts."""
    with lean_policy() as policy, running_server(policy) as url:
        gc.collect()
        gc.freeze()  # the peers' modules are a large heap; walking it is no part of what is measured
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_measure(url, options))


async def _measure(url: str, options: Options) -> list[Figure]:
    async with CodingEnv(base_url=url) as env:

        async def fresh() -> None:
            await env.reset()
            await _step(env)

        async def connection() -> None:
            async with CodingEnv(base_url=url) as other:
                await other.reset()
                await _step(other)

        executor = peers.in_process()
        for _ in range(_WARM_UP):
            await fresh()
            await connection()
            executor(peers.LINE)
        spaced = await _in_turns(
            {
                "fresh": fresh,
                "connection": connection,
                "python3 -c": _blocking(peers.run_python),
                "nsjail -- python3": _blocking(peers.run_nsjail),
                "smolagents, in process": _blocking(peers.run_in_process),
            },
            options.count(300),
        )
        warm = await _in_turns(
            {
                "ours": lambda: _step(env),
                "the same round trip without a sandbox (state)": env.state,
                "smolagents, in process": _blocking(lambda: executor(peers.LINE)),
            },
            options.count(300),
        )
        bursts = {
            name: await _burst(call, options.count(count))
            for name, call, count in (
                ("fresh", fresh, 500),
                ("connection", connection, 300),
                ("warm", lambda: _step(env), 1000),
            )
        }
    return _figures(spaced, warm, bursts)


def _figures(
    spaced: dict[str, list[float]], warm: dict[str, list[float]], bursts: dict[str, list[float]]
) -> list[Figure]:
    cold = {name: times(spaced[name]) for name in spaced if name not in {"fresh", "connection"}}
    return [
        Figure(
            name="reset + first step, fresh sandbox, open WebSocket; 30 ms between samples",
            unit="ms", goal="p50 ≤ 1.5, p99 ≤ 5", ours=times(spaced["fresh"]), peers=cold,
        ),
        Figure(
            name="the same, back to back", unit="ms", goal="p50 ≤ 1.5, p99 ≤ 5", ours=times(bursts["fresh"])
        ),
        Figure(
            name="connect + reset + first step; 30 ms between samples",
            unit="ms", goal="p50 ≤ 4", ours=times(spaced["connection"]), peers=cold,
        ),
        Figure(name="the same, back to back", unit="ms", goal="p50 ≤ 4", ours=times(bursts["connection"])),
        Figure(
            name="warm step; 30 ms between samples", unit="ms", goal="p50 ≤ 0.5", ours=times(warm["ours"]),
            peers={name: times(samples) for name, samples in warm.items() if name != "ours"},
        ),
        Figure(name="the same, back to back", unit="ms", goal="p50 ≤ 0.5", ours=times(bursts["warm"])),
    ]  # fmt: skip


async def _step(env: CodingEnv) -> None:
    result = await env.step(_ACTION)
    if result.observation.stdout != "2\n":
        raise RuntimeError(f"wrong answer: {result.observation}")


def _blocking(call: Callable[[], object]) -> Call:
    async def wrapped() -> object:
        return call()  # nothing else wants the loop while a peer is measured

    return wrapped


async def _in_turns(calls: dict[str, Call], count: int) -> dict[str, list[float]]:
    """Seconds of each, `count` times, with a pause before every one: bursts hide what the kernel defers.

    In turns of some samples each, so that a drift of the machine meets all of them, and no call runs on the caches
    that another kind of call has just emptied.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    while any(len(samples) < count for samples in taken.values()):
        for name, call in calls.items():
            for _ in range(min(_TURN, count - len(taken[name]))):
                await asyncio.sleep(_GAP_S)
                taken[name].append(await _seconds(call))
    return taken


async def _burst(call: Call, count: int) -> list[float]:
    return [await _seconds(call) for _ in range(count)]


async def _seconds(call: Call) -> float:
    started_s = time.perf_counter()
    await call()
    return time.perf_counter() - started_s
