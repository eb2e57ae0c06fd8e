"""Time, memory, processes and files: limited exactly, said with the right word, and the others do not notice."""

# ruff: noqa: E501 - programs for the guest, one per line

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from sandbox import Sandbox, SandboxPool

from ..boxes import has_cgroups, pids, policy, said, tasks, until, works

pytestmark = pytest.mark.asyncio(loop_scope="session")
MIB = 1 << 20

ENDLESS = {
    "python": "while True: pass",
    "sleep": "import time; time.sleep(1000)",
    "c_code": "import itertools; sum(itertools.count())",
    "c_regex": "import re; re.match('(a*)*b', 'a' * 40)",
    "c_big_number": "10 ** 10 ** 8",
    "sleeping_child": "import subprocess; subprocess.run(['sleep', '1000'])",
    "system": "import os; os.system('sleep 1000')",
    "shell_loop": "import os; os.system('while true; do true; done')",
    "interrupt_caught": "import time\nwhile True:\n  try:\n    while True: time.sleep(0)\n  except KeyboardInterrupt: pass",
    "interrupt_ignored": "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
    "all_ignored": (
        "import signal\nfor i in range(1, 65):\n  try: signal.signal(i, signal.SIG_IGN)\n"
        "  except (OSError, ValueError): pass\nwhile True: pass"),
    "all_blocked": "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
    "child_ignores": "import subprocess; subprocess.run(['sh', '-c', 'trap \"\" INT TERM HUP; while true; do sleep 1; done'])",
    "stopped": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "stopped_child": "import os, signal\np = os.fork()\nif not p: os.kill(os.getpid(), signal.SIGSTOP)\nos.waitpid(p, 0)",
    "thread_spins": "import threading\ndef f():\n  while True: pass\nthreading.Thread(target=f).start()\nwhile True: pass",
    "thread_joined": "import threading, time\nt = threading.Thread(target=time.sleep, args=[1000]); t.start(); t.join()",
    "c_loop_in_thread": (
        "import threading, itertools\nt = threading.Thread(target=lambda: sum(itertools.count())); t.start(); t.join()"),
    "lock": "import threading; l = threading.Lock(); l.acquire(); l.acquire()",
    "fifo": "import os; os.mkfifo('f'); open('f')",
    "pause": "import signal; signal.pause()",
    "fork_and_spin": "import os\nfor _ in range(30):\n  try: os.fork()\n  except OSError: pass\nwhile True: pass",
    "vfork_daemon": (
        "import os, time\nif not os.fork():\n  os.setsid()\n  if not os.fork():\n    while True: pass\n  os._exit(0)\n"
        "while True: pass"),
    "repr": "class C:\n  def __repr__(self):\n    while True: pass\nC()",
    "str_of_exception": "class E(Exception):\n  def __str__(self):\n    while True: pass\nraise E",
    "str_of_exit": "class S:\n  def __str__(self):\n    while True: pass\nraise SystemExit(S())",
    "flush": "import sys\nclass S:\n  def flush(self):\n    while True: pass\nsys.stdout = S()",
    "del": "class D:\n  def __del__(self):\n    while True: pass\nx = D(); del x",
    "flush_swallows": (
        "import sys\nclass S:\n  def flush(self):\n    while True:\n      try:\n        while True: pass\n"
        "      except BaseException: pass\nsys.stdout = S()"),
    "io_loop": "import os\nr, w = os.pipe()\nwhile True: os.write(w, b'x'); os.read(r, 1)",
    "nice": "import os; os.nice(19)\nwhile True: pass",
    "asyncio": "import asyncio; asyncio.run(asyncio.sleep(1000))",
    "signal_handler_spins": (
        "import signal\ndef h(*a):\n  while True: pass\nsignal.signal(signal.SIGINT, h)\nwhile True: pass"),
    "timer_storm": "import signal; signal.signal(14, lambda *a: None); signal.setitimer(0, 1e-6, 1e-6)\nwhile True: pass",
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
async def test_hard_timeout_ends_everything_that_ran(box: Sandbox, name: str) -> None:
    await box.write_file("kept", "kept")
    (_warden,) = pids(box) - {max(pids(box))}
    task = asyncio.ensure_future(box.run_code(f"print('out')\n{ENDLESS[name]}", timeout_s=0.12))
    await asyncio.sleep(0.09)
    before = pids(box)
    result = await task
    assert result.outcome == "timeout", result
    assert result.exit_code != 0
    assert result.stdout.startswith("out\n")
    assert 0.12 <= result.usage.wall_s < 1.0
    await asyncio.sleep(0.1)
    survivors = pids(box) & before - {_warden}
    assert survivors == set() or (not result.state_lost and len(survivors) == 1)
    await works(box)
    assert await box.read_file("kept") == b"kept"
    assert not result.workspace_lost


async def test_interrupt_keeps_the_state(box: Sandbox) -> None:
    result = await box.run_code("x = 7\nimport time\ntime.sleep(100)", timeout_s=0.1)
    assert said(result) == ("timeout", 1, None)
    assert "KeyboardInterrupt" in result.stderr
    assert not result.state_lost
    assert (await box.run_code("x")).value == "7"


async def test_a_step_that_finishes_in_the_grace_period_is_still_late(box: Sandbox) -> None:
    result = await box.run_code(
        "import time\ntry: time.sleep(9)\nexcept KeyboardInterrupt: print('clean')", timeout_s=0.1
    )
    assert (result.outcome, result.stdout, result.state_lost) == ("timeout", "clean\n", False)
    assert result.exit_code != 0


async def test_cpu_limit_over_all_processes(shared_pool: SandboxPool) -> None:
    if not has_cgroups(shared_pool):
        pytest.skip("a limit that only a cpu cgroup can keep, and there is none: the pool does not start")
    async with SandboxPool(policy("[limits]\ncpu_s = 0.3\n")) as pool, pool.sandbox() as box:
        result = await box.run_code("while True: pass")
        assert result.outcome == "timeout"
        assert result.usage.cpu_s is not None
        assert 0.3 <= result.usage.cpu_s < 1.5
        await works(box)
        result = await box.run_code("import os; os.system('while true; do true; done')")
        assert result.outcome == "timeout"
        await works(box)
        assert (await box.run_code("import time; time.sleep(0.5)")).outcome == "ok"


BOMBS = {
    "fork": "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
    "fork_and_exit": "import os\nwhile True:\n  try:\n    if os.fork(): os._exit(0)\n  except OSError: pass",
    "shell": "import os; os.system('f() { f | f & }; f; sleep 100')",
    "threads": "import threading, time\nwhile True:\n  try: threading.Thread(target=time.sleep, args=[1000]).start()\n  except RuntimeError: pass",
    "fork_in_threads": (
        "import threading, os\ndef f():\n  while True:\n    try: os.fork()\n    except OSError: pass\n"
        "for _ in range(8): threading.Thread(target=f).start()\nf()"),
    "sessions": (
        "import os\ndef d():\n  while True:\n    try:\n      if os.fork() == 0: os.setsid()\n    except OSError: pass\nd()"),
    "stopped_children": (
        "import os, signal\nwhile True:\n  try:\n    if os.fork() == 0: signal.raise_signal(signal.SIGSTOP)\n  except OSError: pass"),
    "zombies": "import os\nwhile True:\n  try:\n    if os.fork() == 0: os._exit(0)\n  except OSError: pass",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
async def test_process_bomb_is_limited_and_ended(box: Sandbox, shared_pool: SandboxPool, name: str) -> None:
    warden = min(pids(box))
    task = asyncio.ensure_future(box.run_code(BOMBS[name], timeout_s=0.5))
    await asyncio.sleep(0.3)
    assert tasks(box) <= shared_pool.policy.limits.processes + 1
    async with shared_pool.sandbox() as other:
        await works(other)
    before = pids(box)
    result = await task
    # What multiplies by leaving its parent ends the interpreter itself.
    # A shell gives up when it cannot fork, and Python when it cannot start a thread.
    assert result.outcome in ("timeout", "exited", "ok", "error"), result
    assert result.usage.wall_s < 3
    assert not result.workspace_lost
    if result.outcome == "timeout":
        assert await until(lambda: pids(box) & before <= {warden} or len(pids(box)) == 2, 0.5)
    else:  # it ended by itself, and may have left children: ended with the sandbox
        await box.reset()
        assert await until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in before), 2.0)
    await works(box)


@pytest.mark.parametrize("name", ["fork", "threads", "stopped_children"])
async def test_process_bomb_of_a_command(box: Sandbox, name: str) -> None:
    await box.run_code("x = 1")
    result = await box.run_command(["python3", "-c", BOMBS[name]], timeout_s=0.4)
    assert result.outcome == "timeout"
    await works(box)
    if not result.state_lost:
        assert (await box.run_code("x")).value == "1"


async def test_no_pid_left_for_a_command_is_said(box: Sandbox, shared_pool: SandboxPool) -> None:
    fill = "import os, time\nn = 0\ntry:\n  while True:\n    if os.fork() == 0: time.sleep(1000)\n    n += 1\nexcept OSError: pass\nn"
    result = await box.run_code(fill)
    assert int(result.value or 0) >= 62
    if has_cgroups(shared_pool):
        result = await box.run_command(["true"], timeout_s=5)
        assert said(result) == ("error", 126, None)
        assert "Resource temporarily unavailable" in result.stderr
    else:  # RLIMIT_NPROC does not bind the warden, which forks the command; the command itself cannot fork
        result = await box.run_command(["sh", "-c", "true & wait"], timeout_s=5)
        assert said(result) == ("error", 2, None)
        assert "Cannot fork" in result.stderr
    assert (await box.run_code("while True: pass", timeout_s=0.1)).outcome == "timeout"
    await works(box)  # the dead are the interpreter's own children, and it is its task to ask for them
    await box.run_code("try:\n  while True: os.waitpid(-1, 0)\nexcept ChildProcessError: pass")
    assert said(await box.run_command(["true"])) == ("ok", 0, None)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def small(nothing_is_left: str) -> AsyncIterator[SandboxPool]:
    """Sandboxes with little of everything."""
    settings = (
        '[limits]\nmemory_bytes = "96 MiB"\nworkspace_bytes = "32 MiB"\nworkspace_files = 2000\n'
        'file_size_bytes = "16 MiB"\nwall_s = 20\n'
    )
    async with SandboxPool(policy(settings)) as pool:
        yield pool


MEMORY = {
    "one_big": ("x = bytearray(10**9)", "memory"),
    "small_chunks": ("x = []\nwhile True: x.append(bytearray(1000))", "memory"),
    "doubling": ("x = [1]\nwhile True: x += x", "memory"),
    "strings": ("x = 'a'\nwhile True: x += x", "memory"),
    "big_number": ("x = 1 << (8 * 10**9)", "memory"),
    "mmap": ("import mmap\nx = []\nwhile True:\n  m = mmap.mmap(-1, 1 << 20); m.write(b'x' * (1 << 20)); x.append(m)", "memory|error"),
    "mmap_shared": ("import mmap\nm = mmap.mmap(-1, 1 << 28)\nwhile True: m.write(b'x' * (1 << 20))", "memory|error"),
    "memfd": ("import os\nf = [os.memfd_create('m') for _ in range(20)]\nwhile True:\n  for x in f: os.write(x, b'x' * (1 << 20))", "memory|killed|error"),
    "pipes": ("import os, fcntl\nk = []\nwhile True:\n  r, w = os.pipe(); os.set_blocking(w, False); fcntl.fcntl(w, 1031, 1 << 20); k += [r, w]\n  os.write(w, b'x' * (1 << 20))", "error|memory"),
    "sockets": ("import socket\nk = []\nwhile True:\n  a, b = socket.socketpair(); a.setblocking(False); a.setsockopt(1, 7, 1 << 20); k += [a, b]\n  try:\n    while True: a.send(b'x' * 65536)\n  except BlockingIOError: pass", "error|memory"),
    "sparse_page_tables": ("import mmap\nk = []\nwhile True:\n  m = mmap.mmap(-1, 1 << 32, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000); k.append(m)\n  for i in range(0, 1 << 32, 1 << 21): m[i]", "error|memory"),
    "children": ("import os\nfor _ in range(5):\n  if os.fork() == 0:\n    x = bytearray(40 << 20)\n    for i in range(0, len(x), 4096): x[i] = 1\n    import time; time.sleep(100)\nimport time; time.sleep(0.5)\nraise SystemExit(0)", None),
    "file_locks": ("import fcntl, os\nf = os.open('l', os.O_CREAT | os.O_RDWR)\nfor i in range(5000): fcntl.lockf(f, fcntl.LOCK_EX, 1, 2 * i)", "ok|memory|error"),
    "timers": ("import ctypes\nt = ctypes.c_void_p()\nn = 0\nwhile ctypes.CDLL(None).timer_create(1, None, ctypes.byref(t)) == 0: n += 1\nassert n <= 512", "ok"),
    "recursion": ("def f(): f()\nimport sys; sys.setrecursionlimit(10**9); f()", "memory|killed|error"),
}  # fmt: skip


@pytest.mark.parametrize("name", MEMORY)
async def test_memory_bomb(small: SandboxPool, name: str) -> None:
    source, outcomes = MEMORY[name]
    async with small.sandbox() as box, small.sandbox() as other:
        await box.write_file("kept", "kept")
        result = await box.run_code(source)
        if outcomes is not None:
            assert str(result.outcome) in outcomes.split("|"), result
        assert result.usage.memory_peak_bytes is None or result.usage.memory_peak_bytes <= 96 * MIB
        assert not result.workspace_lost
        await works(other)
        await box.run_code("pass")
        await works(box)
        assert await box.read_file("kept") == b"kept"


DISK = {
    "workspace": "/workspace",
    "tmp": "/tmp",
    "shm": "/dev/shm",
}  # fmt: skip
FILL = """
import errno, os
n = size = 0
try:
    while True:
        n += 1
        with open(f'{PLACE}/big{n}', 'wb', buffering=0) as f:
            for _ in range(8): size += f.write(b'x' * (1 << 20))
except OSError as e:
    print(errno.errorcode[e.errno], size >> 20)
"""
MANY = """
import errno, os
try:
    for n in range(10**6): os.mknod(f'{PLACE}/f{n}')
except OSError as e:
    print(errno.errorcode[e.errno], n)
"""


@pytest.mark.parametrize("place", DISK.values())
async def test_full_disk_is_enospc(small: SandboxPool, place: str) -> None:
    async with small.sandbox() as box, small.sandbox() as other:
        result = await box.run_code(f"PLACE = {place!r}\n" + FILL)
        assert said(result) == ("ok", 0, None), result
        word, size = result.stdout.split()
        assert word == "ENOSPC"
        assert 30 <= int(size) <= 32
        await works(box)
        await other.write_file("free", b"x" * (16 * MIB))
        await works(other)


@pytest.mark.parametrize("place", DISK.values())
async def test_a_million_files_are_enospc(small: SandboxPool, place: str) -> None:
    async with small.sandbox() as box:
        result = await box.run_code(f"PLACE = {place!r}\n" + MANY)
        assert said(result) == ("ok", 0, None), result
        word, count = result.stdout.split()
        assert word == "ENOSPC"
        assert 1900 <= int(count) <= 2000
        await works(box)


async def test_file_larger_than_the_limit_is_efbig(small: SandboxPool) -> None:
    async with small.sandbox() as box:
        source = "import signal, os; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nf = open('big', 'wb')\nf.truncate(1 << 40)"
        result = await box.run_code(source)
        assert "[Errno 27] File too large" in result.stderr
        await works(box)


async def test_workspace_and_heap_together_are_memory(small: SandboxPool) -> None:
    async with small.sandbox() as box:
        await box.run_code("PLACE = '/workspace'\n" + FILL)
        result = await box.run_code("x = []\nwhile True: x.append(bytearray(1 << 20))")
        assert result.outcome == "memory"
        assert not result.workspace_lost
        await works(box)


async def test_workspace_as_large_as_the_memory_does_not_end_the_sandbox(nothing_is_left: str) -> None:
    settings = '[limits]\nmemory_bytes = "64 MiB"\nworkspace_bytes = "256 MiB"\n'
    async with SandboxPool(policy(settings)) as pool, pool.sandbox() as box:
        result = await box.run_code("PLACE = '/workspace'\n" + FILL)
        assert result.outcome in ("ok", "memory"), result
        await works(box)
        assert (await box.run_command(["ls"])).outcome in ("ok", "memory")
        await works(box)


async def test_guest_that_makes_the_kernel_end_its_warden_first(small: SandboxPool) -> None:
    """It may make itself as likely a victim as the warden, and hide its memory: the loss is its own, and is said."""
    source = (
        "import os\nopen('/proc/self/oom_score_adj', 'w').write('0')\nfor _ in range(30):\n  if os.fork() == 0: break\n"
        "f = [os.memfd_create('m') for _ in range(3)]\nwhile True:\n  for x in f: os.write(x, b'x' * 65536)"
    )
    if not has_cgroups(small):
        pytest.skip("no memory can be hidden where no cgroup counts it: see test_without_cgroups")
    async with small.sandbox() as box, small.sandbox() as other:
        await box.write_file("f", "x")
        result = await box.run_code(source, timeout_s=10)
        assert result.outcome in (
            "memory",
            "timeout",
        )  # the kernel kills one of thirty at a time, for as long as it takes
        assert result.state_lost
        assert [entry.path for entry in await box.list_files()] == ([] if result.workspace_lost else ["f"])
        await works(box)
        await works(other)


async def test_open_files_are_limited(box: Sandbox) -> None:
    source = "import os, errno\nk = []\ntry:\n  while True: k.append(os.open('/dev/null', 0))\nexcept OSError as e: print(e.errno == errno.EMFILE, len(k) < 256)"
    assert (await box.run_code(source)).stdout == "True True\n"
    await works(box)


async def test_a_busy_sandbox_does_not_stop_the_others(shared_pool: SandboxPool) -> None:
    async with shared_pool.sandbox() as busy, shared_pool.sandbox() as other:
        task = asyncio.ensure_future(busy.run_code(BOMBS["threads"], timeout_s=1))
        for _ in range(20):
            await works(other)
            await asyncio.sleep(0.02)
        assert (await task).outcome == "timeout"


async def test_core_dumps_are_off(box: Sandbox) -> None:
    result = await box.run_code(
        "import os, resource; print(resource.getrlimit(resource.RLIMIT_CORE), flush=True); os.abort()"
    )
    assert (result.outcome, result.stdout) == ("killed", "(0, 0)\n")
    assert [entry.path for entry in await box.list_files()] == []


async def test_deadline_is_kept_by_the_host_when_the_loop_is_busy_elsewhere(box: Sandbox) -> None:
    start = time.monotonic()
    result = await box.run_code("while True: pass", timeout_s=0.05)
    assert result.outcome == "timeout"
    assert time.monotonic() - start < 1.0
    assert os.getpid()
