"""The shapes an environment may have, and what its base class does for it."""

import asyncio
import random
import socket as socket_module
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from openenv.core import GenericEnvClient, ServerError, SessionLost
from openenv.core.env_server import (
    Action,
    Environment,
    EnvironmentMetadata,
    Observation,
    State,
    Transform,
    create_app,
)


class Act(Action):
    text: str = ""


class Obs(Observation):
    text: str = ""


class Base(Environment[Act, Obs, State]):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        self.where: list[str] = []

    def _note(self) -> None:
        self.where.append(threading.current_thread().name)

    def reset(self) -> Obs:  # type: ignore[override]
        self._note()
        return Obs()

    def step(self, action: Act, **kwargs: Any) -> Obs:
        self._note()
        return Obs(text=" ".join(self.where))

    @property
    def state(self) -> State:
        return State()


def one_step(server: Any, action: dict[str, Any] | None = None) -> Any:
    with GenericEnvClient(base_url=server.url).sync() as client:
        return client.step(action or {})


def test_an_environment_that_is_half_async_runs_each_half_where_it_belongs(serve: Callable[..., Any]) -> None:
    closed = threading.Event()

    class Half(Base):
        async def reset_async(self) -> Obs:  # type: ignore[override]
            self._note()
            return Obs()

        async def close_async(self) -> None:
            self._note()
            assert self.where == ["test-uvicorn", "openenv-env", "test-uvicorn"]
            closed.set()

    assert one_step(serve(create_app(Half, Act, Obs))).observation["text"] == "test-uvicorn openenv-env"
    assert closed.wait(20)


def test_plain_coroutine_methods_and_an_async_close_are_awaited(serve: Callable[..., Any]) -> None:
    closed = threading.Event()

    class Coroutines(Base):
        async def reset(self) -> Obs:  # type: ignore[override]
            return Obs()

        async def step(self, action: Act) -> Obs:  # type: ignore[override]
            await asyncio.sleep(0)
            return Obs(text="awaited")

        async def close(self) -> None:  # type: ignore[override]
            await asyncio.sleep(0)
            closed.set()

    assert one_step(serve(create_app(Coroutines, Act, Obs))).observation["text"] == "awaited"
    assert closed.wait(20)


def test_an_async_factory_is_awaited(serve: Callable[..., Any]) -> None:
    async def factory() -> Base:
        await asyncio.sleep(0)
        return Base()

    assert one_step(serve(create_app(factory, Act, Obs))).observation["text"] == "openenv-env openenv-env"


def test_dictionaries_serve_as_action_observation_and_state(serve: Callable[..., Any]) -> None:
    class Dictionaries(Environment[dict[str, Any], dict[str, Any], dict[str, Any]]):
        def reset(self) -> dict[str, Any]:  # type: ignore[override]
            return {}

        def step(self, action: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
            return {"got": action, "reward": 2, "done": True, "metadata": {"m": 1}}

        def state(self) -> dict[str, Any]:  # type: ignore[override]
            return {"s": 1}

    server = serve(create_app(Dictionaries, dict, dict))
    with GenericEnvClient(base_url=server.url).sync() as client:
        result = client.step({"anything": [1, None]})
        assert result.observation == {"got": {"anything": [1, None]}, "metadata": {"m": 1}}
        assert (result.reward, result.done, result.metadata) == (2, True, {"m": 1})
        assert client.state() == {"s": 1}
    assert httpx.get(f"{server.url}/schema").status_code == 200


def test_an_observation_of_no_known_kind_is_an_execution_error(serve: Callable[..., Any]) -> None:
    class Odd(Base):
        def step(self, action: Act, **kwargs: Any) -> Any:
            return 7

    with pytest.raises(ServerError, match="expected a pydantic model, a dataclass or a mapping, got a value"):
        one_step(serve(create_app(Odd, Act, Obs)))


def test_a_validator_that_raises_anything_else_is_an_execution_error(serve: Callable[..., Any]) -> None:
    from pydantic import field_validator

    class Fragile(Act):
        @field_validator("text")
        @classmethod
        def _break(cls, text: str) -> str:
            raise KeyError(text)

    with pytest.raises(ServerError, match="EXECUTION_ERROR"):
        one_step(serve(create_app(Base, Fragile, Obs)), {"text": "x"})


def test_metadata_of_a_class_method_and_of_a_broken_one(serve: Callable[..., Any]) -> None:
    class Told(Base):
        @classmethod
        def get_metadata(cls) -> EnvironmentMetadata:  # type: ignore[override]
            return EnvironmentMetadata(name="told", description="by the class")

    class Broken(Base):
        def get_metadata(self) -> EnvironmentMetadata:
            raise RuntimeError("no idea")

    assert httpx.get(f"{serve(create_app(Told, Act, Obs)).url}/metadata").json()["name"] == "told"
    answer = httpx.get(f"{serve(create_app(Broken, Act, Obs)).url}/metadata")
    assert (answer.status_code, answer.json()) == (500, {"detail": "no idea", "code": "EXECUTION_ERROR"})


def test_an_environment_that_knows_deadlines_answers_for_itself(serve: Callable[..., Any]) -> None:
    class Knowing(Base):
        async def reset_async(self) -> Obs:  # type: ignore[override]
            return Obs()

        async def step_async(self, action: Act, timeout_s: float | None = None) -> Obs:  # type: ignore[override]
            await asyncio.sleep(timeout_s or 0)
            return Obs(text=f"gave up after {timeout_s}")

    server = serve(create_app(Knowing, Act, Obs, max_step_s=5))
    answer = httpx.post(f"{server.url}/step", json={"action": {}, "timeout_s": 0.1})
    assert answer.json()["observation"]["text"] == "gave up after 0.1"


def test_a_cancelled_step_may_still_turn_into_an_observation(serve: Callable[..., Any]) -> None:
    class Graceful(Base):
        async def reset_async(self) -> Obs:  # type: ignore[override]
            return Obs()

        async def step_async(self, action: Act) -> Obs:  # type: ignore[override]
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                return Obs(text="interrupted")
            return Obs()

    server = serve(create_app(Graceful, Act, Obs, max_step_s=0.1))
    assert one_step(server).observation["text"] == "interrupted"


def test_an_async_step_that_ignores_cancellation_ends_its_session(serve: Callable[..., Any]) -> None:
    release = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    class Deaf(Base):
        async def reset_async(self) -> Obs:  # type: ignore[override]
            loops.append(asyncio.get_running_loop())
            return Obs()

        async def step_async(self, action: Act) -> Obs:  # type: ignore[override]
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue
            return Obs()

    server = serve(create_app(Deaf, Act, Obs, max_step_s=0.1))
    with GenericEnvClient(base_url=server.url).sync() as client:
        with pytest.raises(ServerError, match="cannot be stopped"):
            client.step({})
        assert server.openenv.active_sessions == 0
        with pytest.raises(SessionLost):
            client.step({})
    loops[0].call_soon_threadsafe(release.set)


def test_deleting_a_session_in_the_middle_of_a_step_frees_its_slot(
    serve: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    release, stepping, closed = threading.Event(), threading.Event(), threading.Event()

    class Waiting(Base):
        def step(self, action: Act, **kwargs: Any) -> Obs:
            stepping.set()
            release.wait(20)
            return Obs()

        def close(self) -> None:
            closed.set()

    server = serve(create_app(Waiting, Act, Obs))
    codes: list[int] = []
    call = threading.Thread(
        target=lambda: codes.append(httpx.post(f"{server.url}/step", json={"action": {}}, timeout=30).status_code)
    )
    call.start()
    assert stepping.wait(20)
    assert httpx.delete(f"{server.url}/session").status_code == 204
    assert server.openenv.active_sessions == 0
    assert not closed.is_set()
    release.set()
    assert closed.wait(20)
    call.join()
    assert codes == [200]


def test_a_client_that_answers_no_ping_is_taken_for_gone(
    serve: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    server = serve(create_app(Base, Act, Obs), ws_ping_interval=0.2, ws_ping_timeout=0.2)
    host, port = server.url.removeprefix("http://").split(":")
    with socket_module.create_connection((host, int(port))) as silent:
        silent.sendall(
            f"GET /ws HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        eventually(lambda: server.openenv.active_sessions == 1, "the session to open")
        eventually(lambda: server.openenv.active_sessions == 0, "the silent session to end")


async def visit(url: str, number: int) -> None:
    """Play a little, and leave politely, with a call cancelled, or without a word."""
    client = GenericEnvClient(base_url=url, message_timeout_s=20)
    await client.reset()
    for turn in range(3):
        text = f"{number}-{turn}"
        assert (await client.step({"text": text})).observation["text"] == text
    if number % 3 == 0:
        call = asyncio.ensure_future(client.step({"text": "given up"}))
        await asyncio.sleep(0.005)
        call.cancel()
    elif number % 3 == 1:
        assert client._channel is not None
        client._channel.drop("gone")
    await client.close()


def test_many_clients_that_come_and_go_in_every_way_leave_nothing(
    serve: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    counts = {"built": 0, "closed": 0}

    class Counted(Base):
        def __init__(self) -> None:
            super().__init__()
            counts["built"] += 1

        async def reset_async(self) -> Obs:  # type: ignore[override]
            return Obs()

        async def step_async(self, action: Act) -> Obs:  # type: ignore[override]
            await asyncio.sleep(random.random() * 0.02)
            return Obs(text=action.text)

        async def close_async(self) -> None:
            counts["closed"] += 1

    server = serve(create_app(Counted, Act, Obs, max_concurrent_envs=64))

    async def wave() -> None:
        await asyncio.gather(*(visit(server.url, number) for number in range(60)))

    for _ in range(5):
        asyncio.run(wave())
        eventually(lambda: server.openenv.active_sessions == 0, "every slot to be free")
    eventually(lambda: counts == {"built": 300, "closed": 300}, "every environment to close")


class Louder(Transform[Obs]):
    def __call__(self, observation: Obs) -> Obs:
        return observation.model_copy(update={"text": observation.text.upper()})


async def test_transform_and_rubric_are_applied_by_the_base_class() -> None:
    class Rubric:
        resets = 0

        def __call__(self, action: Any, observation: Obs) -> float:
            return float(len(observation.text))

        def reset(self) -> None:
            self.resets += 1

    class AsyncRubric(Rubric):
        async def __call__(self, action: Any, observation: Obs) -> float:  # type: ignore[override]
            return 9.0

        async def reset_async(self) -> None:
            self.resets += 10

    env = Base()
    assert env._apply_transform(Obs(text="x")).text == "x"
    assert env._apply_rubric(Act(), Obs(text="abc")) == 0.0
    env._reset_rubric()
    await env._reset_rubric_async()
    env.transform, env.rubric = Louder(), Rubric()
    assert env._apply_transform(Obs(text="x")).text == "X"
    assert env._apply_rubric(Act(), Obs(text="abc")) == await env._apply_rubric_async(Act(), Obs(text="abc")) == 3.0
    env._reset_rubric()
    await env._reset_rubric_async()
    assert env.rubric.resets == 2
    env.rubric = AsyncRubric()
    assert await env._apply_rubric_async(Act(), Obs()) == 9.0
    await env._reset_rubric_async()
    assert env.rubric.resets == 10
