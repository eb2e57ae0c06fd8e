"""The HTTP transport: sessions by header, bodies, status codes."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from pydantic import Field

from openenv.core.env_server import Action, Environment, EnvironmentMetadata, Observation, State, create_app

HEADER = "X-OpenEnv-Session"


class CountAction(Action):
    add: int = 1
    sleep_s: float = 0.0
    mode: str = ""


class CountObservation(Observation):
    total: int
    given: dict[str, Any] = Field(default_factory=dict)


class CountState(State):
    total: int = 0


class CountEnvironment(Environment[CountAction, CountObservation, CountState]):
    SUPPORTS_CONCURRENT_SESSIONS = True
    built = 0
    closed = 0

    def __init__(self) -> None:
        type(self).built += 1
        self._state = CountState()

    def reset(self, **kwargs: Any) -> CountObservation:
        self._state = CountState(episode_id=kwargs.get("episode_id"))
        return CountObservation(total=0, given=kwargs)

    def step(self, action: CountAction, **kwargs: Any) -> CountObservation:
        time.sleep(action.sleep_s)
        if action.mode == "raise":
            raise RuntimeError("kaboom")
        if action.mode == "reward":
            return CountObservation(total=0, reward=1, metadata={"n": 1})
        self._state.total += action.add
        return CountObservation(total=self._state.total, given=kwargs)

    @property
    def state(self) -> CountState:
        return self._state

    def close(self) -> None:
        type(self).closed += 1


class PatientEnvironment(CountEnvironment):
    """Async, and interrupted by cancellation only."""

    async def reset_async(self, **kwargs: Any) -> CountObservation:
        return self.reset(**kwargs)

    async def step_async(self, action: CountAction) -> CountObservation:
        await asyncio.sleep(action.sleep_s)
        self._state.total += action.add
        return CountObservation(total=self._state.total)


@pytest.fixture
def start(serve: Callable[..., Any]) -> Callable[..., Any]:
    def start_one(env: Any = None, **options: Any) -> Any:
        cls = type("Fresh", (env or CountEnvironment,), {"built": 0, "closed": 0})
        server = serve(create_app(cls, CountAction, CountObservation, **{"max_concurrent_envs": 3, **options}))
        server.cls = cls
        return server

    return start_one


def test_health_is_constant_and_builds_nothing(start: Callable[..., Any]) -> None:
    server = start()
    assert httpx.get(f"{server.url}/health").text == '{"status":"healthy"}'
    assert httpx.get(f"{server.url}/schema").status_code == 200
    assert httpx.get(f"{server.url}/metadata").json() == {
        "name": "Fresh",
        "description": "Fresh environment",
        "readme_content": None,
        "version": "1.0.0",
        "author": None,
        "documentation_url": None,
    }
    assert server.cls.built == 0


def test_metadata_of_an_instance_are_asked_for_once_and_it_is_closed(start: Callable[..., Any]) -> None:
    class Described(CountEnvironment):
        def get_metadata(self) -> EnvironmentMetadata:
            return EnvironmentMetadata(name="mine", description="d")

    server = start(Described)
    for _ in range(3):
        assert httpx.get(f"{server.url}/metadata").json()["name"] == "mine"
    assert (server.cls.built, server.cls.closed) == (1, 1)


def test_schema_tells_the_models_and_the_declared_state(start: Callable[..., Any]) -> None:
    schema = httpx.get(f"{start().url}/schema").json()
    assert set(schema) == {"action", "observation", "state"}
    assert "add" in schema["action"]["properties"]
    assert schema["observation"]["required"] == ["total"]
    assert "total" in schema["state"]["properties"]


def test_openapi_has_the_title_and_version_that_validators_look_for(start: Callable[..., Any]) -> None:
    server = start()
    described = httpx.get(f"{server.url}/openapi.json").json()
    assert described["info"]["title"] == "OpenEnv Environment HTTP API"
    assert described["info"]["version"] == "1.0.0"
    assert {"/reset", "/step", "/state", "/health", "/metadata", "/schema"} <= set(described["paths"])
    assert httpx.get(f"{server.url}/docs").status_code == 200


def test_calls_without_a_header_share_one_session_that_lasts(start: Callable[..., Any]) -> None:
    server = start()
    reset = httpx.post(f"{server.url}/reset", json={"seed": 7, "episode_id": "ep", "level": 1}).json()
    assert reset == {
        "observation": {
            "metadata": {},
            "total": 0,
            "given": {"seed": 7, "episode_id": "ep", "level": 1},
        },
        "reward": None,
        "done": False,
        "metadata": None,
    }
    for total in (1, 2, 3):
        answer = httpx.post(f"{server.url}/step", json={"action": {}}).json()
        assert answer["observation"]["total"] == total
    state = httpx.get(f"{server.url}/state").json()
    assert state == {"episode_id": "ep", "step_count": 0, "total": 3}
    assert server.cls.built == 1


def test_reward_is_a_float_and_metadata_are_at_both_places(start: Callable[..., Any]) -> None:
    answer = httpx.post(f"{start().url}/step", json={"action": {"mode": "reward"}})
    assert '"reward":1.0' in answer.text
    assert answer.json()["metadata"] == answer.json()["observation"]["metadata"] == {"n": 1}


def test_extra_keys_of_a_step_reach_an_environment_that_takes_them(start: Callable[..., Any]) -> None:
    body = {"action": {}, "request_id": "r1", "timeout_s": 5, "other": [1], "action_": 2}
    answer = httpx.post(f"{start().url}/step", json=body).json()
    assert answer["observation"]["given"] == {
        "request_id": "r1",
        "timeout_s": 5.0,
        "other": [1],
        "action_": 2,
    }


def test_each_header_has_a_session_of_its_own_counted_in_the_capacity(start: Callable[..., Any]) -> None:
    server = start(max_concurrent_envs=2)

    def step(name: str) -> httpx.Response:
        return httpx.post(f"{server.url}/step", json={"action": {}}, headers={HEADER: name})

    assert [step("a").json()["observation"]["total"] for _ in range(3)] == [1, 2, 3]
    assert step("b").json()["observation"]["total"] == 1
    full = step("c")
    assert full.status_code == 503
    assert full.json() == {
        "detail": "Server at capacity: 2/2 sessions active. Cannot accept new connections.",
        "code": "CAPACITY_REACHED",
        "active_sessions": 2,
        "max_sessions": 2,
    }
    assert httpx.delete(f"{server.url}/session", headers={HEADER: "a"}).status_code == 204
    assert httpx.delete(f"{server.url}/session", headers={HEADER: "a"}).status_code == 404
    assert step("c").json()["observation"]["total"] == 1


@pytest.mark.parametrize("name", ["", "a b", "x" * 129, "../a"])
def test_a_header_that_cannot_name_a_session_is_refused(start: Callable[..., Any], name: str) -> None:
    answer = httpx.get(f"{start().url}/state", headers={HEADER: name})
    assert (answer.status_code, answer.json()["code"]) == (422, "VALIDATION_ERROR")


def test_a_session_that_ended_is_an_error_until_reset(
    start: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    server = start(http_idle_s=0.2)
    headers = {HEADER: "a"}
    assert httpx.post(f"{server.url}/step", json={"action": {}}, headers=headers).status_code == 200
    eventually(lambda: server.openenv.active_sessions == 0, "the idle session to end")
    gone = httpx.post(f"{server.url}/step", json={"action": {}}, headers=headers)
    assert (gone.status_code, gone.json()["code"]) == (410, "SESSION_ERROR")
    assert "idle for more than 0.2 s" in gone.json()["detail"]
    assert httpx.post(f"{server.url}/reset", headers=headers).status_code == 200
    again = httpx.post(f"{server.url}/step", json={"action": {}}, headers=headers)
    assert again.json()["observation"]["total"] == 1


def test_calls_of_one_session_run_one_after_another(start: Callable[..., Any]) -> None:
    server = start()
    totals: list[int] = []

    def step() -> None:
        answer = httpx.post(f"{server.url}/step", json={"action": {"sleep_s": 0.02}})
        totals.append(answer.json()["observation"]["total"])

    threads = [threading.Thread(target=step) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(totals) == list(range(1, 11))
    assert server.cls.built == 1


@pytest.mark.parametrize(
    ("body", "code", "loc"),
    [
        ({"text": "a"}, "VALIDATION_ERROR", ["body", "action"]),
        ({"action": {"add": "x"}}, "VALIDATION_ERROR", ["add"]),
        ({"action": {}, "timeout_s": 0}, "VALIDATION_ERROR", ["body", "timeout_s"]),
        ({"action": {}, "timeout_s": float("inf")}, "VALIDATION_ERROR", ["body", "timeout_s"]),
        ([1], "VALIDATION_ERROR", ["body"]),
        (None, "INVALID_JSON", ["body"]),
    ],
)
def test_a_wrong_body_is_422_and_names_the_field(
    start: Callable[..., Any], body: Any, code: str, loc: list[str]
) -> None:
    import json

    content = b"{" if body is None else json.dumps(body).encode()
    answer = httpx.post(f"{start().url}/step", content=content)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    [error] = answer.json()["detail"]
    assert error["loc"] == loc
    assert "url" not in error


def test_an_exception_is_a_json_500_and_the_session_survives(start: Callable[..., Any]) -> None:
    server = start()
    httpx.post(f"{server.url}/step", json={"action": {"add": 5}})
    broken = httpx.post(f"{server.url}/step", json={"action": {"mode": "raise"}})
    assert broken.status_code == 500
    assert broken.json() == {"detail": "kaboom", "code": "EXECUTION_ERROR"}
    assert httpx.get(f"{server.url}/state").json()["total"] == 5


def test_a_late_async_step_is_cancelled_with_504_and_the_session_goes_on(start: Callable[..., Any]) -> None:
    server = start(PatientEnvironment)
    body = {"action": {"add": 100, "sleep_s": 30}, "timeout_s": 0.1}
    late = httpx.post(f"{server.url}/step", json=body)
    assert late.status_code == 504
    assert late.json() == {"detail": "step exceeded 0.1 s", "code": "EXECUTION_ERROR"}
    assert httpx.get(f"{server.url}/state").json()["total"] == 0
    assert httpx.post(f"{server.url}/step", json={"action": {}}).json()["observation"]["total"] == 1


def test_a_late_blocking_step_is_504_and_ends_its_session(
    start: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    server = start(max_step_s=0.1)
    late = httpx.post(f"{server.url}/step", json={"action": {"sleep_s": 1.0}})
    assert late.status_code == 504
    assert late.json()["detail"] == "step exceeded 0.1 s and cannot be stopped; the session has ended"
    assert server.openenv.active_sessions == 0
    assert server.cls.closed == 0  # not under the live call
    gone = httpx.get(f"{server.url}/state")
    assert (gone.status_code, gone.json()["code"]) == (410, "SESSION_ERROR")
    eventually(lambda: server.cls.closed == 1, "the environment to close when its step returned")


def test_a_page_of_another_origin_cannot_post(start: Callable[..., Any]) -> None:
    server = start()
    for method, path in (("POST", "/reset"), ("POST", "/step"), ("DELETE", "/session")):
        refused = httpx.request(method, f"{server.url}{path}", headers={"Origin": "https://evil.example"})
        assert refused.status_code == 403
    assert server.cls.built == 0
    assert httpx.post(f"{server.url}/reset", headers={"Origin": server.url}).status_code == 200


def test_production_mode_serves_no_episodes_over_http(start: Callable[..., Any]) -> None:
    server = start(mode="PRODUCTION")
    assert httpx.post(f"{server.url}/reset").status_code == 404
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_an_unknown_mode_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"Invalid mode: 'x'. Must be one of: \['simulation', 'production'\]"):
        create_app(CountEnvironment, CountAction, CountObservation, mode="x")
