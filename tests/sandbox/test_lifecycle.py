"""Beginnings and ends: of sandboxes, pools, servers, and of whoever is killed in the middle."""

# ruff: noqa: E501 - programs for the guest, one per line

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from sandbox import CapacityError, PolicyError, Sandbox, SandboxClosed, SandboxDied, SandboxPool

from ..boxes import groups_of, leftovers, pids, policy, until, works

pytestmark = pytest.mark.asyncio(loop_scope="session")


# Close, cancel, reset.


async def test_close_in_the_middle_of_a_run_ends_it_and_says_so(shared_pool: SandboxPool) -> None:
    box = await shared_pool.open()
    before = shared_pool.live
    run = asyncio.ensure_future(box.run_code("while True: pass"))
    second = asyncio.ensure_future(box.run_code("1"))
    await asyncio.sleep(0.05)
    inside = pids(box)
    await box.close()
    for task in (run, second):
        with pytest.raises(SandboxClosed):
            await task
    assert shared_pool.live == before - 1
    assert await until(lambda: not any(map(psutil.pid_exists, inside)), 0.5)
    await box.close()


async def test_calls_after_close_are_refused(shared_pool: SandboxPool) -> None:
    box = await shared_pool.open()
    await box.close()
    assert box.closed
    calls: list[Any] = [
        box.run_code("1"), box.run_command(["true"]), box.read_file("f"), box.write_file("f", ""), box.list_files(), box.reset(),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(SandboxClosed):
            await call


@pytest.mark.parametrize("after_s", [0, 0.0005, 0.02])
async def test_cancelled_run_ends_the_sandbox(box: Sandbox, after_s: float) -> None:
    inside = pids(box)
    run = asyncio.ensure_future(box.run_code("while True: pass"))
    await asyncio.sleep(after_s)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    if not after_s:  # it had not begun
        return
    assert await until(lambda: not any(map(psutil.pid_exists, inside)), 0.5)
    with pytest.raises(SandboxDied, match="given up"):
        await box.run_code("1")
    await box.reset()
    await works(box)


async def test_concurrent_calls_run_one_after_another(box: Sandbox) -> None:
    source = "import time\nopen('log', 'a').write('<'); time.sleep(0.01); open('log', 'a').write('>')"
    await asyncio.gather(*(box.run_code(source) for _ in range(5)))
    assert await box.read_file("log") == b"<>" * 5


LEAVE = """
import os, random, signal, socket, subprocess, threading, time
from multiprocessing.shared_memory import SharedMemory
x = 1
open('f', 'w'); open('/tmp/t', 'w'); open('/dev/shm/s', 'w')
os.chdir('/tmp'); os.umask(0); os.environ['LEFT'] = '1'
p = subprocess.Popen(['setsid', 'sleep', '1000']) if os.path.exists('/usr/bin/setsid') else subprocess.Popen(['sleep', '1000'])
m = SharedMemory(create=True, size=10, name='left')
s = socket.socket(socket.AF_UNIX); s.bind('\\0left'); s.listen()
u = socket.socket(socket.AF_UNIX); u.bind('/tmp/sock'); u.listen()
threading.Thread(target=time.sleep, args=[1000], daemon=True).start()
signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.setitimer(signal.ITIMER_REAL, 1000)
random.seed(1)
"""
LOOK = """
import os, random, signal, socket, sys, threading
def abstract():
    s = socket.socket(socket.AF_UNIX)
    try: s.connect('\\0left')
    except OSError as e: return e.errno
facts = [
    'x' in globals(), os.listdir('/workspace'), os.listdir('/tmp'), os.listdir('/dev/shm'), os.getcwd(), os.umask(0o22),
    'LEFT' in os.environ, abstract(), threading.active_count(), signal.getsignal(15) == signal.SIG_DFL,
    signal.getitimer(signal.ITIMER_REAL), sorted(int(n) for n in os.listdir('/proc') if n.isdigit()),
    'subprocess' in sys.modules and sys.modules['subprocess']._active,
]
facts
"""
FRESH = "[False, [], [], [], '/workspace', 18, False, 111, 1, True, (0.0, 0.0), [1, 2], "


async def test_reset_is_as_good_as_new(box: Sandbox) -> None:
    fresh = (await box.run_code(LOOK)).value
    assert fresh is not None
    assert fresh.startswith(FRESH)
    inside = pids(box)
    await box.reset()
    assert (await box.run_code(LEAVE)).outcome == "ok"
    old = pids(box)
    await box.reset()
    assert (await box.run_code(LOOK)).value == fresh
    assert await until(lambda: not any(map(psutil.pid_exists, (inside | old) - pids(box))), 0.5)


async def test_random_state_differs_between_sandboxes(shared_pool: SandboxPool) -> None:
    source = "import random, uuid, secrets, os, tempfile; random.random(), str(uuid.uuid4()), secrets.token_hex(), tempfile.mktemp()"
    values = []
    for _ in range(3):
        async with shared_pool.sandbox() as box:
            values.append((await box.run_code(source)).value)
            await box.run_code("import os; os._exit(0)")
            values.append((await box.run_code(source)).value)
            await box.reset()
            values.append((await box.run_code(source)).value)
    assert len(set(values)) == 9


async def test_seed_makes_random_repeat(shared_pool: SandboxPool) -> None:
    values = set()
    for seed in (7, 7, 8):
        async with shared_pool.sandbox(seed=seed) as box:
            values.add((await box.run_code("import random; random.random()")).value)
            await box.reset(seed=7)
            values.add((await box.run_code("import random; random.random()")).value)
    assert len(values) == 2


@pytest.mark.parametrize("seed", ["1", 1.5, True, b"1"])
async def test_seed_of_a_wrong_type_is_refused(box: Sandbox, shared_pool: SandboxPool, seed: Any) -> None:
    with pytest.raises(PolicyError, match="seed must be a whole number"):
        await box.reset(seed=seed)
    with pytest.raises(PolicyError, match="seed must be a whole number"):
        await shared_pool.open(seed=seed)
    await works(box)


@pytest.mark.parametrize("seed", [0, -1, 2**70])
async def test_any_whole_number_is_a_seed(shared_pool: SandboxPool, seed: int) -> None:
    async with shared_pool.sandbox(seed=seed) as box:
        await works(box)


# Time and capacity.


async def test_idle_and_lifetime_close_a_sandbox_by_themselves(nothing_is_left: str) -> None:
    async with SandboxPool(policy("[limits]\nidle_s = 0.3\nlifetime_s = 0.9\n")) as pool:
        box = await pool.open()
        inside = pids(box)
        assert (await box.run_code("import time; time.sleep(0.5)")).outcome == "ok"
        assert await until(lambda: box.closed, 2)
        assert pool.live == 0
        with pytest.raises(SandboxClosed, match=r"limits\.idle_s = 0\.3 is over"):
            await box.run_code("1")
        assert await until(lambda: not any(map(psutil.pid_exists, inside)), 0.5)
        async with pool.sandbox() as long:
            with pytest.raises(SandboxClosed, match=r"limits\.lifetime_s = 0\.9 is over"):
                await long.run_code("import time; time.sleep(10)")


async def test_capacity(nothing_is_left: str) -> None:
    async with SandboxPool(policy("[pool]\nmax_sandboxes = 2\n")) as pool:
        first, second = await pool.open(), await pool.open()
        with pytest.raises(CapacityError, match="all 2 sandboxes are in use"):
            await pool.open()
        await first.reset()
        await works(first)
        await first.close()
        third = await pool.open()
        await works(third)
        with pytest.raises(CapacityError):
            await pool.open()
        await asyncio.gather(second.close(), third.close())
        assert pool.live == 0


async def test_failed_open_gives_its_place_back(nothing_is_left: str) -> None:
    async with SandboxPool(policy("[pool]\nmax_sandboxes = 1\nready = 0\n")) as pool:
        await (await pool.open()).close()
        for _ in range(3):
            opening = asyncio.ensure_future(pool.open())
            await asyncio.sleep(0)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
        async with pool.sandbox() as box:
            await works(box)


async def test_closed_pool_refuses(nothing_is_left: str) -> None:
    pool = SandboxPool(policy())
    with pytest.raises(SandboxClosed):
        await pool.open()
    await pool.start()
    box = await pool.open()
    opening = asyncio.ensure_future(pool.open())
    more = [asyncio.ensure_future(pool.open()) for _ in range(5)]
    await asyncio.sleep(0)
    await pool.close()
    done, pending = await asyncio.wait((opening, *more), timeout=2)
    assert not pending
    for task in done:
        if task.exception() is not None:
            assert isinstance(task.exception(), SandboxClosed | SandboxDied)
        else:
            assert task.result().closed
    with pytest.raises(SandboxClosed):
        await box.run_code("1")
    await pool.close()


async def test_pools_side_by_side(shared_pool: SandboxPool) -> None:
    async with SandboxPool(policy()) as other, other.sandbox() as box, shared_pool.sandbox() as mine:
        await works(box)
        await works(mine)


# Who is killed.


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


async def test_warden_killed(box: Sandbox, shared_pool: SandboxPool) -> None:
    inside = pids(box)
    run = asyncio.ensure_future(box.run_code("while True: pass"))
    await asyncio.sleep(0.02)
    os.kill(min(inside), signal.SIGKILL)
    with pytest.raises(SandboxDied):
        await run
    with pytest.raises(SandboxDied):
        await box.run_code("1")
    assert await until(lambda: not any(map(psutil.pid_exists, inside)), 0.5)
    async with shared_pool.sandbox() as other:
        await works(other)
    await box.reset()
    await works(box)


async def _heals(pool: SandboxPool, within_s: float = 5.0) -> None:
    """A box that the dying jail has left may be handed out until its end is seen; then there are only new ones."""
    deadline = time.monotonic() + within_s
    working = 0
    while working < 3:
        async with pool.sandbox() as other:
            try:
                await works(other)
                working += 1
            except SandboxDied:
                assert time.monotonic() < deadline, "the pool does not heal"


@pytest.mark.parametrize("victim", ["nsjail", "zygote"])
async def test_pool_heals_when_its_jail_is_killed(shared_pool: SandboxPool, victim: str) -> None:
    async with SandboxPool(policy()) as pool, pool.sandbox() as box, shared_pool.sandbox() as undisturbed:
        nsjail = pool.driver._zygote.process.pid  # type: ignore[attr-defined]
        below = _descendants(nsjail)
        run = asyncio.ensure_future(box.run_code("while True: pass"))
        await asyncio.sleep(0.02)
        os.kill(nsjail if victim == "nsjail" else below[0].pid, signal.SIGKILL)
        with pytest.raises(SandboxDied):
            await run
        with pytest.raises(SandboxDied):
            await box.run_code("1")
        await _heals(pool)
        await box.reset()
        await works(box)
        assert await until(lambda: not any(process.is_running() for process in below), 2)
        await works(undisturbed)


async def test_opening_while_the_jail_dies(nothing_is_left: str) -> None:
    async with SandboxPool(policy()) as pool:
        os.kill(pool.driver._zygote.process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        opened = await asyncio.wait_for(asyncio.gather(*(pool.open() for _ in range(8)), return_exceptions=True), 10)
        for one in opened:
            if isinstance(one, Sandbox):
                await asyncio.wait_for(asyncio.wait([asyncio.ensure_future(one.run_code("1"))]), 5)
            else:
                assert isinstance(one, SandboxDied)
        async with pool.sandbox() as box:
            await works(box)


SERVER = """
import asyncio, sys, tempfile
tempfile.tempdir = sys.argv[1]
from sandbox import Policy, SandboxPool
async def main():
    async with SandboxPool(Policy.loads(sys.argv[2])) as pool:
        boxes = [await pool.open() for _ in range(5)]
        tasks = [asyncio.ensure_future(box.run_code("import os\\nos.fork()\\nwhile True: pass")) for box in boxes]
        await asyncio.sleep(0.1)
        print("up", flush=True)
        await asyncio.gather(*tasks)
asyncio.run(main())
"""


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two looks
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
async def test_nothing_is_left_when_the_server_is_killed(nothing_is_left: str, number: int) -> None:
    tmp_path = Path(nothing_is_left) / f"server-{number:d}"
    tmp_path.mkdir(mode=0o711)
    text = "[template]\nlibraries = []\n"
    command = [sys.executable, "-c", SERVER, str(tmp_path), text]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as server:
        assert server.stdout is not None
        assert await asyncio.to_thread(server.stdout.readline) == b"up\n"
        below = _descendants(server.pid)
        assert len(below) > 15
        server.send_signal(number)
        await asyncio.to_thread(server.wait)

    def left() -> list[object]:
        return [
            *filter(_lives, below),
            *groups_of(server.pid), *tmp_path.iterdir(),
        ]  # fmt: skip

    assert await until(lambda: not left(), 2.0), left()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    tmp_path.rmdir()


# Nothing is kept.


@pytest_asyncio.fixture(loop_scope="session")
async def strict() -> AsyncIterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert not [str(warning.message) for warning in caught if issubclass(warning.category, ResourceWarning)]


def _held(pool: SandboxPool) -> dict[str, int]:
    cgroups = pool.driver.cgroups  # type: ignore[attr-defined]
    slots = 0 if cgroups is None else len(cgroups._busy) + len(cgroups._dirty) + sum(map(len, cgroups._free.values()))
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "tasks": len(asyncio.all_tasks()),
        "boxes": len(pool.driver._boxes),  # type: ignore[attr-defined]
        "slots": slots,
        "processes": len(_descendants(os.getpid())),
    }


async def test_two_hundred_sandboxes_leave_nothing(strict: None, nothing_is_left: str) -> None:
    others = set(leftovers(nothing_is_left))
    async with SandboxPool(policy("[pool]\nready = 2\n")) as pool:

        async def cycle(number: int) -> None:
            async with pool.sandbox() as box:
                source = "open('f', 'wb').write(b'x' * 5_000_000); print(1)"
                assert (await box.run_code(source)).stdout == "1\n"
                if number % 5 == 0:
                    await box.run_command(["true"])
                    await box.write_file("g", "x")
                if number % 7 == 0:
                    assert (await box.run_code("import os; os._exit(1)")).outcome == "exited"
                if number % 11 == 0:
                    assert (await box.run_code("while True: pass", timeout_s=0.01)).outcome == "timeout"
                if number % 13 == 0:
                    await box.reset()

        async def settled() -> dict[str, int]:
            await until(lambda: len(pool._ready) == 2 and len(pool.driver._boxes) == 2 and not pool._tasks)  # type: ignore[attr-defined]
            return _held(pool)

        for number in range(30):
            await cycle(number)
        before = await settled()
        for number in range(200):
            await cycle(number)
        after = await settled()
        more_slots = after.pop("slots") - before.pop("slots")
        assert more_slots <= 2  # one may be busy dying for longer than another
        assert after.pop("descriptors") - before.pop("descriptors") <= 7 * max(0, more_slots)
        assert after == before
    assert set(leftovers(nothing_is_left)) <= others


async def test_blocking_form(nothing_is_left: str) -> None:
    def script() -> str:
        with Sandbox.open(policy()) as box:
            box.write_file("f", "x")
            assert box.read_file("f") == b"x"
            assert [entry.path for entry in box.list_files()] == ["f"]
            assert box.run_command(["cat", "f"]).stdout == "x"
            box.reset()
            return box.run_code("print(6 * 7)").stdout

    threads = threading.active_count()
    assert await asyncio.to_thread(script) == "42\n"
    assert await until(lambda: threading.active_count() <= threads + 1)


async def test_time_is_not_lost_by_a_timer_that_stays() -> None:
    """A closed sandbox leaves no timer that would keep it in memory for a day."""
    async with SandboxPool(policy()) as pool:
        box = await pool.open()
        await box.close()
        assert box._timer.cancelled()
        assert time.monotonic()


async def test_making_that_is_cut_short_shares_nothing_with_the_next_box(nothing_is_left: str) -> None:
    """Its warden is forked all the same; it must be gone before its cgroup and its ids are given to another."""
    async with SandboxPool(policy("[pool]\nready = 0\n")) as pool:
        for turns in (1, 2, 3) * 10:
            making = asyncio.ensure_future(pool.driver.create())
            for _ in range(turns):
                await asyncio.sleep(0)
            making.cancel()
            await asyncio.wait([making])
            assert making.cancelled()
            box = await pool.open()
            slot = box._box.slot  # type: ignore[attr-defined]
            assert slot is None or slot.tasks() == 2
            await works(box)
            await box.close()
