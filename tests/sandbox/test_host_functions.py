"""Functions of the host that guest code calls; and guests that forge what they send."""

# ruff: noqa: E501 - programs for the guest, one per line

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from sandbox import PolicyError, Result, Sandbox, SandboxPool

from ..boxes import policy, works

pytestmark = pytest.mark.asyncio(loop_scope="session")

POLICY = """
[host_functions]
names = ["echo", "slow", "fails", "blocks", "odd", "unset", "count"]
max_calls_per_step = 50
max_bytes = "64 KiB"
timeout_s = 0.3
"""
calls: list[Any] = []


async def echo(*args: Any, **kwargs: Any) -> Any:
    return [list(args), kwargs]


async def slow(seconds: float = 10.0) -> str:
    await asyncio.sleep(seconds)
    return "slept"


def fails(kind: str) -> None:
    raise {"value": ValueError, "key": KeyError, "timeout": TimeoutError}[kind]("told")


def blocks(seconds: float) -> bool:
    time.sleep(seconds)
    return threading.current_thread() is threading.main_thread()


def odd(what: str) -> Any:
    return {
        "set": {1}, "nan": float("nan"), "big": "x" * 70_000, "deep": _deep(), "bytes": b"x", "surrogate": "\ud800",
        "none": None, "keys": {1: 2}, "object": object(),
    }[what]  # fmt: skip


def _deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


def count() -> int:
    calls.append(1)
    return len(calls)


FUNCTIONS = {"echo": echo, "slow": slow, "fails": fails, "blocks": blocks, "odd": odd, "count": count}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pool(nothing_is_left: str) -> AsyncIterator[SandboxPool]:
    async with SandboxPool(policy(POLICY)) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def box(pool: SandboxPool) -> AsyncIterator[Sandbox]:
    async with pool.sandbox(functions=FUNCTIONS) as sandbox:
        yield sandbox


async def test_arguments_and_result_are_json(box: Sandbox) -> None:
    result = await box.run_code("echo(1, 2.5, None, True, 'é\\0', [1], k={'a': []})")
    assert result.value == "[[1, 2.5, None, True, 'é\\x00', [1]], {'k': {'a': []}}]"
    assert (await box.run_code("echo((1, 2))")).value == "[[[1, 2]], {}]"
    await works(box)


REFUSED = {
    "echo({1})": "TypeError: Object of type set is not JSON serializable",
    "fails('value')": "HostFunctionError: fails(): ValueError: told",
    "fails('key')": "HostFunctionError: fails(): KeyError: 'told'",
    "fails('timeout')": "HostFunctionError: fails(): TimeoutError: told",
    "fails()": "HostFunctionError: fails(): TypeError: ",
    "slow()": "HostFunctionError: slow(): no answer within 0.3 s",
    "blocks(1)": "HostFunctionError: blocks(): no answer within 0.3 s",
    "odd('set')": "HostFunctionError: odd(): the result is not JSON: ",
    "odd('nan')": "HostFunctionError: odd(): the result is not JSON: ",
    "odd('bytes')": "HostFunctionError: odd(): the result is not JSON: ",
    "odd('object')": "HostFunctionError: odd(): the result is not JSON: ",
    "odd('deep')": "HostFunctionError: odd(): the result is not JSON: ",
    "odd('big')": "HostFunctionError: odd(): the result is larger than 65536 bytes",
    "echo('x' * 70_000)": "HostFunctionError: echo(): the arguments are larger than 65536 bytes",
    "unset()": "NameError: name 'unset' is not defined",
}


@pytest.mark.parametrize("call", REFUSED)
async def test_what_goes_wrong_is_an_exception_in_the_guest(box: Sandbox, call: str) -> None:
    result = await box.run_code(f"x = 1\ntry:\n  {call}\nexcept RuntimeError as e: pass\n{call}")
    assert result.outcome == "error"
    assert REFUSED[call] in result.stderr
    assert "interpreter.py" not in result.stderr
    assert (await box.run_code("x, echo(2)")).value == "(1, [[2], {}])"
    await works(box)


async def test_synchronous_function_does_not_hold_up_the_loop(box: Sandbox) -> None:
    step = asyncio.ensure_future(box.run_code("blocks(0.2)"))
    worst, last = 0.0, time.monotonic()
    while not step.done():
        await asyncio.sleep(0.005)
        worst, last = max(worst, time.monotonic() - last), time.monotonic()
    assert (await step).value == "False"
    assert worst < 0.15


async def test_calls_of_one_step_are_counted(box: Sandbox) -> None:
    calls.clear()
    source = "n = 0\nfor _ in range(200):\n  try: count(); n += 1\n  except RuntimeError as e: last = e\nn, str(last)"
    result = await box.run_code(source)
    assert result.value == "(50, 'count(): more than 50 calls in one step')"
    assert len(calls) == 50
    assert (await box.run_code("count()")).value == "51"
    await works(box)


async def test_calls_from_threads_get_their_own_answers(box: Sandbox) -> None:
    source = (
        "from concurrent.futures import ThreadPoolExecutor as P\n"
        "with P(8) as p: r = list(p.map(lambda i: echo(i)[0][0], range(40)))\nr == list(range(40))"
    )
    assert (await box.run_code(source)).value == "True"


async def test_call_between_steps_is_refused(box: Sandbox) -> None:
    source = (
        "import threading, time\nfound = []\n"
        "def f():\n  time.sleep(0.1)\n  try: found.append(echo(1))\n  except RuntimeError as e: found.append(str(e))\n"
        "t = threading.Thread(target=f); t.start()"
    )
    await box.run_code(source)
    await asyncio.sleep(0.3)
    assert "can be called only by a step while it runs" in str((await box.run_code("found")).value)
    await works(box)


async def test_call_in_a_child_process_is_refused(box: Sandbox) -> None:
    source = "import os\nif not os.fork():\n  try: echo(1)\n  except RuntimeError: os._exit(7)\n  os._exit(0)\nos.wait()[1] >> 8"
    assert (await box.run_code(source)).value == "7"
    await works(box)


async def test_thread_that_waits_for_an_answer_when_the_step_is_over(box: Sandbox) -> None:
    source = "import threading\nthreading.Thread(target=lambda: print(slow(0.1), flush=True)).start()\n'done'"
    result = await box.run_code(source)
    assert (result.outcome, result.value) == ("ok", "'done'")
    await works(box)


async def test_call_that_a_signal_of_the_guest_interrupts_does_not_mix_up_answers(box: Sandbox) -> None:
    source = (
        "import signal\nclass T(Exception): pass\ndef h(*a): raise T\nsignal.signal(signal.SIGALRM, h)\n"
        "bad = 0\n"
        "for i in range(40):\n"
        "  try:\n"
        "    try: signal.setitimer(signal.ITIMER_REAL, 0.0002 * (i % 5) + 1e-5); bad += echo(i)[0] != [i]\n"
        "    finally: signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "  except T: pass\n"
        "bad, echo('last')"
    )
    result = await box.run_code(source)
    assert result.value == "(0, [['last'], {}])", result
    await works(box)


async def test_timeout_in_the_middle_of_a_call_keeps_the_state(box: Sandbox) -> None:
    await box.run_code("x = 3")
    result = await box.run_code("slow()", timeout_s=0.1)
    assert (result.outcome, result.state_lost) == ("timeout", False)
    assert (await box.run_code("x, echo(x)")).value == "(3, [[3], {}])"
    await works(box)


async def test_functions_are_there_after_the_interpreter_was_replaced_and_after_reset(box: Sandbox) -> None:
    await box.run_code("import os; os._exit(1)")
    assert (await box.run_code("echo(1)")).value == "[[1], {}]"
    await box.reset()
    assert (await box.run_code("echo(2)")).value == "[[2], {}]"


async def test_functions_that_the_policy_does_not_name_are_refused(pool: SandboxPool) -> None:
    with pytest.raises(PolicyError, match="other"):
        await pool.open(functions={"other": echo})


FIND_CHANNEL = """
import os, socket, stat, struct, threading
def sockets():
    for n in range(3, 256):
        try:
            if stat.S_ISSOCK(os.fstat(n).st_mode): yield n
        except OSError: pass
(c,) = sockets()
def frame(kind, body): os.write(c, struct.pack('<BI', kind, len(body)) + body)
"""
FORGED = {
    "done_early": "frame(17, b'{\"outcome\": \"ok\", \"number\": 2}')\nwhile True: pass",
    "done_twice": "frame(17, b'{\"outcome\": \"ok\", \"number\": 2}')\nframe(17, b'{\"outcome\": \"ok\", \"number\": 2}')",
    "done_of_another": "frame(17, b'{\"outcome\": \"ok\", \"number\": 9}')",
    "done_no_number": "frame(17, b'{\"outcome\": \"ok\"}')",
    "done_bad_outcome": "frame(17, b'{\"outcome\": \"killed\", \"number\": 2}')",
    "done_list_outcome": "frame(17, b'{\"outcome\": [], \"number\": 2}')",
    "done_bad_code": "frame(17, b'{\"outcome\": \"ok\", \"number\": 2, \"exit_code\": 1e400}')",
    "done_bad_value": "frame(17, b'{\"outcome\": \"ok\", \"number\": 2, \"value\": 7}')",
    "done_long_value": "frame(17, b'{\"outcome\": \"ok\", \"number\": 2, \"value\": \"' + b'x' * 66000 + b'\"}')",
    "done_surrogate": "frame(17, b'{\"outcome\": \"ok\", \"number\": 2, \"value\": \"\\\\ud800\"}')\nos._exit(0)",
    "done_bad_threads": "frame(17, b'{\"outcome\": \"ok\", \"number\": 2, \"threads\": -1}')",
    "done_true": "frame(17, b'{\"outcome\": \"ok\", \"number\": true}')",
    "ready": "frame(16, b'{}')",
    "unknown_kind": "frame(99, b'{}')",
    "warden_kind": "frame(64, b'{\"exit_code\": 0}')",
    "not_json": "frame(17, b'\\xff\\xfe{')",
    "not_object": "frame(17, b'[]')",
    "deep": "frame(17, b'[' * 60000)",
    "digits": "frame(17, b'{\"number\": ' + b'9' * 60000 + b'}')",
    "huge_length": "os.write(c, struct.pack('<BI', 17, 2**32 - 1))",
    "random": "os.write(c, os.urandom(100_000))",
    "zeros": "os.write(c, bytes(100_000))",
    "half_a_frame": "os.write(c, struct.pack('<BI', 17, 100) + b'{')\nwhile True: pass",
    "call_unknown": "frame(18, b'{\"name\": \"exit\", \"number\": 1}')",
    "call_unhashable": "frame(18, b'{\"name\": [\"echo\"], \"number\": 1}')",
    "call_bad_args": "frame(18, b'{\"name\": \"echo\", \"args\": 3, \"number\": 1}')",
    "call_bad_kwargs": "frame(18, b'{\"name\": \"echo\", \"kwargs\": [1], \"number\": 1}')",
    "call_dunder": "frame(18, b'{\"name\": \"__class__\", \"number\": {}}')",
    "call_flood": "for _ in range(20000): frame(18, b'{\"name\": \"odd\", \"args\": [\"big\"], \"number\": 1}')",
    "call_flood_threads": "for _ in range(5000): frame(18, b'{\"name\": \"blocks\", \"args\": [0.01], \"number\": 1}')",
    "shutdown": "socket.socket(fileno=os.dup(c)).shutdown(2)",
    "shutdown_write": "socket.socket(fileno=os.dup(c)).shutdown(1)",
    "shutdown_read": "socket.socket(fileno=os.dup(c)).shutdown(0)",
    "steal_requests": "def f():\n  while True: os.read(c, 100)\nthreading.Thread(target=f, daemon=True).start()",
    "thread_sends_later": "threading.Timer(0.02, frame, [17, b'{}']).start()",
    "descriptor": "s = socket.socket(fileno=os.dup(c)); socket.send_fds(s, [b'x' * 5], [0] * 5)",
    "fill": "os.set_blocking(c, False)\ntry:\n  while True: os.write(c, bytes(65536))\nexcept OSError: pass",
    "own_buffer": "s = socket.socket(fileno=os.dup(c)); s.setsockopt(1, 7, 1)",
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
async def test_guest_that_forges_frames_harms_itself_only(box: Sandbox, pool: SandboxPool, name: str) -> None:
    assert (await box.run_code(FIND_CHANNEL)).outcome == "ok"
    async with pool.sandbox(functions=FUNCTIONS) as other:
        result = await box.run_code(FORGED[name], timeout_s=1)
        assert isinstance(result, Result)
        (result.value or "").encode()
        await works(other)
    for _ in range(3):
        await asyncio.sleep(0.02)
        assert isinstance(await box.run_code("1", timeout_s=0.5), Result)
    await box.reset()
    await works(box)
    assert (await box.run_code("echo(1)")).value == "[[1], {}]"


async def test_forged_report_is_not_taken_for_that_of_the_next_step(box: Sandbox) -> None:
    await box.run_code(FIND_CHANNEL)
    forged = 'frame(17, b\'{"outcome": "ok", "number": 3, "value": "forged"}\')'
    result = await box.run_code(forged)
    assert (result.outcome, result.signal, result.state_lost) == ("killed", 9, True)
    await works(box)
