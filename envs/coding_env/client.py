"""The client of the coding environment."""

from openenv.core.env_client import EnvClient

from .models import CodeAction, CodeObservation, CodeState

__all__ = ["CodingEnv"]


class CodingEnv(EnvClient[CodeAction, CodeObservation, CodeState]):
    """One session of a coding environment server: an interpreter in a sandbox of its own.

        async with CodingEnv(base_url="http://localhost:8000") as env:
            await env.reset(seed=7)
            result = await env.step(CodeAction(code="print(6 * 7)"))
            result.observation.stdout, result.observation.metadata["outcome"]

    or, blocking, `with CodingEnv(base_url="http://localhost:8000").sync() as env: ...`.
    """
