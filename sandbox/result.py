"""What happened: one word, the output, and the facts that the kernel reported."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

__all__ = ["FileEntry", "Outcome", "Result", "Truncated", "Usage"]


class Outcome(enum.StrEnum):
    """How a run ended, in one word."""

    OK = "ok"
    ERROR = "error"  # an uncaught exception, or a command that returned a status other than 0
    EXITED = "exited"  # SystemExit or os._exit
    TIMEOUT = "timeout"  # the wall or the CPU limit
    MEMORY = "memory"  # MemoryError, or the kernel's out-of-memory killer
    KILLED = "killed"  # ended by a signal
    OUTPUT_LIMIT = "output_limit"  # only if the policy says that too much output ends the run


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What the run cost, as the kernel accounted it; None where this machine keeps no account."""

    wall_s: float
    cpu_s: float | None = None
    memory_peak_bytes: int | None = None  # of the sandbox since it was made, not of one run


@dataclass(frozen=True, kw_only=True, slots=True)
class Truncated:
    """How many bytes were dropped because the output limit was reached."""

    stdout_bytes: int = 0
    stderr_bytes: int = 0
    value_bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.stdout_bytes or self.stderr_bytes or self.value_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One run of guest code.

    `outcome`, `signal`, `state_lost`, `truncated` and `usage` are observed by the host or by the warden. Within
    a living interpreter, the difference between `ok`, `error` and `exited`, the exit code and `value` are that
    interpreter's own word: guest code owns its process and may forge them. Grade in another sandbox.
    """

    outcome: Outcome
    stdout: str = ""
    stderr: str = ""
    exit_code: int = 0
    value: str | None = None  # repr of a trailing expression, None if there is none or it is None
    signal: int | None = None
    state_lost: bool = False  # the interpreter was replaced
    workspace_lost: bool = False  # and so was the whole sandbox, with its files: it could not be stopped otherwise
    truncated: Truncated = field(default_factory=Truncated)
    usage: Usage

    @property
    def ok(self) -> bool:
        """True if the run ended normally."""
        return self.outcome is Outcome.OK


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One entry of a directory of the workspace, as seen from inside."""

    path: str
    kind: str  # "file", "directory", "symlink" or "other"
    size_bytes: int
    mode: int
    modified_s: float
