"""A client without models: dictionaries in, dictionaries out."""

from collections.abc import Mapping
from typing import Any

from openenv.core.client_types import StepResult
from openenv.core.env_client import EnvClient
from openenv.core.env_server.serialization import fields_of


class GenericAction(dict[str, Any]):
    """An action spelled with keywords: `GenericAction(code="print(1)")`."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(fields)

    def __repr__(self) -> str:
        return f"GenericAction({', '.join(f'{key}={value!r}' for key, value in self.items())})"


class GenericEnvClient(EnvClient[Any, dict[str, Any], dict[str, Any]]):
    """Talks to any environment. Actions are dictionaries, models, or objects with attributes."""

    def _step_payload(self, action: Any) -> dict[str, Any]:
        if isinstance(action, Mapping):
            return dict(action)
        try:
            return fields_of(action)
        except TypeError:
            return dict(vars(action))

    def _parse_result(self, payload: dict[str, Any]) -> StepResult[dict[str, Any]]:
        observation = payload.get("observation") or {}
        return StepResult(observation, payload.get("reward"), bool(payload.get("done", False)))

    def _parse_state(self, payload: dict[str, Any]) -> dict[str, Any]:
        return payload
