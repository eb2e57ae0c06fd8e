"""How sessions, sandboxes and servers of coding_env end: nothing stays behind, and what is left works."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket as socket_module
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from coding_env import CodeAction, CodingEnv
from websockets.sync.client import connect

from openenv.core import ServerError

SLEEP = "import time; print('sleeping', flush=True); time.sleep(60)"


def sandboxed(marker: str) -> list[psutil.Process]:
    """Processes, seen from the host, whose command line holds `marker`."""
    running = psutil.process_iter(["cmdline"])
    return [process for process in running if marker in " ".join(process.info["cmdline"] or ())]


@pytest.mark.parametrize("code", [SLEEP, "while True: pass", "import itertools\nsum(itertools.count())"])
def test_client_that_drops_in_mid_step_frees_its_sandbox_at_once(
    server: Any, eventually: Callable[..., None], code: str
) -> None:
    marker = f"61.{time.monotonic_ns()}"
    start = f"import subprocess\nchild = subprocess.Popen(['sleep', '{marker}'])\n"
    assert server.sandboxes.live == 0
    with connect(server.ws_url, proxy=None) as connection:
        connection.send(json.dumps({"type": "step", "data": {"code": start + code}}))
        eventually(lambda: sandboxed(marker), "the step to start its child")
        assert server.sandboxes.live == 1
        connection.socket.shutdown(socket_module.SHUT_RDWR)  # without a word: no close frame
        eventually(lambda: server.sandboxes.live == 0, "the sandbox to be given back", 1.0)
        eventually(lambda: not sandboxed(marker), "its processes to end", 1.0)


async def test_a_cancelled_client_frees_its_sandbox_and_others_are_not_disturbed(
    server: Any, eventually: Callable[..., None]
) -> None:
    async with CodingEnv(base_url=server.url) as other, CodingEnv(base_url=server.url) as env:
        await other.step(CodeAction(code="x = 1"))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(env.step(CodeAction(code=SLEEP)), 0.5)
        await asyncio.to_thread(eventually, lambda: server.sandboxes.live == 1, "the sandbox to end", 1.0)
        assert (await other.step(CodeAction(code="print(x)"))).observation.stdout == "1\n"


@pytest.fixture
def env(server: Any) -> Iterator[Any]:
    with CodingEnv(base_url=server.url).sync() as client:
        client.reset()
        yield client


def warden_of(env: Any, eventually: Callable[..., None]) -> psutil.Process:
    """The process, as the host sees it, that ends the whole sandbox of this session when it dies."""
    marker = f"62.{time.monotonic_ns()}"
    env.step(CodeAction(code=f"import subprocess\nchild = subprocess.Popen(['sleep', '{marker}'])"))
    eventually(lambda: sandboxed(marker), "the child to be seen")
    (child,) = sandboxed(marker)
    interpreter = child.parent()
    assert interpreter is not None
    warden = interpreter.parent()
    assert warden is not None
    return warden


def test_a_dead_sandbox_is_an_error_and_the_next_step_runs_in_a_fresh_one(
    env: Any, eventually: Callable[..., None]
) -> None:
    env.step(CodeAction(code="x = 5"))
    warden_of(env, eventually).kill()
    time.sleep(0.1)
    with pytest.raises(ServerError, match="next step runs in a fresh sandbox") as raised:
        env.step(CodeAction(code="print(x)"))
    assert raised.value.code == "EXECUTION_ERROR"
    result = env.step(CodeAction(code="print('x' in globals())"))
    assert result.observation.stdout == "False\n"
    assert result.observation.metadata["state_lost"] is True
    assert env.step(CodeAction(code="1")).observation.metadata["state_lost"] is False


def test_a_dead_sandbox_can_be_reset(env: Any, eventually: Callable[..., None]) -> None:
    warden_of(env, eventually).kill()
    env.reset()
    assert env.step(CodeAction(code="print(1)")).observation.stdout == "1\n"


def test_killed_jail_ends_its_sandboxes_and_sessions_go_on_in_fresh_ones(serve: Callable[..., Any]) -> None:
    before = set(psutil.Process().children())
    url = serve().url
    with CodingEnv(base_url=url).sync() as env, CodingEnv(base_url=url).sync() as other:
        env.step(CodeAction(code="x = 5"))
        other.reset()
        for process in set(psutil.Process().children()) - before:
            if "nsjail" in process.cmdline()[0]:
                process.kill()
        with pytest.raises(ServerError, match="runs in a fresh sandbox"):
            env.step(CodeAction(code="import time; time.sleep(1)"))
        result = env.step(CodeAction(code="print('x' in globals())"))
        assert (result.observation.stdout, result.observation.metadata["state_lost"]) == ("False\n", True)
        other.reset()
        assert other.step(CodeAction(code="print(1)")).observation.stdout == "1\n"


def test_a_step_longer_than_the_server_allows_ends_alone(serve: Callable[..., Any], monkeypatch: Any) -> None:
    monkeypatch.setenv("OPENENV_MAX_STEP_S", "0.5")
    with CodingEnv(base_url=serve().url).sync() as env:
        env.step(CodeAction(code="x = 5"))
        with pytest.raises(ServerError, match=r"step exceeded 0\.5 s"):
            env.step(CodeAction(code=SLEEP))
        result = env.step(CodeAction(code="print('x' in globals())"))
        assert (result.observation.stdout, result.observation.metadata["state_lost"]) == ("False\n", True)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended; waiting to be reaped by whoever inherited them is an end."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def leavings_of(processes: list[psutil.Process]) -> set[str]:
    """The control groups that hold these processes, and the directories that their command lines name."""
    found = set()
    for process in processes:
        found |= {os.path.dirname(word) for word in process.cmdline() if word.startswith("/tmp/openenv-sandbox-")}
        for line in Path(f"/proc/{process.pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if "openenv-sandbox/" in path:
                found.add(f"/sys/fs/cgroup/{controllers.split(',')[0] or 'unified'}{path}")
    return {path for path in found if os.path.isdir(path)}


@pytest.fixture
def process(lean_policy: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server in a process of its own."""
    with socket_module.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environ = {**os.environ, "CODING_ENV_POLICY": str(lean_policy), "PORT": str(port)}
    with subprocess.Popen([sys.executable, "-m", "coding_env.server.app"], env=environ) as started:
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 20
            while True:
                assert started.poll() is None
                assert time.monotonic() < deadline
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{url}/health").status_code == 200:
                        break
                time.sleep(0.05)
            yield started, url
        finally:
            started.kill()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_a_server_that_was_ended(
    process: tuple[subprocess.Popen[bytes], str], eventually: Callable[..., None], end: signal.Signals
) -> None:
    server, url = process
    with CodingEnv(base_url=url).sync() as env, CodingEnv(base_url=url).sync() as idle:
        idle.reset()
        env.step(CodeAction(code="import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass"))
        below = psutil.Process(server.pid).children(recursive=True)
        leavings = leavings_of(below)
        assert len(below) > 6, below
        assert any(path.startswith("/tmp/") for path in leavings), leavings
        server.send_signal(end)
        server.wait(15)
        eventually(lambda: not alive(below), f"its processes to end: {below}", 2.0)
        eventually(lambda: not any(map(os.path.exists, leavings)), "its groups and directories to go", 2.0)


def test_a_policy_that_this_machine_cannot_keep_fails_at_start_with_the_reason(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(f'[template]\nlibraries = ["no_such_library"]\nlibrary_path = "{tmp_path}"\n')
    environ = {**os.environ, "CODING_ENV_POLICY": str(policy), "PORT": "0"}
    ended = subprocess.run(
        [sys.executable, "-m", "coding_env.server.app"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode != 0
    assert "no_such_library cannot be imported inside" in ended.stderr


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"CODING_ENV_POLICY": "/nowhere/policy.toml"}, "/nowhere/policy.toml: cannot be read"),
        ({"CODING_ENV_SHOW_VALUE": "perhaps"}, "CODING_ENV_SHOW_VALUE must be 1 or 0, not 'perhaps'"),
        ({"MAX_CONCURRENT_ENVS": "999999999"}, "MAX_CONCURRENT_ENVS is 999999999, but there can be "),
        ({"PORT": "http"}, "PORT must be a number up to 65535, not 'http'"),
    ],
)
def test_a_wrong_variable_is_an_error_that_names_it(variables: dict[str, str], says: str) -> None:
    from coding_env.server.app import build_app

    with pytest.raises(ValueError, match=re.escape(says)):
        build_app(variables)


async def test_an_environment_without_a_server_starts_and_stops_its_own_pool(
    lean_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coding_env.server.coding_environment import PythonCodeActEnv

    monkeypatch.setenv("CODING_ENV_POLICY", str(lean_policy))
    before = set(psutil.Process().children(recursive=True))
    env = PythonCodeActEnv()
    observation = await env.step_async(CodeAction(code="print(1)"))
    assert observation.stdout == "1\n"
    await env.close_async()
    assert set(psutil.Process().children(recursive=True)) <= before
    await env.reset_async()
    await env.close_async()
    await env.close_async()
    with pytest.raises(NotImplementedError, match="reset_async"):
        env.reset()
