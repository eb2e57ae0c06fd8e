"""What a coding episode is made of. Imports pydantic only, so that a client loads in milliseconds."""

from typing import Annotated

from pydantic import Field

from openenv.core.env_server.types import Action, Observation, State

__all__ = ["CodeAction", "CodeObservation", "CodeState"]


class CodeAction(Action):
    """One step: Python source, run in the interpreter of the session."""

    # Strict: bytes or a number in here is a mistake of the caller, not something to convert.
    code: Annotated[str, Field(strict=True, description="Python source")]
    timeout: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Wall seconds of this step; it can only shorten what the policy allows",
    )


class CodeObservation(Observation):
    """What the step wrote and how it ended.

    `metadata` holds further facts: `outcome`, `value`, `usage`, `truncated`, `state_lost`, `signal` and
    `last_code`.
    """

    stdout: str = Field(default="", description="Standard output, also of what came before an exception")
    stderr: str = Field(default="", description="Standard error, with the traceback if there was one")
    exit_code: int = Field(default=0, description="0: ended normally; 1: an uncaught exception; otherwise its status")


class CodeState(State):
    """The episode so far."""

    last_exit_code: int = Field(default=0, description="The exit code of the last step")
