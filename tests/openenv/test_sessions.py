"""Who holds an environment, on which thread it runs, and when it is closed."""

import asyncio
import functools
import json
import socket as socket_module
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from websockets.sync.client import connect

from openenv.core.env_server import (
    Action,
    ConcurrencyConfig,
    ConcurrencyConfigurationError,
    Environment,
    HTTPEnvServer,
    Observation,
    ServerMode,
    SessionNotFoundError,
    State,
    create_app,
)


class Act(Action):
    what: str = ""
    seconds: float = 0.0


class Obs(Observation):
    text: str = ""


class Recorder:
    """What happened to the environments of one test, with the thread it happened on."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.release = threading.Event()

    def note(self, event: str) -> None:
        self.events.append((event, threading.current_thread().name))

    def count(self, event: str) -> int:
        return sum(1 for name, _ in self.events if name == event)


class Blocking(Environment[Act, Obs, State]):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.stepping = False
        recorder.note("build")

    def reset(self) -> Obs:  # type: ignore[override]
        self.recorder.note("reset")
        return Obs(text=str(id(self)))

    def step(self, action: Act) -> Obs:  # type: ignore[override]
        self.stepping = True
        self.recorder.note("step")
        if action.what == "wait":
            self.recorder.release.wait(20)
        time.sleep(action.seconds)
        self.stepping = False
        self.recorder.note("stepped")
        return Obs(text=action.what)

    @property
    def state(self) -> State:
        self.recorder.note("state")
        return State()

    def close(self) -> None:
        assert not self.stepping
        self.recorder.note("close")


class Async(Blocking):
    async def reset_async(self) -> Obs:  # type: ignore[override]
        self.recorder.note("reset")
        return Obs()

    async def step_async(self, action: Act) -> Obs:  # type: ignore[override]
        self.recorder.note("step")
        try:
            if action.what == "cancel":
                raise asyncio.CancelledError
            if action.what == "exit":
                raise SystemExit(1)
            await asyncio.sleep(action.seconds)
        except asyncio.CancelledError:
            self.recorder.note("cancelled")
            raise
        return Obs(text=action.what)

    async def close_async(self) -> None:
        self.recorder.note("close_async")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def start(serve: Callable[..., Any], recorder: Recorder) -> Callable[..., Any]:
    def start_one(cls: type = Blocking, **options: Any) -> Any:
        options.setdefault("max_concurrent_envs", 2)
        return serve(create_app(functools.partial(cls, recorder), Act, Obs, **options))

    return start_one


def open_socket(server: Any) -> Any:
    return connect(server.ws_url, proxy=None)


@pytest.fixture
def unclosed() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def vanish(connection: Any) -> None:
    """Go without a word: no close frame."""
    connection.socket.shutdown(socket_module.SHUT_RDWR)


def ask(socket: Any, kind: str, **data: Any) -> Any:
    socket.send(json.dumps({"type": kind, "data": data} if kind != "state" else {"type": kind}))
    return json.loads(socket.recv(timeout=20))


def test_every_call_of_a_blocking_environment_is_on_one_thread_of_its_own(
    start: Callable[..., Any], recorder: Recorder, eventually: Callable[..., None]
) -> None:
    seen: list[int] = []
    original = Recorder.note

    def note(self: Recorder, event: str) -> None:
        seen.append(threading.get_ident())
        original(self, event)

    recorder.note = functools.partial(note, recorder)  # type: ignore[method-assign]
    server = start()
    with open_socket(server) as socket:
        for kind in ("reset", "step", "state"):
            ask(socket, kind)
    eventually(lambda: recorder.count("close") == 1, "the environment to close")
    assert [name for name, _ in recorder.events] == ["build", "reset", "step", "stepped", "state", "close"]
    assert len(set(seen)) == 1
    assert {name for _, name in recorder.events} == {"openenv-env"}


def test_an_async_environment_runs_on_the_loop_and_closes_there(
    start: Callable[..., Any], recorder: Recorder, eventually: Callable[..., None]
) -> None:
    with open_socket(start(Async)) as socket:
        for kind in ("reset", "step", "state"):
            ask(socket, kind)
    eventually(lambda: recorder.count("close_async") == 1, "the environment to close")
    assert {name for _, name in recorder.events} == {"test-uvicorn"}


def test_health_other_sessions_and_pings_are_answered_while_a_step_blocks(
    start: Callable[..., Any], recorder: Recorder
) -> None:
    server = start()
    with open_socket(server) as busy, open_socket(server) as other:
        busy.send('{"type":"step","data":{"what":"wait"}}')
        for _ in range(5):
            assert httpx.get(f"{server.url}/health", timeout=5).status_code == 200
            assert busy.ping().wait(5)
            assert ask(other, "step", what="x")["data"]["observation"]["text"] == "x"
        recorder.release.set()
        assert json.loads(busy.recv(timeout=20))["data"]["observation"]["text"] == "wait"


def test_a_slow_constructor_does_not_block_the_loop(serve: Callable[..., Any]) -> None:
    release = threading.Event()

    def slow() -> Blocking:
        release.wait(20)
        return Blocking(Recorder())

    server = serve(create_app(slow, Act, Obs))
    with open_socket(server) as socket:
        assert httpx.get(f"{server.url}/health", timeout=5).status_code == 200
        release.set()
        assert ask(socket, "reset")["type"] == "observation"


def test_a_client_that_vanishes_mid_step_frees_its_slot_and_cancels_an_async_step(
    start: Callable[..., Any], recorder: Recorder, eventually: Callable[..., None], unclosed: ExitStack
) -> None:
    server = start(Async, max_concurrent_envs=1)
    socket = unclosed.enter_context(open_socket(server))
    socket.send('{"type":"step","data":{"seconds":1000}}')
    eventually(lambda: recorder.count("step") == 1, "the step to start")
    vanish(socket)
    eventually(lambda: recorder.count("close_async") == 1, "the environment to close")
    assert [name for name, _ in recorder.events][-2:] == ["cancelled", "close_async"]
    assert server.openenv.active_sessions == 0


def test_a_client_that_vanishes_in_a_blocking_step_frees_its_slot_before_the_step_ends(
    start: Callable[..., Any], recorder: Recorder, eventually: Callable[..., None], unclosed: ExitStack
) -> None:
    server = start(max_concurrent_envs=1)
    socket = unclosed.enter_context(open_socket(server))
    socket.send('{"type":"step","data":{"what":"wait"}}')
    eventually(lambda: recorder.count("step") == 1, "the step to start")
    vanish(socket)
    eventually(lambda: server.openenv.active_sessions == 0, "the slot to be free")
    assert recorder.count("close") == 0
    with open_socket(server) as successor:
        assert ask(successor, "reset")["type"] == "observation"
        recorder.release.set()
        eventually(lambda: recorder.count("close") == 1, "the first environment to close")
    assert [name for name, _ in recorder.events].index("stepped") < [n for n, _ in recorder.events].index("close")


def test_a_client_that_vanishes_while_its_environment_is_built_leaves_nothing(
    serve: Callable[..., Any], eventually: Callable[..., None], unclosed: ExitStack
) -> None:
    recorder = Recorder()

    def slow() -> Blocking:
        recorder.note("building")
        recorder.release.wait(20)
        return Blocking(recorder)

    server = serve(create_app(slow, Act, Obs))
    socket = unclosed.enter_context(open_socket(server))
    eventually(lambda: recorder.count("building") == 1, "the factory to be called")
    vanish(socket)
    eventually(lambda: server.openenv.active_sessions == 0, "the slot to be free")
    recorder.release.set()
    eventually(lambda: recorder.count("close") == 1, "what was built to be closed")


@pytest.mark.parametrize("what", ["cancel", "exit"])
def test_what_an_async_environment_raises_never_ends_the_server(start: Callable[..., Any], what: str) -> None:
    server = start(Async)
    with open_socket(server) as socket:
        assert ask(socket, "step", what=what)["data"]["code"] == "EXECUTION_ERROR"
        assert ask(socket, "step", what="on")["data"]["observation"]["text"] == "on"


def test_a_reaped_socket_is_told_and_closed(
    start: Callable[..., Any], recorder: Recorder, eventually: Callable[..., None]
) -> None:
    config = ConcurrencyConfig(max_concurrent_envs=2, session_timeout=0.2)
    server = start(max_concurrent_envs=None, concurrency_config=config)
    with open_socket(server) as socket:
        ask(socket, "reset")
        frame = json.loads(socket.recv(timeout=20))
        assert frame["data"] == {
            "message": "Session ended: idle for more than 0.2 s",
            "code": "SESSION_ERROR",
        }
    eventually(lambda: recorder.count("close") == 1, "the environment to close")


def test_the_reaper_leaves_a_session_alone_while_a_call_runs(start: Callable[..., Any], recorder: Recorder) -> None:
    config = ConcurrencyConfig(max_concurrent_envs=2, session_timeout=0.1)
    server = start(max_concurrent_envs=None, concurrency_config=config)
    with open_socket(server) as socket:
        reply = ask(socket, "step", what="x", seconds=1.0)
        assert reply["data"]["observation"]["text"] == "x"
        assert recorder.count("close") == 0


def test_a_stuck_blocking_step_is_told_and_its_socket_closed(
    start: Callable[..., Any], recorder: Recorder, eventually: Callable[..., None]
) -> None:
    server = start(max_step_s=0.1)
    with open_socket(server) as socket:
        reply = ask(socket, "step", what="wait")
        assert reply["data"]["code"] == "EXECUTION_ERROR"
        assert reply["data"]["message"].startswith("step exceeded 0.1 s")
        assert server.openenv.active_sessions == 0
        with pytest.raises(Exception, match="1000"):
            socket.recv(timeout=20)
    recorder.release.set()
    eventually(lambda: recorder.count("close") == 1, "the environment to close")


def test_pipelined_steps_of_a_vanished_client_are_not_run(
    start: Callable[..., Any], recorder: Recorder, eventually: Callable[..., None], unclosed: ExitStack
) -> None:
    server = start(Async)
    socket = unclosed.enter_context(open_socket(server))
    for _ in range(50):
        socket.send('{"type":"step","data":{"seconds":1000}}')
    eventually(lambda: recorder.count("step") == 1, "the first step to start")
    vanish(socket)
    eventually(lambda: recorder.count("close_async") == 1, "the environment to close")
    assert recorder.count("step") == 1


def test_an_exclusive_environment_is_closed_before_the_next_is_built(
    serve: Callable[..., Any], recorder: Recorder
) -> None:
    class Exclusive(Blocking):
        SUPPORTS_CONCURRENT_SESSIONS = False

        def close(self) -> None:
            time.sleep(0.2)
            super().close()

    server = serve(create_app(functools.partial(Exclusive, recorder), Act, Obs))
    for _ in range(2):
        with open_socket(server) as socket:
            ask(socket, "reset")
    assert [n for n, _ in recorder.events if n in {"build", "close"}][:3] == ["build", "close", "build"]


def test_more_sessions_than_the_class_allows_is_a_configuration_error(recorder: Recorder) -> None:
    class Alone(Blocking):
        SUPPORTS_CONCURRENT_SESSIONS = False

    for env in (Alone, functools.partial(Alone, recorder), lambda: Alone(recorder)):
        with pytest.raises(ConcurrencyConfigurationError, match="SUPPORTS_CONCURRENT_SESSIONS"):
            create_app(env, Act, Obs, max_concurrent_envs=2)
    assert create_app(lambda: Blocking(recorder), Act, Obs, max_concurrent_envs=2)
    with pytest.raises(ValueError, match="Cannot specify both"):
        create_app(Blocking, Act, Obs, max_concurrent_envs=2, concurrency_config=ConcurrencyConfig())
    with pytest.raises(TypeError, match="env must be a callable"):
        create_app(7, Act, Obs)


def test_default_capacity_comes_from_argument_then_variable_then_class(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Many(Blocking):
        @classmethod
        def default_max_sessions(cls) -> int:
            return 40

    def capacity(env: Any, **options: Any) -> int:
        return int(create_app(env, Act, Obs, **options).state.openenv.max_concurrent_envs)

    assert capacity(Blocking) == 1
    assert capacity(functools.partial(Many, recorder)) == 40
    monkeypatch.setenv("MAX_CONCURRENT_ENVS", "7")
    assert capacity(Many) == 7
    assert capacity(Many, max_concurrent_envs=3) == 3
    monkeypatch.setenv("MAX_CONCURRENT_ENVS", "lots")
    with pytest.raises(ValueError, match="MAX_CONCURRENT_ENVS"):
        capacity(Many)


def test_a_ready_instance_and_the_state_class_in_fourth_place(serve: Callable[..., Any], recorder: Recorder) -> None:
    app = FastAPI()
    server = HTTPEnvServer(Blocking(recorder), Act, Obs, State)
    app.include_router(server.router)
    app.state.openenv = server
    running = serve(app)
    texts = set()
    for _ in range(2):
        with open_socket(running) as socket:
            texts.add(ask(socket, "reset")["data"]["observation"]["text"])
    assert len(texts) == 1
    assert recorder.count("close") == 0


def test_the_lifespan_encloses_every_session(serve: Callable[..., Any], recorder: Recorder) -> None:
    @asynccontextmanager
    async def pool(app: FastAPI) -> AsyncIterator[None]:
        recorder.note("pool starts")
        yield
        recorder.note("pool ends")

    server = serve(create_app(functools.partial(Blocking, recorder), Act, Obs, lifespan=pool))
    assert httpx.post(f"{server.url}/reset").status_code == 200
    server.stop()
    assert [name for name, _ in recorder.events] == ["pool starts", "build", "reset", "close", "pool ends"]


def test_an_app_with_its_own_lifespan_gets_reaping_and_shutdown_too(
    serve: Callable[..., Any], recorder: Recorder, eventually: Callable[..., None]
) -> None:
    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[None]:
        yield

    app = FastAPI(lifespan=own)
    config = ConcurrencyConfig(max_concurrent_envs=2, session_timeout=0.2)
    server = HTTPEnvServer(functools.partial(Blocking, recorder), Act, Obs, concurrency_config=config)
    server.register_routes(app, ServerMode.SIMULATION)
    running = serve(app)
    httpx.post(f"{running.url}/reset")
    eventually(lambda: recorder.count("close") == 1, "the idle session to be reaped")
    httpx.post(f"{running.url}/reset")
    running.stop()
    assert recorder.count("close") == 2


def test_a_server_that_stops_closes_its_sessions(
    start: Callable[..., Any], recorder: Recorder, unclosed: ExitStack
) -> None:
    server = start()
    sockets = [unclosed.enter_context(open_socket(server)) for _ in range(2)]
    for socket in sockets:
        ask(socket, "reset")
    server.stop()
    assert recorder.count("close") == 2


def test_session_info_tells_about_live_sessions_only(start: Callable[..., Any]) -> None:
    server = start()
    with open_socket(server) as socket:
        ask(socket, "step")
        ask(socket, "step")
        [session_id] = server.openenv.sessions.sessions
        info = server.openenv.get_session_info(session_id)
        assert (info.step_count, info.environment_type) == (2, "Blocking")
        assert server.openenv.get_capacity_status().available_slots == 1
    with pytest.raises(SessionNotFoundError):
        server.openenv.get_session_info("nope")


def test_a_shared_thread_serves_every_session_of_a_class_that_asks_for_it(
    serve: Callable[..., Any], recorder: Recorder
) -> None:
    class Affine(Blocking):
        REQUIRES_SINGLE_THREAD_EXECUTOR = True

    server = serve(create_app(functools.partial(Affine, recorder), Act, Obs, max_concurrent_envs=2))
    with open_socket(server) as one, open_socket(server) as two:
        ask(one, "reset")
        ask(two, "reset")
    assert {name for _, name in recorder.events} == {"openenv-env-shared"}
