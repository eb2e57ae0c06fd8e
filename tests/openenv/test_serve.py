"""`openenv serve`, as a command."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from openenv.core import GenericEnvClient

MODELS = """
from openenv.core.env_server.types import Action, Observation

class HiAction(Action):
    text: str = ""

class HiObservation(Observation):
    text: str = ""
"""

ENVIRONMENT = """
from openenv.core.env_server import Environment, State
from {models} import HiAction, HiObservation

class HiEnvironment(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self):
        return HiObservation(text="{greeting}")

    def step(self, action):
        return HiObservation(text=action.text)

    @property
    def state(self):
        return State()
"""

APP = """
from openenv.core.env_server import create_app
from {models} import HiAction, HiObservation
from {environment} import HiEnvironment

app = create_app(HiEnvironment, HiAction, HiObservation, env_name="hi_env")
"""


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def package(root: Path, *, manifest: str = "name: hi_env\napp: server.app:app\n", greeting: str = "hi") -> None:
    write(
        root,
        {
            "openenv.yaml": manifest,
            "__init__.py": "",
            "models.py": MODELS,
            "server/__init__.py": "",
            "server/hi_environment.py": ENVIRONMENT.format(models="..models", greeting=greeting),
            "server/app.py": APP.format(models="..models", environment=".hi_environment"),
        },
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Command = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def command() -> Iterator[Command]:
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str, cwd: Path) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "openenv.cli", *arguments],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"},
        )
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def greeting_at(port: int, process: "subprocess.Popen[str]") -> str:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        try:
            httpx.get(f"http://127.0.0.1:{port}/health").raise_for_status()
            break
        except httpx.TransportError:
            time.sleep(0.05)
    with GenericEnvClient(base_url=f"http://127.0.0.1:{port}").sync() as client:
        return str(client.reset().observation["text"])


def failing(command: Command, *arguments: str, cwd: Path) -> tuple[int, str]:
    process = command(*arguments, cwd=cwd)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.parametrize("target", ["hi", "hi-env", "HI_ENV", "./envs/hi_env", "envs/hi_env", None])
def test_a_name_a_path_or_the_folder_itself_is_served_and_ctrl_c_ends_it_cleanly(
    command: Command, tmp_path: Path, target: str | None
) -> None:
    write(tmp_path, {"envs/__init__.py": ""})
    package(tmp_path / "envs" / "hi_env")
    cwd = tmp_path if target else tmp_path / "envs" / "hi_env" / "server"
    port = free_port()
    process = command("serve", *([target] if target else []), "--port", str(port), cwd=cwd)
    assert greeting_at(port, process) == "hi"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert f"Serving hi_env at http://127.0.0.1:{port}" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("layout", ["outside a checkout", "flat", "nested", "without manifest", "no app key"])
def test_every_layout_is_served(command: Command, tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "hi_env"
    if layout == "flat":
        write(
            folder,
            {
                "openenv.yaml": "name: hi_env\napp: server.app:app\n",
                "models.py": MODELS,
                "server/__init__.py": "",
                "server/hi_environment.py": ENVIRONMENT.format(models="models", greeting="hi"),
                "server/app.py": APP.format(models="models", environment="server.hi_environment"),
            },
        )
    elif layout == "nested":
        write(folder, {"openenv.yaml": "name: hi_env\n"})
        package(folder / "hi_env")
        (folder / "hi_env" / "openenv.yaml").unlink()
    else:
        package(folder, manifest="name: hi_env\n" if layout == "no app key" else "app: server.app:app\n")
        if layout == "without manifest":
            (folder / "openenv.yaml").unlink()
    port = free_port()
    process = command("serve", str(folder), "--port", str(port), cwd=tmp_path)
    assert greeting_at(port, process) == "hi"


def test_reload_picks_up_a_change(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "hi_env"
    package(folder)
    port = free_port()
    process = command("serve", str(folder), "--port", str(port), "--reload", cwd=tmp_path)
    assert greeting_at(port, process) == "hi"
    package(folder, greeting="changed")
    deadline = time.monotonic() + 30
    while greeting_at(port, process) != "changed":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_max_sessions_is_the_capacity(command: Command, tmp_path: Path) -> None:
    package(tmp_path / "hi_env")
    port = free_port()
    process = command("serve", "hi_env", "--port", str(port), "--max-sessions", "2", cwd=tmp_path)
    greeting_at(port, process)
    headers = [{"X-OpenEnv-Session": name} for name in "abc"]
    codes = [httpx.post(f"http://127.0.0.1:{port}/reset", headers=each).status_code for each in headers]
    assert codes == [200, 200, 503]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["serve", "hi_enw"], 2, "Did you mean 'hi_env'?"),
        (["serve", "./nothing"], 2, "is not a directory"),
        (["serve", "./envs"], 2, "has no openenv.yaml"),
        (["serve"], 2, "Known names:"),
        (["serve", "hi", "--port", "70000"], 2, "--port"),
        (["serve", "empty"], 2, "has no server/app.py"),
        (["serve", "listed"], 2, "must hold keys and values"),
        (["serve", "broken"], 1, "ZeroDivisionError"),
        (["serve", "needy"], 1, "No module named 'no_such_module'"),
        (["serve", "appless"], 1, "has no 'app'"),
    ],
)
def test_what_cannot_be_served_says_why_with_its_exit_status(
    command: Command, tmp_path: Path, arguments: list[str], status: int, said: str
) -> None:
    envs = tmp_path / "envs"
    package(envs / "hi_env")
    write(envs, {"empty_env/openenv.yaml": "name: empty\n", "listed_env/openenv.yaml": "- a\n- b\n"})
    for name, source in (("broken", "1 / 0"), ("needy", "import no_such_module"), ("appless", "x = 1")):
        write(envs, {f"{name}_env/__init__.py": "", f"{name}_env/server/app.py": source})
    code, errors = failing(command, *arguments, cwd=tmp_path)
    assert said in errors
    assert code == status


def test_a_port_that_is_taken_is_exit_status_1(command: Command, tmp_path: Path) -> None:
    package(tmp_path / "hi_env")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, errors = failing(command, "serve", "hi_env", "--port", port, cwd=tmp_path)
    assert code == 1
    assert "address already in use" in errors.lower()


def test_it_binds_loopback_unless_told_otherwise_and_then_warns(command: Command, tmp_path: Path) -> None:
    package(tmp_path / "hi_env")
    port = free_port()
    process = command("serve", "hi_env", "--port", str(port), "--host", "0.0.0.0", cwd=tmp_path)
    greeting_at(port, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert "there is no login" in errors


def test_help_names_the_verbs_and_no_arguments_show_it(command: Command, tmp_path: Path) -> None:
    for arguments in (["--help"], []):
        process = command(*arguments, cwd=tmp_path)
        out, errors = process.communicate(timeout=60)
        assert "serve" in out + errors
        assert process.returncode == (0 if arguments else 2)


def test_a_session_in_flight_does_not_hold_up_ctrl_c(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "hi_env"
    package(folder)
    source = (folder / "server" / "hi_environment.py").read_text()
    slow = source.replace("        return HiObservation(text=action.text)", "        import time; time.sleep(1000)")
    (folder / "server" / "hi_environment.py").write_text(slow)
    port = free_port()
    process = command("serve", "hi_env", "--port", str(port), cwd=tmp_path)
    greeting_at(port, process)
    with GenericEnvClient(base_url=f"http://127.0.0.1:{port}", message_timeout_s=0.3).sync() as stuck:
        stuck.reset()
        with pytest.raises(TimeoutError):
            stuck.step({})
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=40)
    assert process.returncode == 0, errors
