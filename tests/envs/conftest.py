"""A real coding server on loopback with real sandboxes, and proof that it leaves nothing behind."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn

from openenv.core.env_server.run import uvicorn_options

HANG_S = 20.0


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = HANG_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"still waiting after {timeout_s} s: {what}"
        time.sleep(0.005)


@pytest.fixture
def eventually() -> Callable[..., None]:
    return wait_until


class CodingServer:
    """The application in uvicorn in a thread, on a port that the kernel chose."""

    def __init__(self, environ: dict[str, str]) -> None:
        from coding_env.server.app import build_app

        self.app = build_app(environ)
        config = uvicorn.Config(self.app, host="127.0.0.1", port=0, log_level="warning", **uvicorn_options())
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="test-coding-server")
        self._thread.start()
        wait_until(lambda: self._server.started or not self._thread.is_alive(), "the server to start")
        assert self._server.started, "the server did not start; its log says why"
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.ws_url = f"ws://127.0.0.1:{self.port}/ws"

    @property
    def sandboxes(self) -> Any:
        return self.app.state.sandboxes

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(HANG_S)
        assert not self._thread.is_alive()


def children() -> set[psutil.Process]:
    return set(psutil.Process().children())


@pytest.fixture(scope="session")
def lean_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy for the standard library alone: what is tested here needs no more."""
    path = tmp_path_factory.mktemp("policy") / "policy.toml"
    path.write_text("[template]\nlibraries = []\n[pool]\nready = 2\n", encoding="utf-8")
    return path


@contextlib.contextmanager
def serving(policy: Path, **environ: str) -> Iterator[CodingServer]:
    before = children()
    server = CodingServer({"CODING_ENV_POLICY": os.fspath(policy), **environ})
    own = children() - before
    assert own, "no sandbox is running"
    try:
        yield server
    finally:
        own |= children() - before  # a jail that died was replaced
        below = {process for root in own if root.is_running() for process in root.children(recursive=True)}
        server.stop()
    wait_until(lambda: not any(map(psutil.Process.is_running, own | below)), "its processes to end", 5.0)


@pytest.fixture(scope="module")
def server(lean_policy: Path) -> Iterator[CodingServer]:
    """One server for the tests of a module."""
    with serving(lean_policy) as running:
        yield running


def _starter(policy: Path) -> Iterator[Callable[..., CodingServer]]:
    with contextlib.ExitStack() as stack:
        yield lambda **environ: stack.enter_context(serving(policy, **environ))


@pytest.fixture
def serve(lean_policy: Path) -> Iterator[Callable[..., CodingServer]]:
    """Starts further servers, with other variables."""
    yield from _starter(lean_policy)


@pytest.fixture(scope="module")
def serve_module(lean_policy: Path) -> Iterator[Callable[..., CodingServer]]:
    """As `serve`, for the tests of a module."""
    yield from _starter(lean_policy)
