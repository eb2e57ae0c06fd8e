"""What keeps the limits where there are no cgroups, and what is refused because nothing would keep it.

An ordinary user without delegation is in this place. Here everybody is: the driver is told that there are none.
"""

# ruff: noqa: E501 - programs for the guest, one per line

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from sandbox import Sandbox, SandboxPool, UnsupportedError
from sandbox.drivers import zygote

from ..boxes import has_cgroups, pids, policy, said, until, works

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture(scope="module")
def no_cgroups(nothing_is_left: str) -> AsyncIterator[None]:
    def refuse(*, zygote_uid: int | None) -> None:
        raise UnsupportedError("no controller is mounted")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zygote, "open_cgroups", refuse)
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pool(no_cgroups: None) -> AsyncIterator[SandboxPool]:
    settings = '[limits]\nmemory_bytes = "96 MiB"\nworkspace_bytes = "32 MiB"\nprocesses = 8\nwall_s = 20\n'
    async with SandboxPool(policy(settings)) as made:
        assert not has_cgroups(made)
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def plain(pool: SandboxPool) -> AsyncIterator[Sandbox]:
    async with pool.sandbox() as sandbox:
        yield sandbox


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("cpu_s = 0.3", r"limits\.cpu_s below wall_s \* cpu_cores needs a cpu cgroup \(no controller.*at least 20"),
        ("cpu_cores = 0.5", r"limits\.cpu_cores = 0\.5 needs a cpu cgroup \(no controller.*must be a whole number"),
        ("cpu_cores = 4096", r"limits\.cpu_cores = 4096 needs a cpu cgroup"),
    ],
)
async def test_what_nothing_would_keep_is_refused(no_cgroups: None, setting: str, says: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        async with SandboxPool(policy(f"[limits]\n{setting}\n")):
            pass


async def test_required_cgroups_are_refused(no_cgroups: None) -> None:
    with pytest.raises(UnsupportedError, match="the policy requires cgroups: no controller is mounted"):
        async with SandboxPool(policy('cgroups = "require"\n')):
            pass


async def test_memory_of_all_processes_together_is_watched(pool: SandboxPool, plain: Sandbox) -> None:
    """None of them exceeds an rlimit."""
    source = "import os, time\nfor _ in range(4):\n  if os.fork() == 0:\n    x = b'x' * (40 << 20)\n    time.sleep(100)\ntime.sleep(100)"
    await plain.write_file("kept", "kept")
    async with pool.sandbox() as other:
        start = time.monotonic()
        result = await plain.run_code(source)
        assert (result.outcome, result.state_lost) == ("memory", True)
        assert time.monotonic() - start < 5
        await works(other)
    await works(plain)
    assert await plain.read_file("kept") == b"kept"


async def test_memory_of_one_process_is_an_rlimit(plain: Sandbox) -> None:
    result = await plain.run_code("x = bytearray(10**9)")
    assert said(result) == ("memory", 1, None)
    assert "MemoryError" in result.stderr
    assert not result.state_lost


@pytest.mark.parametrize(
    "source",
    [
        "import os; os.memfd_create('m')",
        "import ctypes, os\nc = ctypes.CDLL(None, use_errno=True)\nif c.shmget(0, 1 << 20, 0o1600) < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))",
    ],
    ids=["memfd", "shm"],
)
async def test_memory_that_the_watchdog_would_not_see_is_refused(plain: Sandbox, source: str) -> None:
    result = await plain.run_code(source)
    assert said(result) == ("error", 1, None)
    assert "[Errno 1] Operation not permitted" in result.stderr
    await works(plain)


async def test_processes_are_counted_over_the_whole_sandbox(plain: Sandbox) -> None:
    fill = "import os, time\nn = 0\ntry:\n  while True:\n    if os.fork() == 0: time.sleep(1000)\n    n += 1\nexcept OSError as e: print(e)\nn"
    result = await plain.run_code(fill)
    assert "Resource temporarily unavailable" in result.stdout
    assert int(result.value or 0) <= 8
    assert len(pids(plain)) <= 9  # the warden is not the guest's
    result = await plain.run_command(["sh", "-c", "true & wait"])
    assert said(result) == ("error", 2, None)
    assert "Cannot fork" in result.stderr


async def test_a_sandbox_is_pinned_to_as_many_processors_as_it_may_use(pool: SandboxPool, plain: Sandbox) -> None:
    look = "import os; print(len(os.sched_getaffinity(0)), len(os.sched_getaffinity(1)))"
    share = int(pool.policy.limits.cpu_cores)
    assert (await plain.run_code(look)).stdout == f"{share} {share}\n"
    plain._box._brake()  # type: ignore[attr-defined] # the warden is given more while it ends a run; what it forks is not
    everything = len(os.sched_getaffinity(0))
    assert (await plain.run_command(["python3", "-c", look])).stdout == f"{share} {everything}\n"
    for stubborn in (False, True):
        ignore = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" if stubborn else ""
        result = await plain.run_code(f"{ignore}while True: pass", timeout_s=0.1)
        assert (result.outcome, result.state_lost) == ("timeout", stubborn)
        assert (await plain.run_code(look)).stdout == f"{share} {share}\n"
        assert (await plain.run_command(["python3", "-c", look])).stdout == f"{share} {share}\n"
    widen = "import os; os.sched_setaffinity(0, range(64))"
    assert "Operation not permitted" in (await plain.run_code(widen)).stderr


async def test_a_timeout_ends_everything_that_ran(plain: Sandbox) -> None:
    (warden,) = pids(plain) - {max(pids(plain))}
    source = "import os\nfor _ in range(2): os.fork()\nos.setsid() if os.getpid() > 2 else None\nwhile True: pass"
    run = asyncio.ensure_future(plain.run_code(source, timeout_s=0.3))
    await asyncio.sleep(0.2)
    before = pids(plain)
    assert len(before) == 5
    assert (await run).outcome == "timeout"
    assert await until(lambda: len(pids(plain)) <= 2, 0.2)
    assert warden in pids(plain)
    await works(plain)
