"""Speed of code that computes: against plain CPython, and with more busy sessions than processors."""

import asyncio
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks import peers
from benchmarks.figures import Figure, Measured, Options, amount
from benchmarks.server import lean_policy, running_server
from envs.coding_env import CodeAction, CodingEnv
from sandbox import Policy, SandboxPool

_PROGRAMS = {
    "sum of squares": "s = 0\n    for i in range({n} * 10):\n        s += i * i",
    "recursion": "def fib(k):\n        return k if k < 2 else fib(k - 1) + fib(k - 2)\n    fib({n} // 2000 + 10)",
    "dictionary": "d = {{}}\n    for i in range({n} * 4):\n        d[i % 997] = d.get(i % 997, 0) + 1",
    "sorting": "x = [(i * 7919) % 100003 for i in range({n} * 2)]\n    for _ in range(3):\n        y = sorted(x)",
    "text": "t = ','.join([str(i) for i in range({n} * 4)])\n    u = t.split(',')",
}
_FULL_N, _SMALL_N = 30_000, 1_000
_BUSY = 8


def measure(options: Options) -> list[Figure]:
    """The ratios, and the use that eight busy sessions make of the processors."""
    rounds = 3 if options.quick else 15
    with lean_policy() as policy:
        ours = asyncio.run(_ratio(policy, rounds))
        beside = {"smolagents, in process": _ratio_in_process(3)}
        with running_server(policy) as url:
            busy = asyncio.run(_busy(url, options.seconds(5.0)))
            plain = _busy_plain(options.seconds(5.0))
    return [
        Figure(name="CPU-bound code against plain CPython", unit="x", goal="≤ 1.03", ours=ours, peers=beside),
        Figure(
            name=f"processors that {_BUSY} busy sessions use, of {os.cpu_count()}",
            unit="", goal="all of them", ours=busy,
            peers={f"{_BUSY} x python3 -c": plain},
        ),
    ]  # fmt: skip


def _program(name: str, n: int) -> str:
    """A program that prints how many seconds its work took."""
    body = _PROGRAMS[name].format(n=n)
    return f"import time\ndef work():\n    {body}\nt = time.perf_counter()\nwork()\nprint(time.perf_counter() - t)"


async def _ratio(policy: str, rounds: int) -> Measured:
    """Least time inside over least time outside, in turns; the geometric mean over the programs."""
    ratios = {}
    async with SandboxPool(Policy.load(policy)) as pool:
        for name in _PROGRAMS:
            code = _program(name, _FULL_N)
            inside, outside = [], []
            for _ in range(rounds):
                outside.append(float(peers.run_python(code)))
                async with pool.sandbox() as box:
                    inside.append(float((await box.run_code(code)).stdout))
            ratios[name] = min(inside) / min(outside)
    return amount(_geometric_mean(list(ratios.values())), by_program=ratios, rounds=rounds)


def _ratio_in_process(rounds: int) -> Measured:
    """The same for an interpreter that could not finish the full size; the work is smaller on both sides."""
    ratios = {}
    for name, body in _PROGRAMS.items():
        code, taken = f"def work():\n    {body.format(n=_SMALL_N)}\nwork()", []
        for _ in range(rounds):
            executor = peers.in_process()
            started_s = time.perf_counter()
            executor(code)
            taken.append(time.perf_counter() - started_s)
        plain = min(float(peers.run_python(_program(name, _SMALL_N))) for _ in range(rounds))
        ratios[name] = min(taken) / plain
    return amount(_geometric_mean(list(ratios.values())), by_program=ratios, rounds=rounds)


def _spin(duration_s: float) -> str:
    """A program that computes until the time is over, and prints how much CPU time it was given."""
    return (
        "import time\nt = time.perf_counter()\nc = time.process_time()\n"
        f"while time.perf_counter() - t < {duration_s}: pass\n"
        "print(time.process_time() - c)"
    )


async def _busy(url: str, duration_s: float) -> Measured:
    """CPU seconds that the sessions were given, over the time from the first start to the last end."""
    clients = [CodingEnv(base_url=url) for _ in range(_BUSY)]
    try:
        for client in clients:
            await client.reset()
        started_s = time.perf_counter()
        results = await asyncio.gather(*(client.step(CodeAction(code=_spin(duration_s))) for client in clients))
        wall_s = time.perf_counter() - started_s
    finally:
        for client in clients:
            await client.close()
    return _processors([result.observation.stdout for result in results], wall_s)


def _busy_plain(duration_s: float) -> Measured:
    """The same with as many plain interpreters: what this machine had to give just then."""
    with ThreadPoolExecutor(_BUSY) as pool:
        started_s = time.perf_counter()
        outputs = list(pool.map(peers.run_python, [_spin(duration_s)] * _BUSY))
        wall_s = time.perf_counter() - started_s
    return _processors(outputs, wall_s)


def _processors(outputs: list[str], wall_s: float) -> Measured:
    given_s = [float(output) for output in outputs]
    return amount(sum(given_s) / wall_s, cpu_s_by_session=given_s, wall_s=wall_s)


def _geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
