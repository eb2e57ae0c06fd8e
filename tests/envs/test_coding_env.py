"""Episodes of coding_env, through the real server and the real sandbox."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from coding_env import CodeAction, CodeObservation, CodeState, CodingEnv
from pydantic import BaseModel, ConfigDict
from websockets.sync.client import connect

from openenv.core import GenericEnvClient, ServerError

DRAW = "import random; print(random.random(), random.randrange(10**9))"


@pytest.fixture
def env(server: Any) -> Iterator[Any]:
    with CodingEnv(base_url=server.url).sync() as client:
        client.reset()
        yield client


def run(env: Any, code: str, **fields: Any) -> CodeObservation:
    observation = env.step(CodeAction(code=code, **fields)).observation
    assert isinstance(observation, CodeObservation)
    return observation


def outcome(observation: CodeObservation) -> str:
    return str(observation.metadata["outcome"])


def test_state_lives_from_step_to_step_and_reset_clears_it(env: Any) -> None:
    run(env, "x = 20\ndef f(): return x + 1\nopen('note.txt', 'w').write('kept')")
    assert run(env, "print(f(), open('note.txt').read())").stdout == "21 kept\n"
    env.reset()
    gone = run(env, "import pathlib\nprint(list(pathlib.Path().iterdir()))\nx")
    assert gone.stdout == "[]\n"
    assert "NameError: name 'x' is not defined" in gone.stderr


def test_reset_observation_and_state(env: Any) -> None:
    started = env.reset(episode_id="mine")
    assert (started.reward, started.done) == (0.0, False)
    assert started.observation == CodeObservation(reward=0.0)
    run(env, "1/0")
    state = env.state()
    assert isinstance(state, CodeState)
    assert (state.episode_id, state.step_count, state.last_exit_code) == ("mine", 1, 1)
    env.reset()
    state = env.state()
    assert (state.step_count, state.last_exit_code) == (0, 0)
    assert state.episode_id not in {None, "", "mine"}


def test_step_before_the_first_reset_starts_an_episode(server: Any) -> None:
    with CodingEnv(base_url=server.url).sync() as env:
        assert run(env, "print('hello')").stdout == "hello\n"
        assert env.state().episode_id


def test_facts_are_in_the_metadata(env: Any) -> None:
    observation = run(env, "print('a')\n[1, 2]")
    facts = observation.metadata
    assert (observation.stdout, observation.stderr, observation.exit_code) == ("a\n", "", 0)
    assert (facts["outcome"], facts["value"], facts["last_code"]) == ("ok", "[1, 2]", "print('a')\n[1, 2]")
    assert (facts["signal"], facts["state_lost"]) == (None, False)
    assert facts["truncated"] == {"stdout_bytes": 0, "stderr_bytes": 0, "value_bytes": 0}
    assert set(facts["usage"]) == {"wall_s", "cpu_s", "memory_peak_bytes"}
    spent = run(env, "import time\ntime.sleep(0.1)\nt = time.process_time()\nwhile time.process_time() - t < 0.1: pass")
    assert 0.19 < spent.metadata["usage"]["wall_s"] < 10
    assert spent.metadata["usage"]["cpu_s"] is None or 0.09 < spent.metadata["usage"]["cpu_s"] < 1


def test_prints_before_an_exception_are_kept_and_the_traceback_shows_no_path_of_the_server(env: Any) -> None:
    observation = run(env, "print('before')\ndef inner():\n    return 1 / 0\ninner()")
    assert (observation.stdout, observation.exit_code, outcome(observation)) == ("before\n", 1, "error")
    assert "line 3, in inner" in observation.stderr
    assert observation.stderr.endswith("ZeroDivisionError: division by zero\n")
    for word in ("/proc/", "sandbox", "site-packages", "interpreter.py", "envs"):
        assert word not in observation.stderr


def test_system_exit_is_an_observation_and_the_session_lives(env: Any) -> None:
    run(env, "x = 5")
    observation = run(env, "raise SystemExit(3)")
    assert (observation.exit_code, outcome(observation)) == (3, "exited")
    assert run(env, "print(x)").stdout == "5\n"


def test_timeout_is_an_observation_and_the_session_lives(env: Any) -> None:
    run(env, "x = 5")
    observation = run(env, "print('started', flush=True)\nwhile True: pass", timeout=0.3)
    assert (observation.stdout, outcome(observation)) == ("started\n", "timeout")
    assert observation.metadata["state_lost"] is False
    assert run(env, "print(x)").stdout == "5\n"


def test_timeout_of_code_that_does_not_yield_loses_the_state_and_says_so(env: Any) -> None:
    run(env, "x = 5")
    observation = run(env, "import itertools\nsum(itertools.count())", timeout=0.3)
    assert (outcome(observation), observation.metadata["state_lost"]) == ("timeout", True)
    assert run(env, "print('x' in globals())").stdout == "False\n"


def test_process_that_kills_itself(env: Any) -> None:
    observation = run(env, "import os\nprint('here', flush=True)\nos.kill(os.getpid(), 9)")
    assert (observation.stdout, outcome(observation)) == ("here\n", "killed")
    assert (observation.exit_code, observation.metadata["signal"]) == (137, 9)
    assert run(env, "print('back')").stdout == "back\n"


@pytest.mark.parametrize(
    ("code", "expected", "exit_code"),
    [
        ("", "ok", 0),
        ("1/0", "error", 1),
        ("x = (", "error", 1),
        ("raise KeyboardInterrupt", "error", 1),
        ("import sys; sys.exit()", "exited", 0),
        ("import sys; sys.exit('bye')", "exited", 1),
        ("import os; os._exit(3)", "exited", 3),
        ("bytearray(10**10)", "memory", 1),
        ("import ctypes; ctypes.string_at(0)", "killed", 139),
    ],
)
def test_outcome_and_exit_code(env: Any, code: str, expected: str, exit_code: int) -> None:
    observation = run(env, code)
    assert (outcome(observation), observation.exit_code) == (expected, exit_code)
    assert run(env, "print('alive')").stdout == "alive\n"


@pytest.mark.parametrize("value", [5, None, ["print()"], {"a": 1}, True])
def test_wrong_type_in_code_is_a_validation_error_that_names_it(server: Any, value: Any) -> None:
    with connect(server.ws_url, proxy=None) as socket:
        socket.send(json.dumps({"type": "step", "data": {"code": value}}))
        answer = json.loads(socket.recv())
        assert (answer["type"], answer["data"]["code"]) == ("error", "VALIDATION_ERROR")
        assert "code: Input should be a valid string" in answer["data"]["message"]
        assert answer["data"]["errors"][0]["loc"] == ["code"]
        socket.send(json.dumps({"type": "step", "data": {"code": "print(1)"}}))
        assert json.loads(socket.recv())["data"]["observation"]["stdout"] == "1\n"


@pytest.mark.parametrize("timeout", [0, -1, "soon"])
def test_wrong_timeout_names_the_field(server: Any, timeout: Any) -> None:
    with GenericEnvClient(base_url=server.url).sync() as env:
        with pytest.raises(ServerError, match="timeout: ") as raised:
            env.step({"code": "", "timeout": timeout})
        assert raised.value.code == "VALIDATION_ERROR"


def test_oversized_code_is_an_error_that_names_the_limit_and_loses_nothing(env: Any) -> None:
    run(env, "x = 5")
    with pytest.raises(ServerError, match=r"limits\.source_bytes allows 16777216"):
        run(env, "#" * (16 * 2**20 + 1))
    assert run(env, "print(x)").stdout == "5\n"


def test_seeds_reproduce_and_their_absence_does_not(env: Any) -> None:
    def draw(**keywords: Any) -> str:
        env.reset(**keywords)
        return run(env, DRAW).stdout

    assert draw(seed=7) == draw(seed=7)
    assert draw(seed=7) != draw(seed=8)
    assert draw(seed=2**70) == draw(seed=2**70)
    assert len({draw() for _ in range(5)}) == 5


def test_hash_seed_is_that_of_the_server(env: Any) -> None:
    first = run(env, "print(hash('word'))").stdout
    env.reset()
    assert run(env, "print(hash('word'))").stdout == first


async def test_sixteen_sessions_at_once_see_only_their_own_variables(server: Any) -> None:
    async def session(number: int) -> list[str]:
        async with CodingEnv(base_url=server.url) as env:
            await env.reset()
            seen = []
            for step in range(5):
                await env.step(CodeAction(code=f"own = ({number}, {step})\nopen('own', 'w').write(str(own))"))
                result = await env.step(CodeAction(code="print(own, open('own').read())"))
                seen.append(result.observation.stdout)
            return seen

    answers = await asyncio.gather(*map(session, range(16)))
    assert answers == [[f"({n}, {s}) ({n}, {s})\n" for s in range(5)] for n in range(16)]


def test_generic_client_works(server: Any) -> None:
    with GenericEnvClient(base_url=server.url).sync() as env:
        assert env.reset().observation == {"stdout": "", "stderr": "", "exit_code": 0, "metadata": {}}
        result = env.step({"code": "print(6 * 7)"})
        assert (result.observation["stdout"], result.reward, result.done) == ("42\n", 0.1, False)
        assert env.state()["last_exit_code"] == 0


class OldObservation(BaseModel):
    """What clients of older servers declare: these fields, and no others."""

    model_config = ConfigDict(extra="forbid")

    done: bool = False
    reward: float | None = None
    metadata: dict[str, Any] = {}
    stdout: str = ""
    stderr: str = ""
    exit_code: int = 0


@pytest.mark.parametrize("code", ["print(1)\n2", "1/0", "raise SystemExit(2)"])
def test_strict_models_of_older_clients_parse_the_observation(server: Any, code: str) -> None:
    with connect(server.ws_url, proxy=None) as socket:
        for message in ({"type": "reset", "data": {}}, {"type": "step", "data": {"code": code}}):
            socket.send(json.dumps(message))
            data = json.loads(socket.recv())["data"]
            OldObservation(**data["observation"], reward=data["reward"], done=data["done"])


LONG = "# " + "x" * 100 + "\n"


@pytest.mark.parametrize(
    ("code", "reward"),
    [
        ("print(1)", 0.1),
        (LONG + "print(1)", 0.0),
        ("1/0", 0.1),
        ("import os", -0.9),
        (LONG + "import  subprocess", -1.0),
        ("print('eval(')", -0.9),
        ("def (", -0.1),
        (LONG + "def (", -0.2),
        ("  indented", -0.1),
        ("compile('def (', '', 'exec')", 0.1),
        ("", 0.1),
        (" " * 200, 0.1),
    ],
)
def test_reward(env: Any, code: str, reward: float) -> None:
    result = env.step(CodeAction(code=code))
    assert result.reward == reward
    assert result.observation.metadata["last_code"] == code
    assert ("safety_violation" in result.observation.metadata) == (reward < -0.5)


def test_reason_of_a_violation_is_the_pattern(env: Any) -> None:
    assert run(env, "import os").metadata["safety_violation"] == r"import\s+os"


def test_stdout_is_that_of_python_unless_values_are_asked_for(env: Any) -> None:
    assert run(env, "print(1)\n'a'").stdout == "1\n"


@pytest.mark.parametrize(
    ("code", "stdout"),
    [
        ("x = 5", "5"),
        ("'a'", '"a"'),
        ("print(1)\n(1, 'b', None)", '1\n\n[1, "b", null]'),
        ("{1}", "{1}"),
        ("x = [1]\nx[0] += 2", "3"),
        ("y: dict = {'k': True}", '{"k": true}'),
        ("None", ""),
        ("def f(): pass", ""),
        ("x = print('once')", "once\n"),
        ("1/0", ""),
    ],
)
def test_value_of_the_last_statement_can_be_shown(values: Any, code: str, stdout: str) -> None:
    assert run(values, code).stdout == stdout


@pytest.fixture(scope="module")
def values(serve_module: Callable[..., Any]) -> Iterator[Any]:
    server = serve_module(CODING_ENV_SHOW_VALUE="1")
    with CodingEnv(base_url=server.url).sync() as env:
        yield env


def test_showing_values_leaves_no_name_behind(values: Any) -> None:
    values.reset()
    run(values, "x = 5")
    assert run(values, "print(sorted(n for n in globals() if n[0] != '_'))").stdout.startswith("['x']")


def test_http_serves_the_same_episode(server: Any) -> None:
    with httpx.Client(base_url=server.url) as http:
        assert http.post("/reset", json={"seed": 1}).json()["reward"] == 0.0
        http.post("/step", json={"action": {"code": "x = 2"}})
        answer = http.post("/step", json={"action": {"code": "print(x)"}}).json()
        assert (answer["observation"]["stdout"], answer["done"]) == ("2\n", False)
        assert http.get("/state").json()["step_count"] == 2
        late = http.post("/step", json={"action": {"code": "while True: pass"}, "timeout_s": 0.3}).json()
        assert late["observation"]["metadata"]["outcome"] == "timeout"
        wrong = http.post("/step", json={"action": {"code": 5}})
        assert wrong.status_code == 422
        assert "code" in wrong.text
        assert http.get("/metadata").json()["name"] == "coding_env"
        assert set(http.get("/schema").json()["action"]["properties"]) == {"code", "timeout", "metadata"}


def test_capacity_is_what_the_machine_holds(server: Any) -> None:
    assert server.app.state.openenv.max_concurrent_envs == server.sandboxes.max_sandboxes > 1


def test_a_slot_can_be_taken_again_at_once(serve: Callable[..., Any], tmp_path: Any) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("[template]\nlibraries = []\n[pool]\nmax_sandboxes = 1\nready = 1\n")
    server = serve(CODING_ENV_POLICY=str(policy))
    assert server.app.state.openenv.max_concurrent_envs == 1
    for number in range(5):
        with CodingEnv(base_url=server.url).sync() as env:
            env.reset()
            assert run(env, f"print({number})").stdout == f"{number}\n"
