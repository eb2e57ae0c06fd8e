"""What can be imported, what that loads, and tables that must be complete."""

import subprocess
import sys

import pytest

import openenv
import openenv.core
import openenv.core.env_server as env_server
from openenv.core.env_server.exceptions import ERROR_RULES
from openenv.core.env_server.settings import ServerSettings
from openenv.core.env_server.types import ServerMode, WSErrorCode

SERVER_PACKAGES = ("fastapi", "starlette", "uvicorn", "typer", "orjson", "yaml")


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import openenv",
        "import openenv.core",
        "import openenv.core.env_server",
        "from openenv.core.env_server.types import Action, Observation, State",
        "from openenv.core.env_server import Environment, Action",
        "from openenv.core.env_server.interfaces import Environment",
    ],
)
def test_the_vocabulary_loads_no_server_package(statement: str) -> None:
    assert not loaded_after(statement) & set(SERVER_PACKAGES)


def test_a_client_loads_no_web_framework() -> None:
    loaded = loaded_after("from openenv.core import EnvClient, GenericEnvClient, SyncEnvClient, StepResult")
    assert not loaded & {"fastapi", "starlette", "uvicorn", "typer", "openenv.core.env_server.app"}


def test_importing_the_core_is_quick() -> None:
    def seconds() -> float:
        code = "import time; t = time.perf_counter(); import openenv.core; print(time.perf_counter() - t)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
        return float(done.stdout)

    assert min(seconds() for _ in range(3)) < 0.15


def test_every_public_name_exists() -> None:
    for module in (openenv, openenv.core, env_server):
        names = list(module.__all__)
        assert len(names) == len(set(names))
        for name in names:
            assert getattr(module, name) is not None
        assert set(names) <= set(dir(module))
        with pytest.raises(AttributeError):
            _ = module.no_such_name


def test_the_core_offers_what_the_server_side_exports() -> None:
    for name in env_server.__all__:
        assert getattr(openenv.core, name) is getattr(env_server, name)


def test_import_paths_of_the_ecosystem() -> None:
    from openenv.core.client_types import StepResult
    from openenv.core.env_client import EnvClient
    from openenv.core.env_server.base_transforms import CompositeTransform, NullTransform
    from openenv.core.env_server.http_server import HTTPEnvServer, create_app, create_fastapi_app
    from openenv.core.env_server.interfaces import Action, EnvironmentMetadata, Observation, State
    from openenv.core.env_server.route_config import GetEndpointConfig, register_get_endpoints
    from openenv.core.generic_client import GenericAction, GenericEnvClient
    from openenv.core.sync_client import SyncEnvClient

    assert CompositeTransform([NullTransform(), NullTransform()])("x") == "x"
    assert all(
        (
            StepResult,
            EnvClient,
            HTTPEnvServer,
            create_app,
            create_fastapi_app,
            Action,
            EnvironmentMetadata,
            Observation,
            State,
            GetEndpointConfig,
            register_get_endpoints,
            GenericAction,
            GenericEnvClient,
            SyncEnvClient,
        )
    )


def test_every_error_code_has_a_rule_and_three_are_terminal() -> None:
    assert set(ERROR_RULES) == set(WSErrorCode)
    assert {code.value for code, rule in ERROR_RULES.items() if rule.terminal} == {
        "CAPACITY_REACHED",
        "FACTORY_ERROR",
        "SESSION_ERROR",
    }


def test_settings_name_the_variable_that_is_wrong() -> None:
    assert ServerSettings.from_environ({}) == ServerSettings()
    assert ServerSettings.from_environ(
        {
            "MAX_CONCURRENT_ENVS": "4",
            "OPENENV_MAX_STEP_S": "2.5",
            "OPENENV_ALLOWED_ORIGINS": "https://a, https://b",
            "OPENENV_MODE": "Production",
        }
    ) == ServerSettings(
        max_sessions=4,
        max_step_s=2.5,
        allowed_origins=("https://a", "https://b"),
        mode=ServerMode.PRODUCTION,
    )
    for name, value in (
        ("MAX_CONCURRENT_ENVS", "0"),
        ("MAX_CONCURRENT_ENVS", "many"),
        ("OPENENV_MAX_STEP_S", "nan"),
        ("OPENENV_MAX_STEP_S", "-1"),
    ):
        with pytest.raises(ValueError, match=name):
            ServerSettings.from_environ({name: value})
