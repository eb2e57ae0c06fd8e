"""What an operator sets through the environment. The only reader of these variables.

| variable | meaning |
|---|---|
| `MAX_CONCURRENT_ENVS` | how many sessions at once |
| `OPENENV_MAX_STEP_S` | longest step in seconds; unset: no limit |
| `OPENENV_ALLOWED_ORIGINS` | comma-separated origins of web pages that may connect; `*`: any |
| `OPENENV_MODE` | `simulation` (default) or `production` |
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from openenv.core.env_server.types import ServerMode


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Values of the variables above; None where a variable is unset or empty."""

    max_sessions: int | None = None
    max_step_s: float | None = None
    allowed_origins: tuple[str, ...] | None = None
    mode: ServerMode | None = None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "ServerSettings":
        """Read the variables.

        Raises:
            ValueError: a value that cannot be used; the message names the variable.
        """
        origins = environ.get("OPENENV_ALLOWED_ORIGINS", "").strip()
        mode = environ.get("OPENENV_MODE", "").strip()
        return cls(
            max_sessions=_whole(environ, "MAX_CONCURRENT_ENVS"),
            max_step_s=_seconds(environ, "OPENENV_MAX_STEP_S"),
            allowed_origins=tuple(part.strip() for part in origins.split(",") if part.strip()) if origins else None,
            mode=parse_mode(mode) if mode else None,
        )


def parse_mode(mode: ServerMode | str) -> ServerMode:
    """The mode that `mode` spells, in any case.

    Raises:
        ValueError: there is no such mode.
    """
    try:
        return ServerMode(mode.lower())
    except ValueError:
        valid = [known.value for known in ServerMode]
        raise ValueError(f"Invalid mode: '{mode}'. Must be one of: {valid}") from None


def _whole(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {text!r}")
    return int(text)


def _seconds(environ: Mapping[str, str], name: str) -> float | None:
    text = environ.get(name, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a number of seconds above 0, not {text!r}")
    return value
