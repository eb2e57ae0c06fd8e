"""What a step prints, from wherever and however much."""

# ruff: noqa: E501 - programs for the guest, one per line

from __future__ import annotations

import pytest

from sandbox import Sandbox, SandboxPool

from ..boxes import policy, said, works

pytestmark = pytest.mark.asyncio(loop_scope="session")
MIB = 1 << 20
GIB = 1 << 30

TEXTS = {
    "unicode": ("print('é', '漢', '😀')", "é 漢 😀\n"),
    "nul": ("print('a\\0b')", "a\0b\n"),
    "invalid_utf8": ("import os; os.write(1, b'a\\xff\\xfeb')", "a\ufffd\ufffdb"),
    "escaped_byte": ("print('\\udcff')", "\ufffd\n"),
    "no_newline": ("print('x', end='')", "x"),
    "write": ("import sys; sys.stdout.write('w')", "w"),
    "buffer": ("import sys; sys.stdout.buffer.write(b'raw')", "raw"),
    "dunder": ("import sys; sys.__stdout__.write('d')", "d"),
    "opened": ("with open('/dev/stdout', 'w') as f: f.write('o')", "o"),
    "fd_object": ("import os; os.fdopen(1, 'w', closefd=False).write('f')", "f"),
    "child": ("import os, subprocess\nprint('1')\nsubprocess.run(['echo', '2'])\nprint('3')", "1\n2\n3\n"),
    "shell": ("import os; os.system('printf shell')", "shell"),
    "c_printf": ("import ctypes\nlibc = ctypes.CDLL(None)\nlibc.printf(b'from C')", "from C"),
    "c_puts": ("import ctypes; ctypes.CDLL(None).puts(b'line')", "line\n"),
    "thread": ("import threading\nt = threading.Thread(target=print, args=['t'])\nt.start(); t.join()", "t\n"),
    "fork": ("import os\np = os.fork()\nif not p:\n  print('c', flush=True); os._exit(0)\nos.waitpid(p, 0)", "c\n"),
    "fork_returns": ("import os\np = os.fork()\nif p: os.waitpid(p, 0)\nprint(bool(p))", "False\nTrue\n"),
    "fork_exits": (
        "import os, sys\np = os.fork()\nif not p: sys.exit(5)\nprint(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]))",
        "5\n"),
    "fork_raises": (
        "import os, sys\np = os.fork()\nif not p: sys.stderr = None; 1/0\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]))", "1\n"),
    "closed_then_printed": ("import os; os.close(1); print('late')", ""),
    "redirected": (
        "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()) as s: print('in')\nprint(len(s.getvalue()))",
        "3\n"),
    "dup_to_file": (
        "import os\nf = os.open('out', os.O_CREAT | os.O_RDWR)\nos.dup2(f, 1)\nprint('file', end='')", ""),
    "atexit_of_child": (
        "import multiprocessing as m\ndef f(): print('child', flush=True)\n"
        "p = m.get_context('fork').Process(target=f); p.start(); p.join()", "child\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
async def test_output_arrives(box: Sandbox, name: str) -> None:
    source, text = TEXTS[name]
    result = await box.run_code(source)
    if name == "closed_then_printed":
        assert result.outcome == "error"
        assert "Bad file descriptor" in result.stderr
    else:
        assert said(result) == ("ok", 0, None), result
        assert result.stdout == text
    await works(box)
    if name == "dup_to_file":
        assert await box.read_file("out") == b"file"


async def test_printed_lone_surrogate_is_an_error_as_in_python(box: Sandbox) -> None:
    result = await box.run_code("print('\\ud800')")
    assert said(result) == ("error", 1, None)
    assert "UnicodeEncodeError" in result.stderr
    await works(box)


async def test_a_thread_that_outlives_the_step_prints_into_the_next(box: Sandbox) -> None:
    source = (
        "import threading, time\ngo = threading.Event()\n"
        "def f():\n  go.wait(); print('late', flush=True); done.set()\n"
        "done = threading.Event()\nthreading.Thread(target=f).start()\nprint('now')"
    )
    assert (await box.run_code(source)).stdout == "now\n"
    assert (await box.run_code("go.set(); done.wait()")).stdout == "late\n"
    await works(box)


async def test_a_child_that_outlives_the_step_holds_nothing_up(box: Sandbox) -> None:
    result = await box.run_code("import subprocess; p = subprocess.Popen(['sleep', '60']); print('started')")
    assert said(result) == ("ok", 0, None)
    assert result.stdout == "started\n"
    assert result.usage.wall_s < 5
    assert (await box.run_code("p.poll() is None")).value == "True"
    await works(box)


async def test_output_is_cut_at_the_limit_and_the_rest_is_counted(box: Sandbox) -> None:
    for size in (MIB - 1, MIB, MIB + 1, 3 * MIB, 6 * MIB):
        result = await box.run_code(f"import sys; sys.stdout.write('x' * {size}); sys.stderr.write('y' * {size})")
        assert said(result) == ("ok", 0, None) or size == MIB - 1
        assert (len(result.stdout), len(result.stderr)) == (min(size, MIB),) * 2
        dropped = max(0, size - MIB)
        assert (result.truncated.stdout_bytes, result.truncated.stderr_bytes) == (dropped, dropped)
    await works(box)


async def test_ten_gigabytes_are_counted_exactly(box: Sandbox) -> None:
    source = "import os\nb = b'x' * (1 << 26)\nfor _ in range(160):\n  assert os.write(1, b) == len(b)\nprint('end')"
    result = await box.run_code(source)
    assert said(result) == ("ok", 0, None), result.stderr
    assert len(result.stdout) == MIB
    assert result.truncated.stdout_bytes == 10 * GIB + 4 - MIB
    await works(box)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_a_flood_from_a_child_that_does_not_end(box: Sandbox, stream: str) -> None:
    number = 1 if stream == "stdout" else 2
    result = await box.run_code(f"import os; os.system('tr \\\\\\\\0 x < /dev/zero >&{number}')", timeout_s=0.7)
    assert result.outcome == "timeout"
    assert len(getattr(result, stream)) == MIB
    assert getattr(result.truncated, f"{stream}_bytes") > 0
    assert result.usage.wall_s < 3
    await works(box)


async def test_a_flood_from_a_child_that_outlives_the_step(box: Sandbox) -> None:
    source = "import subprocess, time\np = subprocess.Popen('tr \\\\\\\\0 x < /dev/zero', shell=True)\ntime.sleep(0.3)"
    result = await box.run_code(source)
    assert result.outcome == "ok"
    assert len(result.stdout) == MIB
    assert result.usage.wall_s < 3
    second = await box.run_code("import time; time.sleep(0.3); p.poll()")
    assert second.outcome == "ok"
    assert len(second.stdout) == MIB
    third = await box.run_code("import os; os.system('killall tr 2>/dev/null'); os.kill(-1, 9)")
    assert third.outcome in ("ok", "error")
    await box.run_code("pass")
    await works(box)


async def test_a_flood_of_a_thread_during_the_step(box: Sandbox) -> None:
    source = (
        "import threading, os, time\nstop = False\n"
        "def f():\n  while not stop: os.write(1, b'z' * 65536)\n"
        "t = threading.Thread(target=f); t.start(); time.sleep(0.3); stop = True; t.join()"
    )
    result = await box.run_code(source)
    assert result.outcome == "ok"
    assert (len(result.stdout) + result.truncated.stdout_bytes) % 65536 == 0
    await works(box)


async def test_an_exception_text_of_100_mb_is_cut(box: Sandbox) -> None:
    result = await box.run_code("raise ValueError('x' * 100_000_000)")
    assert said(result) == ("error", 1, None)
    assert len(result.stderr) == MIB
    assert result.truncated.stderr_bytes > 98_000_000
    await works(box)


async def test_a_value_of_100_mb_is_cut(box: Sandbox) -> None:
    result = await box.run_code("'x' * 100_000_000")
    assert said(result) == ("ok", 0, None)
    assert result.value == "'" + "x" * 65535
    assert result.truncated.value_bytes == 100_000_002 - 65536
    result = await box.run_code("'é' * 100_000")
    assert result.value == "'" + "é" * 32767
    assert result.truncated.value_bytes == 200_002 - 65535
    await works(box)


async def test_policy_can_end_a_step_that_prints_too_much(nothing_is_left: str) -> None:
    async with SandboxPool(policy('[output]\non_limit = "end"')) as pool, pool.sandbox() as box:
        result = await box.run_code("while True: print('x' * 1000)")
        assert result.outcome == "output_limit"
        assert result.exit_code != 0
        assert len(result.stdout) == MIB
        await works(box)
