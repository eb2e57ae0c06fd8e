"""Clients and servers of environments. Every name is loaded on first use."""

from typing import TYPE_CHECKING, Any

from openenv._lazy import lazy_attributes

if TYPE_CHECKING:
    from openenv.core.client_types import StepResult
    from openenv.core.env_client import EnvClient
    from openenv.core.errors import (
        CapacityError,
        ClientError,
        ConnectFailed,
        OpenEnvError,
        ProtocolError,
        ServerError,
        SessionLost,
        StepTimeout,
    )
    from openenv.core.generic_client import GenericAction, GenericEnvClient
    from openenv.core.sync_client import SyncEnvClient

__all__ = [
    "CapacityError",
    "ClientError",
    "ConnectFailed",
    "EnvClient",
    "GenericAction",
    "GenericEnvClient",
    "OpenEnvError",
    "ProtocolError",
    "ServerError",
    "SessionLost",
    "StepResult",
    "StepTimeout",
    "SyncEnvClient",
]

_ERRORS = (
    "CapacityError",
    "ClientError",
    "ConnectFailed",
    "OpenEnvError",
    "ProtocolError",
    "ServerError",
    "SessionLost",
    "StepTimeout",
)

_get, __dir__ = lazy_attributes(
    __name__,
    {
        **dict.fromkeys(_ERRORS, f"{__name__}.errors"),
        "EnvClient": f"{__name__}.env_client",
        "GenericAction": f"{__name__}.generic_client",
        "GenericEnvClient": f"{__name__}.generic_client",
        "StepResult": f"{__name__}.client_types",
        "SyncEnvClient": f"{__name__}.sync_client",
    },
    submodules=(
        "client_types",
        "env_client",
        "env_server",
        "errors",
        "generic_client",
        "sync_client",
        "utils",
    ),
)


def __getattr__(name: str) -> Any:
    try:
        return _get(name)
    except AttributeError:
        if name.startswith("__"):
            raise
    # Everything that the server side exports is offered here too.
    from openenv.core import env_server

    return getattr(env_server, name)
