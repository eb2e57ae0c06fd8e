"""What an operator sets through the environment, beside what the framework reads. Read here and nowhere else.

| variable | meaning |
|---|---|
| `CODING_ENV_POLICY` | path of another `policy.toml` |
| `CODING_ENV_SHOW_VALUE` | `1`: append the value of the last statement to stdout, as older servers did |
| `HOST`, `PORT` | where `coding-env` listens; default 127.0.0.1 and 8000 |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DEFAULT_POLICY", "Settings"]

DEFAULT_POLICY = str(Path(__file__).resolve().parent.parent / "policy.toml")
_SWITCH = {"": False, "0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Values of the variables above."""

    policy_path: str = DEFAULT_POLICY
    show_value: bool = False
    host: str = "127.0.0.1"
    port: int = 8000

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """Read the variables.

        Raises:
            ValueError: a value that cannot be used; the message names the variable.
        """
        return cls(
            policy_path=environ.get("CODING_ENV_POLICY", "").strip() or DEFAULT_POLICY,
            show_value=_switch(environ, "CODING_ENV_SHOW_VALUE"),
            host=environ.get("HOST", "").strip() or "127.0.0.1",
            port=_port(environ),
        )


def _switch(environ: Mapping[str, str], name: str) -> bool:
    text = environ.get(name, "").strip().lower()
    if text not in _SWITCH:
        raise ValueError(f"{name} must be 1 or 0, not {text!r}")
    return _SWITCH[text]


def _port(environ: Mapping[str, str]) -> int:
    text = environ.get("PORT", "").strip() or "8000"
    if not text.isdecimal() or int(text) > 65535:
        raise ValueError(f"PORT must be a number up to 65535, not {text!r}")
    return int(text)
