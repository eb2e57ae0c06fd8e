"""The package around the environment: what importing it loads, its manifest, its policy."""

import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import coding_env
import pytest
import yaml
from coding_env.models import CodeAction
from coding_env.server.coding_environment import CodingEnvironment, PythonCodeActEnv
from pydantic import ValidationError

from sandbox import Outcome, Policy

FOLDER = Path(coding_env.__file__).parent

# What policy.toml sets to something else than the default, and says why beside it: nothing.
DIFFERS: dict[str, Any] = {}


def test_a_client_loads_neither_server_nor_sandbox() -> None:
    program = (
        "import sys\n"
        "from coding_env import CodeAction, CodeObservation, CodeState, CodingEnv\n"
        "CodeAction(code='1')\n"
        "heavy = {'fastapi', 'uvicorn', 'starlette', 'sandbox', 'coding_env.server'}\n"
        "print(*(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "\n"


def test_the_package_loads_nothing_until_a_name_is_used() -> None:
    program = (
        "import sys, coding_env; print('pydantic' in sys.modules, set(coding_env.__all__) <= set(dir(coding_env)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "False True\n"
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        coding_env.Nothing  # noqa: B018


def test_it_is_the_same_from_the_checkout() -> None:
    program = "from envs.coding_env import CodingEnv, CodeAction; import envs.coding_env.server.coding_environment"
    subprocess.run([sys.executable, "-c", program], cwd=FOLDER.parent.parent, check=True)


def test_existing_name_of_the_environment() -> None:
    assert PythonCodeActEnv is CodingEnvironment
    assert CodingEnvironment.SUPPORTS_CONCURRENT_SESSIONS


def test_code_is_a_string_and_nothing_else() -> None:
    for wrong in (5, b"print()", None, ["x"]):
        with pytest.raises(ValidationError, match="code"):
            CodeAction(code=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="timeout"):
        CodeAction(code="", timeout=float("inf"))


def test_manifest() -> None:
    manifest = yaml.safe_load((FOLDER / "openenv.yaml").read_text(encoding="utf-8"))
    assert manifest["spec_version"] == 1
    assert (manifest["name"], manifest["type"], manifest["runtime"]) == ("coding_env", "space", "fastapi")
    assert (manifest["app"], manifest["port"]) == ("server.app:app", 8000)
    assert manifest["description"]
    assert (manifest["action"], manifest["observation"]) == ("CodeAction", "CodeObservation")


def test_policy_is_the_whole_jail_and_the_documented_one() -> None:
    path = FOLDER / "policy.toml"
    expected = {**Policy.default().to_dict(), **DIFFERS}
    assert Policy.load(path).to_dict() == expected
    written = tomllib.loads(path.read_text(encoding="utf-8"))
    assert _names(written) == _names(expected)


def _names(settings: dict[str, Any]) -> set[str]:
    inner = {f"{k}.{n}" for k, v in settings.items() if isinstance(v, dict) for n in _names(v)}
    return inner | set(settings)


def test_every_setting_has_a_comment() -> None:
    lines = (FOLDER / "policy.toml").read_text(encoding="utf-8").splitlines()
    policy = Policy.default()
    sections = [policy, *(getattr(policy, each.name) for each in fields(policy))]
    names = {each.name for section in sections if hasattr(section, "table") for each in fields(section)}
    shared = {"workspace_files", "lifetime_s", "variables", "LANG", "names"}  # explained by the line before
    for number, line in enumerate(lines):
        name = line.split(" =")[0]
        if name in names - shared:
            assert lines[number - 1].startswith(("#", "[")), f"{name} has no comment"


def test_readme_names_every_fact_outcome_and_variable() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    facts = ["last_code", "outcome", "value", "signal", "state_lost", "truncated", "usage", "safety_violation"]
    variables = ["CODING_ENV_POLICY", "CODING_ENV_SHOW_VALUE", "MAX_CONCURRENT_ENVS", "HOST", "PORT"]
    for word in (*facts, *variables, *Outcome):
        assert f"`{word}`" in readme, word
