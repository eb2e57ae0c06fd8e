"""The application, and `coding-env`, which serves it."""

import functools
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI

from openenv.core.env_server.app import create_app
from openenv.core.env_server.run import run_server
from openenv.core.env_server.settings import ServerSettings
from sandbox import Policy

from ..models import CodeAction, CodeObservation, CodeState
from .coding_environment import CodingEnvironment
from .settings import Settings
from .shared_pool import SharedPool

__all__ = ["app", "build_app", "main"]


def build_app(environ: Mapping[str, str] | None = None) -> FastAPI:
    """The application that the variables of `environ` describe; `app.state.sandboxes` is its SharedPool.

    Raises:
        sandbox.PolicyError: the policy cannot be read.
        ValueError: a variable cannot be used.
    """
    environ = os.environ if environ is None else environ
    settings = Settings.from_environ(environ)
    pool = SharedPool(Policy.load(settings.policy_path))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with pool.running():
            yield

    application = create_app(
        functools.partial(CodingEnvironment, pool, show_value=settings.show_value),
        CodeAction,
        CodeObservation,
        env_name="coding_env",
        max_concurrent_envs=_capacity(ServerSettings.from_environ(environ).max_sessions, pool),
        state_cls=CodeState,
        lifespan=lifespan,
    )
    application.state.sandboxes = pool
    return application


def _capacity(asked: int | None, pool: SharedPool) -> int:
    if asked is not None and asked > pool.max_sandboxes:
        raise ValueError(
            f"MAX_CONCURRENT_ENVS is {asked}, but there can be {pool.max_sandboxes} sandboxes at once: "
            "lower it, raise pool.max_sandboxes in the policy, or give the server more memory and descriptors"
        )
    return asked or pool.max_sandboxes


app = build_app()


def main() -> None:
    """Serve until a signal ends it; on loopback unless `HOST` says otherwise."""
    settings = Settings.from_environ(os.environ)
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    sys.stderr.write(f"Serving coding_env at http://{shown}:{settings.port} (API at /docs, Ctrl-C stops)\n")
    run_server(app, host=settings.host, port=settings.port)


if __name__ == "__main__":
    main()
