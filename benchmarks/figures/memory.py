"""What an idle sandbox costs: the proportional share of memory of all its processes, with many of them alive."""

import asyncio

import psutil

from benchmarks import peers
from benchmarks.figures import Figure, Measured, Options, amount
from benchmarks.server import lean_policy
from sandbox import Policy, SandboxPool

_SANDBOXES = 200
_SETTLE_S = 1.0
_MIB = 2**20


def measure(options: Options) -> list[Figure]:
    """Sandboxes that have run nothing, then the same after one step each."""
    count = 40 if options.quick else _SANDBOXES
    with lean_policy(ready=0) as policy:
        unused, used = asyncio.run(_measure(policy, count))
    return [
        Figure(name=f"PSS of an idle sandbox, all its processes, {count} alive", unit="MiB", goal="≤ 1.2", ours=unused),
        Figure(name="the same after one step in each", unit="MiB", ours=used),
    ]


async def _measure(policy: str, count: int) -> tuple[Measured, Measured]:
    async with SandboxPool(Policy.load(policy)) as pool:
        first = await pool.open()  # the one that a pool always makes when it starts
        before, available = _processes(), psutil.virtual_memory().available
        boxes = [await pool.open() for _ in range(count)]
        try:
            unused = await _idle(before, count, available)
            for box in boxes:
                await box.run_code(peers.LINE)
            used = await _idle(before, count, available)
        finally:
            for box in (*boxes, first):
                await box.close()
    return unused, used


async def _idle(before: set[int], count: int, available_bytes: int) -> Measured:
    await asyncio.sleep(_SETTLE_S)
    own = _processes() - before
    lost_bytes = available_bytes - psutil.virtual_memory().available
    return amount(
        sum(map(_pss_bytes, own)) / count / _MIB,
        processes_per_sandbox=len(own) / count,
        available_memory_lost_mib=lost_bytes / count / _MIB,
    )


def _processes() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def _pss_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} has no Pss")
