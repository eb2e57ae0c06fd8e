"""The shipped policy, with the libraries that it promises."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from coding_env import CodeAction, CodingEnv
from coding_env.server.settings import DEFAULT_POLICY

INSTALLED = Path(sys.prefix) / "share" / "openenv-sandbox" / f"guest-{sys.version_info[0]}.{sys.version_info[1]}"
pytestmark = pytest.mark.skipif(not INSTALLED.is_dir(), reason="`python -m sandbox install` was not run")

DRAW = "import numpy; print(numpy.random.rand(), numpy.random.randint(10**9))"


@pytest.fixture(scope="module")
def env(serve_module: Any) -> Iterator[Any]:
    server = serve_module(CODING_ENV_POLICY=os.fspath(DEFAULT_POLICY))
    with CodingEnv(base_url=server.url).sync() as client:
        yield client


def run(env: Any, code: str) -> Any:
    return env.step(CodeAction(code=code)).observation


@pytest.mark.parametrize("library", ["numpy", "pandas", "scipy.linalg", "sympy", "matplotlib.pyplot"])
def test_library_can_be_imported(env: Any, library: str) -> None:
    env.reset()
    assert run(env, f"import {library}\nprint('fine')").stdout == "fine\n"


def test_a_plot_can_be_drawn(env: Any) -> None:
    env.reset()
    drawn = run(
        env,
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.savefig('plot.png')\n"
        "print(open('plot.png', 'rb').read(4))",
    )
    assert drawn.stdout == "b'\\x89PNG'\n", drawn.stderr


def test_seeds_of_numpy_reproduce_and_their_absence_does_not(env: Any) -> None:
    def draw(**keywords: Any) -> str:
        env.reset(**keywords)
        return str(run(env, DRAW).stdout)

    assert draw(seed=7) == draw(seed=7) != ""
    assert draw(seed=7) != draw(seed=8)
    assert len({draw() for _ in range(3)}) == 3


def test_the_server_is_not_among_the_libraries(env: Any) -> None:
    env.reset()
    for name in ("fastapi", "openenv", "sandbox", "coding_env", "uvicorn"):
        assert "ModuleNotFoundError" in run(env, f"import {name}").stderr
