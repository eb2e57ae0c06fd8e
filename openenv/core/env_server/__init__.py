"""The server side: what environments are written with, and what serves them.

The vocabulary (types, interfaces, errors) loads pydantic only. `create_app` and its kin load the web
framework on first use, because every environment's `models.py` imports this package on the client as well.
"""

from typing import TYPE_CHECKING

from openenv._lazy import lazy_attributes

if TYPE_CHECKING:
    from openenv.core.env_server.app import HTTPEnvServer, create_app, create_fastapi_app
    from openenv.core.env_server.base_transforms import CompositeTransform, NullTransform
    from openenv.core.env_server.exceptions import (
        ConcurrencyConfigurationError,
        EnvironmentFactoryError,
        OpenEnvError,
        SessionCapacityError,
        SessionCreationError,
        SessionNotFoundError,
    )
    from openenv.core.env_server.interfaces import (
        Environment,
        Message,
        ModelTokenizer,
        TaskProvider,
        Transform,
    )
    from openenv.core.env_server.route_config import GetEndpointConfig
    from openenv.core.env_server.serialization import (
        deserialize_action,
        deserialize_action_with_preprocessing,
        serialize_observation,
    )
    from openenv.core.env_server.types import (
        Action,
        BaseMessage,
        CodeExecResult,
        ConcurrencyConfig,
        EnvironmentMetadata,
        GetTaskRangeRequest,
        GetTaskRequest,
        HealthResponse,
        HealthStatus,
        ListTasksRequest,
        NumTasksRequest,
        Observation,
        ResetRequest,
        ResetResponse,
        SchemaResponse,
        ServerCapacityStatus,
        ServerMode,
        SessionInfo,
        State,
        StepRequest,
        StepResponse,
        WSCloseMessage,
        WSErrorCode,
        WSErrorResponse,
        WSIncomingMessage,
        WSObservationResponse,
        WSResetMessage,
        WSStateMessage,
        WSStateResponse,
        WSStepMessage,
    )

__all__ = [
    "Action",
    "BaseMessage",
    "CodeExecResult",
    "CompositeTransform",
    "ConcurrencyConfig",
    "ConcurrencyConfigurationError",
    "Environment",
    "EnvironmentFactoryError",
    "EnvironmentMetadata",
    "GetEndpointConfig",
    "GetTaskRangeRequest",
    "GetTaskRequest",
    "HTTPEnvServer",
    "HealthResponse",
    "HealthStatus",
    "ListTasksRequest",
    "Message",
    "ModelTokenizer",
    "NullTransform",
    "NumTasksRequest",
    "Observation",
    "OpenEnvError",
    "ResetRequest",
    "ResetResponse",
    "SchemaResponse",
    "ServerCapacityStatus",
    "ServerMode",
    "SessionCapacityError",
    "SessionCreationError",
    "SessionInfo",
    "SessionNotFoundError",
    "State",
    "StepRequest",
    "StepResponse",
    "TaskProvider",
    "Transform",
    "WSCloseMessage",
    "WSErrorCode",
    "WSErrorResponse",
    "WSIncomingMessage",
    "WSObservationResponse",
    "WSResetMessage",
    "WSStateMessage",
    "WSStateResponse",
    "WSStepMessage",
    "create_app",
    "create_fastapi_app",
    "deserialize_action",
    "deserialize_action_with_preprocessing",
    "serialize_observation",
]

_HOMES = {
    "app": (
        "HTTPEnvServer",
        "create_app",
        "create_fastapi_app",
    ),
    "base_transforms": (
        "CompositeTransform",
        "NullTransform",
    ),
    "exceptions": (
        "ConcurrencyConfigurationError",
        "EnvironmentFactoryError",
        "OpenEnvError",
        "SessionCapacityError",
        "SessionCreationError",
        "SessionNotFoundError",
    ),
    "interfaces": (
        "Environment",
        "Message",
        "ModelTokenizer",
        "TaskProvider",
        "Transform",
    ),
    "route_config": ("GetEndpointConfig",),
    "serialization": (
        "deserialize_action",
        "deserialize_action_with_preprocessing",
        "serialize_observation",
    ),
}

__getattr__, __dir__ = lazy_attributes(
    __name__,
    dict.fromkeys(__all__, f"{__name__}.types")
    | {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names},
)
