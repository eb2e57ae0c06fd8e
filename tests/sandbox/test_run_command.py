"""Programs beside the interpreter."""

from __future__ import annotations

import signal

import pytest

from sandbox import PolicyError, Sandbox

from ..boxes import pids, said, until, works

pytestmark = pytest.mark.asyncio(loop_scope="session")

CASES = {
    "ok": (["true"], "ok", 0, None),
    "status": (["sh", "-c", "exit 7"], "error", 7, None),
    "status_255": (["sh", "-c", "exit 255"], "error", 255, None),
    "missing": (["no-such-program"], "error", 127, None),
    "missing_path": (["/no/such"], "error", 127, None),
    "not_executable": (["/etc/passwd"], "error", 126, None),
    "directory": (["/workspace"], "error", 126, None),
    "signal": (["sh", "-c", "kill -9 $$"], "killed", 137, signal.SIGKILL),
    "segfault": (["python3", "-c", "import ctypes; ctypes.string_at(0)"], "killed", 139, signal.SIGSEGV),
    "python": (["python3", "-c", "raise SystemExit(3)"], "error", 3, None),
    "surrogate": (["echo", "\udcff"], "ok", 0, None),
}


@pytest.mark.parametrize("name", CASES)
async def test_command_ends(box: Sandbox, name: str) -> None:
    arguments, *facts = CASES[name]
    await box.run_code("x = 5")
    result = await box.run_command(arguments)  # type: ignore[arg-type]
    assert list(said(result)) == facts, result
    assert not result.state_lost
    await works(box)
    assert (await box.run_code("x")).value == "5"


async def test_both_streams_apart(box: Sandbox) -> None:
    result = await box.run_command(["sh", "-c", "echo out; echo err >&2; echo named > /dev/stderr"])
    assert (result.stdout, result.stderr) == ("out\n", "err\nnamed\n")


async def test_standard_input_is_empty(box: Sandbox) -> None:
    assert (await box.run_command(["cat"])).stdout == ""


async def test_directory_and_environment(box: Sandbox) -> None:
    await box.write_file("a/b", "x")
    assert (await box.run_command(["pwd"])).stdout == "/workspace\n"
    assert (await box.run_command(["ls"], cwd="a")).stdout == "b\n"
    assert (await box.run_command(["pwd"], cwd="/tmp")).stdout == "/tmp\n"
    result = await box.run_command(["ls"], cwd="missing")
    assert said(result) == ("error", 127, None)
    result = await box.run_command(["env"], environment={"MINE": "v w", "HOME": "/tmp"})
    lines = result.stdout.splitlines()
    assert "MINE=v w" in lines
    assert "HOME=/tmp" in lines
    assert "USER=sandbox" in lines


async def test_command_does_not_see_the_environment_or_directory_of_a_step(box: Sandbox) -> None:
    await box.run_code("import os; os.environ['K'] = 'v'; os.chdir('/tmp'); os.umask(0o777)")
    assert (await box.run_command(["sh", "-c", "echo $K; pwd"])).stdout == "\n/workspace\n"


async def test_timeout_ends_the_command_and_keeps_the_interpreter(box: Sandbox) -> None:
    await box.run_code("x = 5")
    script = "trap '' TERM INT HUP; (while true; do true; done) & setsid sleep 1000 & echo started; sleep 1000"
    result = await box.run_command(["sh", "-c", script], timeout_s=0.3)
    assert result.outcome == "timeout"
    assert result.exit_code != 0
    assert (result.stdout, result.state_lost) == ("started\n", False)
    assert await until(lambda: len(pids(box)) == 2, 0.1)
    assert (await box.run_code("x")).value == "5"


async def test_output_over_the_limit_is_counted(box: Sandbox) -> None:
    result = await box.run_command(["sh", "-c", "head -c 50000000 /dev/zero; head -c 3000000 /dev/zero >&2"])
    assert said(result) == ("ok", 0, None)
    assert (len(result.stdout), len(result.stderr)) == (1 << 20, 1 << 20)
    assert result.truncated.stdout_bytes == 50_000_000 - (1 << 20)
    assert result.truncated.stderr_bytes == 3_000_000 - (1 << 20)
    await works(box)


async def test_daemon_that_holds_the_output_does_not_hold_up_the_result(box: Sandbox) -> None:
    result = await box.run_command(["sh", "-c", "sleep 1000 & echo done"])
    assert said(result) == ("ok", 0, None)
    assert result.stdout == "done\n"
    await works(box)


async def test_interpreter_that_dies_during_a_command_is_said(box: Sandbox) -> None:
    await box.run_code("import threading, os\nthreading.Timer(1, os._exit, [1]).start()")
    result = await box.run_command(["sleep", "1000"], timeout_s=20)
    assert result.outcome == "killed"
    # Whichever of the two was reaped first: the loss is told once, with this run or with the next.
    assert result.state_lost != (await box.run_code("1")).state_lost
    await works(box)


async def test_interpreter_that_dies_between_steps_is_said(box: Sandbox) -> None:
    before = pids(box)
    await box.run_code("import threading, os\nthreading.Timer(0.02, os._exit, [1]).start()")
    assert await until(lambda: before - pids(box) and len(pids(box)) == 2)
    result = await box.run_code("1")
    assert (result.outcome, result.state_lost) == ("ok", True)
    await works(box)


@pytest.mark.parametrize("arguments", ["ls", [], [1], [b"ls"], None, 3, ["a\0b"], [""], [["ls"]]])
async def test_arguments_of_a_wrong_type_are_refused(box: Sandbox, arguments: object) -> None:
    with pytest.raises(PolicyError, match="arguments"):
        await box.run_command(arguments)  # type: ignore[arg-type]
    await works(box)


@pytest.mark.parametrize(
    "keywords", [{"cwd": 3}, {"environment": {"a": 1}}, {"environment": {"a=b": "c"}}, {"environment": {"": "c"}},
                 {"environment": ["x"]}, {"cwd": "a\0"}, {"timeout_s": 0}]
)  # fmt: skip
async def test_keywords_of_a_wrong_type_are_refused(box: Sandbox, keywords: dict[str, object]) -> None:
    with pytest.raises(PolicyError):
        await box.run_command(["true"], **keywords)  # type: ignore[arg-type]
    await works(box)


async def test_long_arguments(box: Sandbox) -> None:
    result = await box.run_command(["python3", "-c", "import sys; print(len(sys.argv[1]))", "é" * 60_000])
    assert result.stdout == "60000\n"
    result = await box.run_command(["echo", "x" * 200_000])
    assert said(result) == ("error", 126, None)
    assert "Argument list too long" in result.stderr
    with pytest.raises(PolicyError, match="at most"):
        await box.run_command(["echo", "x" * 3_000_000])
    await works(box)
