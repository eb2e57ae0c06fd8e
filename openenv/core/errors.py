"""Every error that a client of an environment can see.

```
OpenEnvError
└── ClientError
    ├── ConnectFailed   (ConnectionError)  no connection could be made; nothing was sent
    ├── SessionLost     (ConnectionError)  the connection is gone, and the session with it
    ├── StepTimeout     (TimeoutError)     no reply in time; the connection was dropped
    ├── ProtocolError   (RuntimeError)     the server sent something the protocol does not allow
    └── ServerError     (RuntimeError)     the server answered with an error frame; see `code`
        └── CapacityError                  the server has no free session
```
"""

from collections.abc import Mapping
from typing import Any


class OpenEnvError(Exception):
    """Root of everything this package raises on purpose."""


class ClientError(OpenEnvError):
    """Root of what a client raises."""


class ConnectFailed(ClientError, ConnectionError):  # noqa: N818
    """The server could not be reached within the connect timeout, or refused the upgrade."""


class SessionLost(ClientError, ConnectionError):  # noqa: N818
    """The connection of this session is gone and its state with it; `reset()` starts a new one."""


class StepTimeout(ClientError, TimeoutError):  # noqa: N818
    """No reply within the message timeout; the connection was dropped, so no late reply can be mistaken."""


class ProtocolError(ClientError, RuntimeError):
    """A reply that is not JSON, has the wrong type, or does not fit the declared model."""


class ServerError(ClientError, RuntimeError):
    """An error frame. `code` is its code, `message` its text, `details` whatever else it carried."""

    def __init__(self, message: str, code: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"Server error: {message} (code: {code})")
        self.message = message
        self.code = code
        self.details = dict(details or {})

    @classmethod
    def from_frame(cls, data: Mapping[str, Any]) -> "ServerError":
        """The error, of the fitting class, for the `data` of an error frame."""
        message, code = str(data.get("message", "unknown error")), str(data.get("code", "UNKNOWN"))
        details = {key: value for key, value in data.items() if key not in {"message", "code"}}
        return (CapacityError if code == "CAPACITY_REACHED" else ServerError)(message, code, details)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.code, self.details)


class CapacityError(ServerError):
    """The server has no free session; retry later."""
