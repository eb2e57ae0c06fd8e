"""A real server on loopback for every test that wants one, and proof that it leaves nothing behind."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from openenv.core.env_server.run import uvicorn_options

HANG_S = 20.0


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = HANG_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"still waiting after {timeout_s} s: {what}"
        time.sleep(0.005)


class RunningServer:
    """uvicorn in a thread, on a port that the kernel chose."""

    def __init__(self, app: Any, **options: Any) -> None:
        options = {**uvicorn_options(), **options}
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", **options)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="test-uvicorn")
        self._thread.start()
        wait_until(lambda: self._server.started or not self._thread.is_alive(), "the server to start")
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.app = app
        self.url = f"http://127.0.0.1:{port}"
        self.ws_url = f"ws://127.0.0.1:{port}/ws"

    @property
    def openenv(self) -> Any:
        return self.app.state.openenv

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(HANG_S)
        assert not self._thread.is_alive()


def running_servers() -> Iterator[Callable[..., RunningServer]]:
    servers: list[RunningServer] = []

    def start(app: Any, **options: Any) -> RunningServer:
        servers.append(RunningServer(app, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
    ours = lambda: [t.name for t in threading.enumerate() if t.name.startswith("openenv-")]  # noqa: E731
    wait_until(lambda: not ours(), f"threads to end: {ours()}")


@pytest.fixture
def serve() -> Iterator[Callable[..., RunningServer]]:
    yield from running_servers()


@pytest.fixture(scope="module")
def serve_for_module() -> Iterator[Callable[..., RunningServer]]:
    yield from running_servers()


@pytest.fixture
def eventually() -> Callable[..., None]:
    return wait_until
