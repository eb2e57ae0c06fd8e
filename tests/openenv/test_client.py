"""The clients, against real servers: what they return, and what becomes of a session that is lost."""

import asyncio
import dataclasses
import json
import pickle
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from websockets.asyncio.server import serve as serve_websocket

from openenv.core import (
    CapacityError,
    ConnectFailed,
    EnvClient,
    GenericAction,
    GenericEnvClient,
    ProtocolError,
    ServerError,
    SessionLost,
    StepResult,
    StepTimeout,
)
from openenv.core._portal import Portal
from openenv.core.env_server import Action, Environment, Observation, State, create_app
from openenv.core.utils import convert_to_ws_url, run_async_safely


class TalkAction(Action):
    text: str
    seconds: float = 0.0


class TalkObservation(Observation):
    echoed: str = ""


class TalkState(State):
    heard: list[str] = []  # noqa: RUF012


class TalkEnvironment(Environment[TalkAction, TalkObservation, TalkState]):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        self._state = TalkState()

    def reset(self, **kwargs: Any) -> TalkObservation:
        self._state = TalkState(episode_id=kwargs.get("episode_id"))
        return TalkObservation(echoed="hello")

    def step(self, action: TalkAction) -> TalkObservation:  # type: ignore[override]
        if action.text == "boom":
            raise RuntimeError("kaboom")
        if action.text == "cut":
            return TalkObservation(done=True, metadata={"truncated": True})
        self._state.heard.append(action.text)
        time.sleep(action.seconds)
        return TalkObservation(echoed=action.text, reward=0.5, done=action.text == "bye")

    @property
    def state(self) -> TalkState:
        return self._state


class TalkEnv(EnvClient[TalkAction, TalkObservation, TalkState]):
    pass


@pytest.fixture
def server(serve: Callable[..., Any]) -> Any:
    return serve(create_app(TalkEnvironment, TalkAction, TalkObservation, max_concurrent_envs=4))


async def test_the_declared_models_are_converted_both_ways(server: Any) -> None:
    async with TalkEnv(base_url=server.url) as client:
        first = await client.reset(seed=1, episode_id="e")
        assert first == StepResult(TalkObservation(echoed="hello"), None, False, None)
        result = await client.step(TalkAction(text="hi"))
        assert isinstance(result.observation, TalkObservation)
        assert (result.observation.echoed, result.observation.reward, result.reward) == ("hi", 0.5, 0.5)
        assert await client.state() == TalkState(episode_id="e", heard=["hi"])


async def test_done_is_told_apart_into_terminated_and_truncated(server: Any) -> None:
    async with TalkEnv(base_url=server.url) as client:
        result = await client.step(TalkAction(text="on"))
        assert (result.done, result.terminated, result.truncated, result.info) == (False, False, False, {})
        result = await client.step(TalkAction(text="bye"))
        assert (result.done, result.terminated, result.truncated) == (True, True, False)
        result = await client.step(TalkAction(text="cut"))
        assert (result.done, result.terminated, result.truncated) == (True, False, True)
        assert result.info == result.metadata == {"truncated": True}


def test_a_result_keeps_its_positional_order() -> None:
    assert StepResult("o", 1.0, True, {"k": 1}) == StepResult(observation="o", reward=1.0, done=True, metadata={"k": 1})


async def test_an_error_frame_is_typed_and_spelled_as_clients_expect(server: Any) -> None:
    async with TalkEnv(base_url=server.url) as client:
        with pytest.raises(ServerError) as caught:
            await client.step(TalkAction(text="boom"))
        assert str(caught.value) == "Server error: kaboom (code: EXECUTION_ERROR)"
        assert (caught.value.code, caught.value.message) == ("EXECUTION_ERROR", "kaboom")
        assert isinstance(caught.value, RuntimeError)
        copy = pickle.loads(pickle.dumps(caught.value))
        assert (str(copy), copy.code) == (str(caught.value), "EXECUTION_ERROR")
        assert (await client.step(TalkAction(text="on"))).observation.echoed == "on"


async def test_a_full_server_is_a_capacity_error_on_the_first_call(serve: Callable[..., Any]) -> None:
    server = serve(create_app(TalkEnvironment, TalkAction, TalkObservation))
    async with TalkEnv(base_url=server.url), TalkEnv(base_url=server.url) as second:
        await asyncio.sleep(0.1)
        with pytest.raises(CapacityError, match=r"\(code: CAPACITY_REACHED\)$") as caught:
            await second.reset()
        assert caught.value.details == {"active_sessions": 1, "max_sessions": 1}
        with pytest.raises(SessionLost):
            await second.step(TalkAction(text="x"))


async def test_overlapping_calls_get_their_own_replies(server: Any) -> None:
    async with TalkEnv(base_url=server.url) as client:
        texts = [str(number) for number in range(50)]
        results = await asyncio.gather(*(client.step(TalkAction(text=text)) for text in texts))
        assert [result.observation.echoed for result in results] == texts


async def test_a_late_reply_never_answers_a_later_call(server: Any) -> None:
    async with TalkEnv(base_url=server.url, message_timeout_s=0.2) as client:
        await client.reset()
        with pytest.raises(StepTimeout, match=r"no reply within 0\.2 s") as caught:
            await client.step(TalkAction(text="late", seconds=0.5))
        assert isinstance(caught.value, TimeoutError)
        for _ in range(2):
            with pytest.raises(SessionLost, match=r"the session is gone \(no reply within 0\.2 s\)"):
                await client.step(TalkAction(text="next"))
            with pytest.raises(SessionLost):
                await client.state()
        await client.reset()
        assert (await client.step(TalkAction(text="fresh"))).observation.echoed == "fresh"
        assert (await client.state()).heard == ["fresh"]


async def test_a_cancelled_call_loses_the_session_instead_of_leaving_its_reply(
    server: Any, eventually: Callable[..., None]
) -> None:
    async with TalkEnv(base_url=server.url) as client:
        await client.reset()
        call = asyncio.ensure_future(client.step(TalkAction(text="slow", seconds=0.5)))
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        with pytest.raises(SessionLost):
            await client.step(TalkAction(text="next"))
        await asyncio.to_thread(eventually, lambda: server.openenv.active_sessions == 0, "the slot to be free")


async def test_cancelling_a_call_that_waits_its_turn_disturbs_nobody(server: Any) -> None:
    async with TalkEnv(base_url=server.url) as client:
        first = asyncio.ensure_future(client.step(TalkAction(text="first", seconds=0.3)))
        await asyncio.sleep(0.05)
        second = asyncio.ensure_future(client.step(TalkAction(text="second")))
        await asyncio.sleep(0.05)
        second.cancel()
        assert (await first).observation.echoed == "first"
        assert (await client.step(TalkAction(text="third"))).observation.echoed == "third"
        assert (await client.state()).heard == ["first", "third"]


async def test_a_server_that_goes_is_a_lost_session_that_names_the_cause(server: Any) -> None:
    client = TalkEnv(base_url=server.url)
    await client.reset()
    await asyncio.to_thread(server.stop)
    with pytest.raises(SessionLost, match="ConnectionClosed"):
        await client.step(TalkAction(text="x"))
    with pytest.raises(ConnectionError):
        await client.reset()
    await client.close()


async def test_after_disconnect_a_step_is_an_error_and_a_reset_a_new_session(server: Any) -> None:
    client = TalkEnv(base_url=server.url)
    await client.step(TalkAction(text="x"))
    await client.disconnect()
    with pytest.raises(SessionLost, match="disconnected"):
        await client.step(TalkAction(text="x"))
    await client.connect()
    assert (await client.state()).heard == []
    await client.close()
    await client.close()


async def test_no_server_is_a_connection_error_that_names_the_address() -> None:
    client = TalkEnv(base_url="http://127.0.0.1:1", connect_timeout_s=2)
    with pytest.raises(ConnectFailed, match=r"^Failed to connect to ws://127\.0\.0\.1:1/ws: "):
        await client.reset()
    assert issubclass(ConnectFailed, ConnectionError)


async def talk(handler: Callable[[Any], Coroutine[Any, Any, None]], use: Callable[[str], Any]) -> None:
    async with serve_websocket(handler, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await use(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    "frame",
    ["not json", "[]", '{"type":"state","data":{}}', '{"type":"observation"}', '{"data":{}}', b"\xff"],
)
async def test_a_frame_that_the_protocol_does_not_allow_ends_the_session(frame: str | bytes) -> None:
    async def babble(socket: Any) -> None:
        async for _ in socket:
            await socket.send(frame)

    async def use(url: str) -> None:
        client = GenericEnvClient(base_url=url)
        with pytest.raises(ProtocolError):
            await client.reset()
        with pytest.raises(SessionLost):
            await client.step({})
        await client.close()

    await talk(babble, use)


async def test_a_reply_that_does_not_fit_the_model_names_model_and_field(server: Any) -> None:
    class Wrong(Observation):
        other: int

    class WrongEnv(EnvClient[TalkAction, Wrong, TalkState]):
        pass

    async with WrongEnv(base_url=server.url) as client:
        with pytest.raises(ProtocolError, match="the server's reply does not fit Wrong: other"):
            await client.reset()


async def test_older_servers_that_keep_metadata_out_of_the_observation_are_understood() -> None:
    async def old(socket: Any) -> None:
        async for text in socket:
            assert json.loads(text) == {"type": "step", "data": {"text": "x", "seconds": 0.0}}
            data = {"observation": {"echoed": "x"}, "reward": 2, "done": False, "metadata": {"a": 1}}
            await socket.send(json.dumps({"type": "observation", "data": data}))

    async def use(url: str) -> None:
        async with TalkEnv(base_url=url) as client:
            result = await client.step(TalkAction(text="x"))
            assert result.observation.metadata == result.metadata == {"a": 1}

    await talk(old, use)


async def test_hand_written_hooks_are_used_and_still_get_metadata(server: Any) -> None:
    @dataclasses.dataclass
    class Said:
        text: str

    class HandWritten(EnvClient[TalkAction, Said, dict[str, Any]]):
        def _step_payload(self, action: TalkAction) -> dict[str, Any]:
            return {"text": action.text}

        def _parse_result(self, payload: dict[str, Any]) -> StepResult[Said]:
            return StepResult(Said(payload["observation"]["echoed"]), payload.get("reward"), payload.get("done", False))

        def _parse_state(self, payload: dict[str, Any]) -> dict[str, Any]:
            return {"mine": payload["heard"]}

    async with HandWritten(base_url=server.url) as client:
        assert (await client.step(TalkAction(text="x"))).observation == Said("x")
        assert (await client.step(TalkAction(text="cut"))).metadata == {"truncated": True}
        assert await client.state() == {"mine": ["x"]}


async def test_the_generic_client_takes_and_gives_dictionaries(server: Any) -> None:
    action = GenericAction(text="x", seconds=0)
    assert repr(action) == "GenericAction(text='x', seconds=0)"
    async with GenericEnvClient(base_url=server.url) as client:
        result = await client.step(action)
        assert result.observation == {"metadata": {}, "echoed": "x"}
        assert (await client.step(TalkAction(text="y"))).observation["echoed"] == "y"
        assert (await client.state())["heard"] == ["x", "y"]
        assert client.base_url == client._base_url == server.url


async def test_any_text_survives_the_round_trip(server: Any) -> None:
    async with TalkEnv(base_url=server.url) as client:
        for text in ("\ud800", "\x00", "x" * 20_000_000):
            assert (await client.step(TalkAction(text=text))).observation.echoed == text


def test_the_blocking_client_does_what_the_async_one_does(server: Any) -> None:
    with TalkEnv(base_url=server.url).sync() as client:
        assert client.reset(episode_id="e").observation.echoed == "hello"
        assert client.step(TalkAction(text="x")).reward == 0.5
        assert client.state().heard == ["x"]
        with pytest.raises(ServerError):
            client.step(TalkAction(text="boom"))
        assert client.base_url == server.url


async def test_the_blocking_client_works_inside_a_running_loop(server: Any) -> None:
    with TalkEnv(base_url=server.url).sync() as client:
        assert client.step(TalkAction(text="x")).observation.echoed == "x"


def test_the_blocking_client_offers_coroutines_of_subclasses(server: Any) -> None:
    class More(TalkEnv):
        async def twice(self, text: str) -> int:
            await self.step(TalkAction(text=text))
            await self.step(TalkAction(text=text))
            return len((await self.state()).heard)

    with More(base_url=server.url).sync() as client:
        assert client.twice("x") == 2


def test_the_blocking_client_may_be_shared_by_threads(server: Any) -> None:
    wrong: list[str] = []

    with TalkEnv(base_url=server.url).sync() as client:

        def talk_much(name: int) -> None:
            for number in range(20):
                text = f"{name}-{number}"
                if client.step(TalkAction(text=text)).observation.echoed != text:
                    wrong.append(text)

        threads = [threading.Thread(target=talk_much, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_without_a_loop_the_client_itself_blocks_and_leaves_no_thread(server: Any) -> None:
    client: Any = TalkEnv(base_url=server.url)
    assert client.reset().observation.echoed == "hello"
    assert client.step(TalkAction(text="x")).reward == 0.5
    client.close()
    with TalkEnv(base_url=server.url) as blocking:
        assert blocking.state().heard == []  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "openenv-client"]


async def test_a_plain_with_inside_a_loop_says_what_to_write(server: Any) -> None:
    with pytest.raises(TypeError, match="async with"), TalkEnv(base_url=server.url):
        pass


def test_one_client_may_be_used_async_first_and_blocking_afterwards(server: Any) -> None:
    client = TalkEnv(base_url=server.url)

    async def first() -> str:
        async with client as session:
            return (await session.reset()).observation.echoed

    assert asyncio.run(first()) == "hello"
    with client.sync() as session:
        assert session.reset().observation.echoed == "hello"


def test_a_client_connected_elsewhere_refuses_another_loop(server: Any) -> None:
    client: Any = TalkEnv(base_url=server.url)
    client.reset()

    async def other() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            await client.reset()

    asyncio.run(other())
    client.close()


def test_a_forgotten_portal_is_a_resource_warning() -> None:
    portal = Portal("openenv-forgotten")
    assert portal.call(asyncio.sleep(0, "done")) == "done"
    with pytest.warns(ResourceWarning, match="unclosed openenv-forgotten"):
        del portal


def test_a_client_needs_an_address_and_a_known_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="requires either base_url or provider"):
        TalkEnv()
    with pytest.raises(ValueError, match="Invalid mode: 'x'"):
        TalkEnv(base_url="localhost", mode="X")
    monkeypatch.setenv("OPENENV_CLIENT_MODE", "Production")
    assert TalkEnv(base_url="localhost").mode == "production"
    with pytest.raises(ValueError, match="scheme must be one of"):
        TalkEnv(base_url="ftp://localhost")


async def test_a_provider_is_started_by_the_first_call_and_stopped_by_close(server: Any) -> None:
    calls: list[str] = []

    class Provider:
        def start_container(self) -> str:
            calls.append("start")
            return str(server.url)

        def wait_for_ready(self, base_url: str) -> None:
            calls.append(f"ready {base_url == server.url}")

        def stop_container(self) -> None:
            calls.append("stop")

    client = TalkEnv(provider=Provider())
    await client.reset()
    await client.close()
    await client.close()
    assert calls == ["start", "ready True", "stop"]


async def test_headers_are_sent_and_loopback_needs_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "socks_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def show(socket: Any) -> None:
        async for _ in socket:
            seen = socket.request.headers["X-Token"]
            data = {"observation": {"seen": seen}, "reward": None, "done": False}
            await socket.send(json.dumps({"type": "observation", "data": data}))

    async def use(url: str) -> None:
        async with GenericEnvClient(base_url=url, headers={"X-Token": "t"}) as client:
            assert (await client.reset()).observation == {"seen": "t"}

    await talk(show, use)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:1/", "ws://h:1"),
        ("https://h/p/", "wss://h/p"),
        ("localhost:8000", "ws://localhost:8000"),
        ("ws://h", "ws://h"),
        ("WSS://h", "wss://h"),
    ],
)
def test_urls_become_websocket_urls(url: str, expected: str) -> None:
    assert convert_to_ws_url(url) == expected


async def test_run_async_safely_works_with_and_without_a_running_loop() -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 42

    assert run_async_safely(answer()) == 42
    assert await asyncio.to_thread(lambda: run_async_safely(answer())) == 42
