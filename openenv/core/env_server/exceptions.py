"""What the server side raises, and the one table of wire codes.

```
OpenEnvError
├── ConcurrencyConfigurationError   the environment class does not allow that many sessions
├── SessionCapacityError            no free session
├── SessionNotFoundError            no session of that id
├── SessionCreationError            a session could not be made
├── EnvironmentFactoryError         the environment's constructor failed
└── RequestRefused                  a request that is answered with an error code
```
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from openenv.core.env_server.types import WSErrorCode
from openenv.core.errors import OpenEnvError

__all__ = [
    "ERROR_RULES",
    "ConcurrencyConfigurationError",
    "EnvironmentFactoryError",
    "ErrorRule",
    "OpenEnvError",
    "RequestRefused",
    "SessionCapacityError",
    "SessionCreationError",
    "SessionNotFoundError",
]


class ErrorRule(NamedTuple):
    """How a code travels: its HTTP status, and whether it ends a WebSocket."""

    http_status: int
    terminal: bool


ERROR_RULES: Mapping[WSErrorCode, ErrorRule] = {
    WSErrorCode.INVALID_JSON: ErrorRule(422, terminal=False),
    WSErrorCode.UNKNOWN_TYPE: ErrorRule(422, terminal=False),
    WSErrorCode.VALIDATION_ERROR: ErrorRule(422, terminal=False),
    WSErrorCode.EXECUTION_ERROR: ErrorRule(500, terminal=False),
    WSErrorCode.CAPACITY_REACHED: ErrorRule(503, terminal=True),
    WSErrorCode.FACTORY_ERROR: ErrorRule(500, terminal=True),
    WSErrorCode.SESSION_ERROR: ErrorRule(410, terminal=True),
}


class ConcurrencyConfigurationError(OpenEnvError):
    """More than one session was asked of an environment whose class does not support it."""

    def __init__(self, environment_name: str, max_concurrent_envs: int, message: str | None = None) -> None:
        self.environment_name = environment_name
        self.max_concurrent_envs = max_concurrent_envs
        super().__init__(
            message
            or f"Environment '{environment_name}' cannot serve {max_concurrent_envs} sessions at once: "
            "its class does not set SUPPORTS_CONCURRENT_SESSIONS = True. Set it if instances share nothing, "
            "or use 1."
        )


class SessionCapacityError(OpenEnvError):
    """Every session of the server is taken."""

    def __init__(self, active_sessions: int, max_sessions: int, message: str | None = None) -> None:
        self.active_sessions = active_sessions
        self.max_sessions = max_sessions
        super().__init__(
            message
            or f"Server at capacity: {active_sessions}/{max_sessions} sessions active. Cannot accept new connections."
        )


class SessionNotFoundError(OpenEnvError):
    """No session has this id."""

    def __init__(self, session_id: str, message: str | None = None) -> None:
        self.session_id = session_id
        super().__init__(message or f"Session '{session_id}' not found.")


class SessionCreationError(OpenEnvError):
    """A session could not be made."""

    def __init__(self, reason: str, message: str | None = None) -> None:
        self.reason = reason
        super().__init__(message or f"Failed to create session: {reason}")


class EnvironmentFactoryError(OpenEnvError):
    """The environment's class or factory raised; the cause is chained and logged, not sent to clients."""

    def __init__(self, factory_name: str) -> None:
        self.factory_name = factory_name
        super().__init__(f"Environment factory '{factory_name}' failed to create instance.")


class RequestRefused(OpenEnvError):  # noqa: N818
    """A request that gets an error code as its answer.

    `details` go into the reply next to message and code. `http_status` overrides the table, `terminal` ends
    the session although the code alone would not.
    """

    def __init__(
        self,
        code: WSErrorCode,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        http_status: int | None = None,
        terminal: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = dict(details or {})
        self.http_status = http_status or ERROR_RULES[code].http_status
        self.terminal = terminal or ERROR_RULES[code].terminal
