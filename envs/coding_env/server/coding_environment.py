"""Python episodes: each session owns one sandbox, each episode a fresh one."""

import asyncio
import os
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from openenv.core.env_server.interfaces import Environment, Transform
from openenv.core.env_server.types import EnvironmentMetadata
from sandbox import CapacityError, Policy, PolicyError, Result, Sandbox, SandboxError, SandboxPool

from ..models import CodeAction, CodeObservation, CodeState
from .last_value import last_value
from .settings import Settings
from .shared_pool import SharedPool
from .transforms import create_safe_coding_transform

__all__ = ["CodingEnvironment", "PythonCodeActEnv"]

_ROOM_WAIT_S = 5.0
_ROOM_LOOK_S = 0.01


class CodingEnvironment(Environment[CodeAction, CodeObservation, CodeState]):
    """Runs code in a sandbox. The interpreter keeps its state from step to step; `reset` gives a fresh one.

    Args:
        pool: Where sandboxes come from. None: a pool under the policy that the operator chose, for this
            environment alone.
        transform: Gives the reward. None: the table in `transforms`.
        show_value: Append the value of the last statement to stdout. None: `CODING_ENV_SHOW_VALUE`.
    """

    SUPPORTS_CONCURRENT_SESSIONS: ClassVar[bool] = True

    def __init__(
        self,
        pool: SharedPool | None = None,
        *,
        transform: Transform[CodeObservation] | None = None,
        show_value: bool | None = None,
    ) -> None:
        super().__init__(transform=transform or create_safe_coding_transform())
        settings = Settings.from_environ(os.environ) if pool is None or show_value is None else Settings()
        self._shared = pool or SharedPool(Policy.load(settings.policy_path))
        self._show_value = settings.show_value if show_value is None else show_value
        self._held: SandboxPool | None = None
        self._box: Sandbox | None = None
        self._seed: int | None = None
        self._box_is_lost = False
        self._state = CodeState()

    @classmethod
    def default_max_sessions(cls) -> int:
        """As many as the machine can hold under the policy that the operator chose."""
        settings = Settings.from_environ(os.environ)
        return SandboxPool(Policy.load(settings.policy_path)).max_sandboxes

    @classmethod
    def get_metadata(cls) -> EnvironmentMetadata:
        """What `/metadata` answers."""
        readme = Path(__file__).resolve().parent.parent / "README.md"
        return EnvironmentMetadata(
            name="coding_env",
            description="Python code execution in a hardened sandbox per session",
            readme_content=readme.read_text(encoding="utf-8") if readme.is_file() else None,
            version="0.1.0",
        )

    @property
    def state(self) -> CodeState:
        """The episode so far."""
        return self._state

    async def reset_async(  # type: ignore[override]  # no further keywords: unknown ones are left out
        self, seed: int | None = None, episode_id: str | None = None
    ) -> CodeObservation:
        """Start an episode in a fresh sandbox. `seed` seeds `random`, and numpy's global generator."""
        await self._fresh_box(seed)
        self._state = CodeState(episode_id=episode_id or str(uuid.uuid4()))
        return self._apply_transform(CodeObservation())

    async def step_async(  # type: ignore[override]
        self, action: CodeAction, timeout_s: float | None = None
    ) -> CodeObservation:
        """Run the code of `action`; what it does wrong is in the observation.

        Raises:
            sandbox.SandboxError: the sandbox let us down, or the code is longer than the policy allows.
        """
        if not isinstance(action, CodeAction):
            raise ValueError(f"expected a CodeAction, got {type(action).__name__}")
        if self._box is None:
            await self.reset_async()
        state_lost = self._box_is_lost
        if state_lost:
            await self._fresh_box(self._seed)
        result = await self._run(action.code, _shortest(action.timeout, timeout_s))
        self._state.step_count += 1
        self._state.last_exit_code = result.exit_code
        observation = CodeObservation(
            stdout=result.stdout,
            stderr=result.stderr,
            exit_code=result.exit_code,
            metadata=_facts(action.code, result, state_lost=state_lost),
        )
        return self._apply_transform(observation)

    async def close_async(self) -> None:
        """End the sandbox, also in the middle of a step."""
        box, self._box = self._box, None
        held, self._held = self._held, None
        try:
            if box is not None:
                await box.close()
        finally:
            if held is not None:
                await self._shared.release()

    def reset(self, *args: Any, **kwargs: Any) -> CodeObservation:
        """Not offered: this environment is async."""
        raise NotImplementedError("this environment is async: await reset_async(...)")

    def step(self, *args: Any, **kwargs: Any) -> CodeObservation:
        """Not offered: this environment is async."""
        raise NotImplementedError("this environment is async: await step_async(...)")

    async def _run(self, code: str, timeout_s: float | None) -> Result:
        """What running `code` came to."""
        assert self._box is not None
        self._box_is_lost = True  # until it has answered: whatever interrupts this, also ends the sandbox
        try:
            result = await self._box.run_code(code, timeout_s=timeout_s)
            if self._show_value and result.ok:
                result = await _with_value(self._box, code, result)
        except PolicyError:
            self._box_is_lost = False  # nothing was run
            raise
        except SandboxError as error:
            message = f"{error}. The state of the interpreter is lost; the next step runs in a fresh sandbox"
            raise type(error)(message) from error
        self._box_is_lost = False
        return result

    async def _fresh_box(self, seed: int | None) -> None:
        self._seed = seed
        if self._box is None:
            self._box = await self._open(seed)
        else:
            await self._box.reset(seed=seed)
        self._box_is_lost = False

    async def _open(self, seed: int | None) -> Sandbox:
        """A sandbox. One that a session has just left may need a moment until it is given back."""
        if self._held is None:
            self._held = await self._shared.acquire()
        deadline = time.monotonic() + _ROOM_WAIT_S
        while True:
            try:
                return await self._held.open(seed=seed)
            except CapacityError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_ROOM_LOOK_S)


PythonCodeActEnv = CodingEnvironment
"""The name that existing code uses."""


def _shortest(*limits: float | None) -> float | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _facts(code: str, result: Result, *, state_lost: bool) -> dict[str, Any]:
    usage, truncated = result.usage, result.truncated
    return {
        "last_code": code,
        "outcome": result.outcome.value,
        "value": result.value,
        "signal": result.signal,
        "state_lost": result.state_lost or state_lost,
        "truncated": {
            "stdout_bytes": truncated.stdout_bytes,
            "stderr_bytes": truncated.stderr_bytes,
            "value_bytes": truncated.value_bytes,
        },
        "usage": {
            "wall_s": usage.wall_s,
            "cpu_s": usage.cpu_s,
            "memory_peak_bytes": usage.memory_peak_bytes,
        },
    }


async def _with_value(box: Sandbox, code: str, result: Result) -> Result:
    value, state_lost = await last_value(box, code, result.value)
    shown = "\n".join(part for part in (result.stdout, value) if part)
    return replace(result, stdout=shown, state_lost=state_lost)
