"""Frames on a WebSocket, to the byte where clients depend on it."""

import dataclasses
import datetime as dt
import enum
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import field_validator
from websockets.exceptions import ConnectionClosedOK, InvalidStatus
from websockets.sync.client import connect

from openenv.core.env_server import Action, Environment, Observation, State, create_app


class EchoAction(Action):
    text: str = ""
    number: int = 0

    @field_validator("text")
    @classmethod
    def _polite(cls, text: str) -> str:
        if text == "rude":
            raise ValueError("be polite")
        return text


class EchoObservation(Observation):
    echoed: str = ""
    extra: Any = None


class EchoEnvironment(Environment[EchoAction, EchoObservation, State]):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        self._state = State()
        self._resets = 0

    def reset(self, seed: int | None = None, episode_id: str | None = None, level: str = "easy") -> EchoObservation:
        self._resets += 1
        self._state = State(episode_id=episode_id, step_count=0)
        return EchoObservation(echoed=f"seed={seed} level={level}")

    def step(self, action: EchoAction) -> EchoObservation:
        self._state.step_count += 1
        match action.text:
            case "boom":
                raise RuntimeError("kaboom")
            case "silent":
                raise KeyError
            case "exit":
                raise SystemExit(3)
            case "interrupt":
                raise KeyboardInterrupt
            case "unsendable":
                return EchoObservation(extra=object())
            case "resets":
                return EchoObservation(echoed=str(self._resets))
            case "done":
                return EchoObservation(echoed="done", reward=1, done=True, metadata={"n": 1})
        return EchoObservation(echoed=action.text, reward=0.5, extra=action.number)

    @property
    def state(self) -> State:
        return self._state


@pytest.fixture(scope="module")
def echo_server(serve_for_module: Callable[..., Any]) -> Any:
    return serve_for_module(create_app(EchoEnvironment, EchoAction, EchoObservation, max_concurrent_envs=8))


@pytest.fixture(scope="module")
def plain_server(serve_for_module: Callable[..., Any]) -> Any:
    return serve_for_module(create_app(PlainEnvironment, PlainAction, PlainObservation))


@pytest.fixture
def socket(echo_server: Any) -> Any:
    with connect(echo_server.ws_url, max_size=None, proxy=None) as connection:
        yield connection


def ask(socket: Any, message: Any) -> Any:
    socket.send(message if isinstance(message, str | bytes) else json.dumps(message))
    return json.loads(socket.recv(timeout=20))


def still_works(socket: Any) -> None:
    assert ask(socket, {"type": "state"})["type"] == "state"


def test_reset_without_data_answers_an_observation_without_top_level_metadata(socket: Any) -> None:
    assert ask(socket, {"type": "reset"}) == {
        "type": "observation",
        "data": {
            "observation": {"metadata": {}, "echoed": "seed=None level=easy", "extra": None},
            "reward": None,
            "done": False,
        },
    }


def test_reset_keywords_reach_the_environment_and_unknown_ones_are_dropped(socket: Any) -> None:
    reply = ask(socket, {"type": "reset", "data": {"seed": 3, "episode_id": "ep-9", "level": "x", "self": 1, "y": 2}})
    assert reply["data"]["observation"]["echoed"] == "seed=3 level=x"
    assert ask(socket, {"type": "state"}) == {
        "type": "state",
        "data": {"episode_id": "ep-9", "step_count": 0},
    }


def test_step_keeps_integer_reward_and_carries_metadata_twice(socket: Any) -> None:
    socket.send('{"type":"step","data":{"text":"done"}}')
    assert socket.recv(timeout=20) == (
        '{"type":"observation","data":{"observation":{"metadata":{"n":1},"echoed":"done","extra":null},'
        '"reward":1,"done":true,"metadata":{"n":1}}}'
    )


def test_close_is_answered_by_close_code_1000_and_no_frame(socket: Any) -> None:
    socket.send('{"type":"close"}')
    with pytest.raises(ConnectionClosedOK) as closed:
        socket.recv(timeout=20)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1000


@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        ("{nonsense", "INVALID_JSON", "Invalid JSON: Expecting property name"),
        ("[" * 100_000, "INVALID_JSON", "Invalid JSON: nested too deeply"),
        (b'{"type":"state"}', "INVALID_JSON", "Invalid JSON: binary frame"),
        ("[1]", "VALIDATION_ERROR", "Invalid message: expected a JSON object, got list"),
        ('"s"', "VALIDATION_ERROR", "Invalid message: expected a JSON object, got str"),
        ("{}", "UNKNOWN_TYPE", "Unknown message type: None"),
        ('{"type":"wat"}', "UNKNOWN_TYPE", "Unknown message type: wat"),
        ('{"type":["state"]}', "UNKNOWN_TYPE", "Unknown message type: ['state']"),
        ('{"type":"step"}', "VALIDATION_ERROR", "Invalid message: data: Field required"),
        (
            '{"type":"step","data":[]}',
            "VALIDATION_ERROR",
            "Invalid message: data: Input should be a valid dict",
        ),
        (
            '{"type":"step","data":{},"timeout_s":1}',
            "VALIDATION_ERROR",
            "Invalid message: timeout_s: Extra inputs",
        ),
        ('{"type":"state","data":{}}', "VALIDATION_ERROR", "Invalid message: data: Extra inputs"),
        (
            '{"type":"step","data":{"text":7}}',
            "VALIDATION_ERROR",
            "Invalid action: text: Input should be a valid st",
        ),
        ('{"type":"step","data":{"what":7}}', "VALIDATION_ERROR", "Invalid action: what: Extra inputs"),
        (
            '{"type":"step","data":{"text":"rude"}}',
            "VALIDATION_ERROR",
            "Invalid action: text: Value error, be polite",
        ),
        (
            '{"type":"reset","data":{"seed":"notint"}}',
            "VALIDATION_ERROR",
            "Invalid reset: seed: Input should be",
        ),
        (
            '{"type":"reset","data":{"seed":-1}}',
            "VALIDATION_ERROR",
            "Invalid reset: seed: Input should be greater",
        ),
        ('{"type":"step","data":{"text":"boom"}}', "EXECUTION_ERROR", "kaboom"),
        ('{"type":"step","data":{"text":"silent"}}', "EXECUTION_ERROR", "KeyError"),
        ('{"type":"step","data":{"text":"exit"}}', "EXECUTION_ERROR", "SystemExit: 3"),
        ('{"type":"step","data":{"text":"interrupt"}}', "EXECUTION_ERROR", "KeyboardInterrupt"),
        (
            '{"type":"step","data":{"text":"unsendable"}}',
            "EXECUTION_ERROR",
            "a value of type 'object' cannot be sent",
        ),
    ],
)
def test_a_request_that_fails_gets_its_code_and_the_session_survives(
    socket: Any, message: str | bytes, code: str, text: str
) -> None:
    reply = ask(socket, message)
    assert reply["type"] == "error"
    assert reply["data"]["code"] == code
    assert reply["data"]["message"].startswith(text)
    still_works(socket)


def test_validation_errors_show_no_link_and_no_long_input(socket: Any) -> None:
    reply = ask(socket, {"type": "step", "data": {"text": ["x" * 1_000_000]}})
    [error] = reply["data"]["errors"]
    assert error == {
        "type": "string_type",
        "loc": ["text"],
        "msg": "Input should be a valid string",
        "input": "<list>",
    }
    assert len(json.dumps(ask(socket, {"type": "step", "data": {"number": "y" * 1_000_000}}))) < 1000


def test_pipelined_requests_are_answered_in_order(socket: Any) -> None:
    for number in range(200):
        socket.send(json.dumps({"type": "step", "data": {"number": number}}))
    answers = [json.loads(socket.recv(timeout=20))["data"]["observation"]["extra"] for _ in range(200)]
    assert answers == list(range(200))


def test_a_step_before_reset_starts_one_episode_by_itself(socket: Any) -> None:
    assert ask(socket, {"type": "step", "data": {"text": "resets"}})["data"]["observation"]["echoed"] == "1"
    assert ask(socket, {"type": "step", "data": {"text": "resets"}})["data"]["observation"]["echoed"] == "1"


def test_state_works_before_reset_and_a_step_after_done_reaches_the_environment(socket: Any) -> None:
    assert ask(socket, {"type": "state"})["data"] == {"episode_id": None, "step_count": 0}
    assert ask(socket, {"type": "step", "data": {"text": "done"}})["data"]["done"] is True
    assert ask(socket, {"type": "step", "data": {"text": "more"}})["data"]["observation"]["echoed"] == "more"


@pytest.mark.parametrize("text", ["\ud800 lone", "\x00 nul", "snow \u2603", "\U0001f600", "x" * 20_000_000])
def test_any_text_comes_back_as_it_went(socket: Any, text: str) -> None:
    assert ask(socket, {"type": "step", "data": {"text": text}})["data"]["observation"]["echoed"] == text


@pytest.mark.parametrize("number", [2**63, -(2**70), 10**300])
def test_integers_beyond_64_bits_survive(socket: Any, number: int) -> None:
    assert ask(socket, {"type": "step", "data": {"number": number}})["data"]["observation"]["extra"] == number


def test_capacity_is_one_error_frame_and_then_close_1000(serve: Callable[..., Any]) -> None:
    server = serve(create_app(EchoEnvironment, EchoAction, EchoObservation, max_concurrent_envs=2))
    with connect(server.ws_url, proxy=None) as first, connect(server.ws_url, proxy=None) as second:
        still_works(first)
        still_works(second)
        with connect(server.ws_url, proxy=None) as third:
            assert json.loads(third.recv(timeout=20)) == {
                "type": "error",
                "data": {
                    "message": "Server at capacity: 2/2 sessions active. Cannot accept new connections.",
                    "code": "CAPACITY_REACHED",
                    "active_sessions": 2,
                    "max_sessions": 2,
                },
            }
            with pytest.raises(ConnectionClosedOK):
                third.recv(timeout=20)
        still_works(first)


def test_a_broken_factory_is_one_error_frame_and_frees_its_slot(serve: Callable[..., Any]) -> None:
    def broken() -> EchoEnvironment:
        raise OSError("secret path")

    server = serve(create_app(broken, EchoAction, EchoObservation))
    for _ in range(2):
        with connect(server.ws_url, proxy=None) as socket:
            assert json.loads(socket.recv(timeout=20))["data"] == {
                "message": "Environment factory 'broken' failed to create instance.",
                "code": "FACTORY_ERROR",
                "factory_name": "broken",
            }
            with pytest.raises(ConnectionClosedOK):
                socket.recv(timeout=20)
    assert server.openenv.active_sessions == 0


def test_a_page_of_another_origin_cannot_connect(serve: Callable[..., Any]) -> None:
    server = serve(create_app(EchoEnvironment, EchoAction, EchoObservation, allowed_origins=["https://ok.example"]))
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        with pytest.raises(InvalidStatus) as refused:
            connect(server.ws_url, origin=origin, proxy=None)  # type: ignore[arg-type]
        assert refused.value.response.status_code == 403
    for origin in (server.url, "https://ok.example"):
        with connect(server.ws_url, origin=origin, proxy=None) as socket:  # type: ignore[arg-type]
            still_works(socket)


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    y: float


@dataclasses.dataclass
class PlainAction:
    what: str
    times: int = 1


@dataclasses.dataclass
class PlainObservation:
    value: Any


VALUES: dict[str, tuple[Any, Any]] = {
    "array": (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    "float32": (np.float32(0.5), 0.5),
    "int64": (np.int64(7), 7),
    "nan": ([float("nan"), np.array([1.0, np.inf])], [None, [1.0, None]]),
    "bytes": ([b"text", b"\xff\x00"], ["text", "/wA="]),
    "datetime": (dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC), "2026-01-02T03:04:05+00:00"),
    "timedelta": (dt.timedelta(milliseconds=1500), 1.5),
    "set": ({3, 1, 2}, [1, 2, 3]),
    "tuple": ((1, "a"), [1, "a"]),
    "enum": ([Colour.RED, {Colour.RED: 1}], ["red", {"red": 1}]),
    "dataclass": (Point(1, 2.5), {"x": 1, "y": 2.5}),
    "keys": ({1: "a", None: "b", (2, 3): "c"}, {"1": "a", "null": "b", "(2, 3)": "c"}),
    "model": (State(step_count=2), {"episode_id": None, "step_count": 2}),
    "wide": ({"n": 2**80, "s": "\udcff", "a": np.array([1.0, np.nan]), "e": Colour.RED}, None),
}


class PlainEnvironment(Environment[PlainAction, PlainObservation, dict[str, Any]]):
    """Dataclasses, a method instead of the property, and a constructor that calls no other."""

    def __init__(self) -> None:
        self.count = 0

    def reset(self) -> PlainObservation:  # type: ignore[override]
        return PlainObservation(value="ready")

    def step(self, action: PlainAction) -> PlainObservation:  # type: ignore[override]
        self.count += action.times
        return self._apply_transform(PlainObservation(value=VALUES[action.what][0]))

    def state(self) -> dict[str, Any]:  # type: ignore[override]
        return {"count": self.count, "score": self._apply_rubric(None, None)}  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(VALUES.keys() - {"wide"}))
def test_values_that_json_does_not_know_are_written_by_the_rule(plain_server: Any, name: str) -> None:
    with connect(plain_server.ws_url, proxy=None) as socket:
        reply = ask(socket, {"type": "step", "data": {"what": name}})
        assert reply["data"] == {"observation": {"value": VALUES[name][1]}, "reward": None, "done": False}


def test_the_slow_road_writes_by_the_same_rule(plain_server: Any) -> None:
    with connect(plain_server.ws_url, proxy=None) as socket:
        reply = ask(socket, {"type": "step", "data": {"what": "wide"}})
        assert reply["data"]["observation"]["value"] == {
            "n": 2**80,
            "s": "\udcff",
            "a": [1.0, None],
            "e": "red",
        }


def test_dataclasses_and_a_state_method_serve_as_well(plain_server: Any) -> None:
    with connect(plain_server.ws_url, proxy=None) as socket:
        ask(socket, {"type": "step", "data": {"what": "set", "times": 5}})
        assert ask(socket, {"type": "state"}) == {"type": "state", "data": {"count": 5, "score": 0.0}}
        wrong = ask(socket, {"type": "step", "data": {"what": "set", "tims": 5}})
        assert wrong["data"]["code"] == "VALIDATION_ERROR"
        assert "unknown fields ['tims']" in wrong["data"]["message"]
