"""Between the models of an environment and JSON's types.

Actions, observations and states may be pydantic models, dataclasses or dictionaries. What their fields may
hold and how it is written is the rule in `openenv.core._json`.
"""

import dataclasses
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError

MAX_ERRORS = 20
MAX_INPUT_CHARS = 200


@lru_cache(maxsize=512)
def adapter_of(model: Any) -> TypeAdapter[Any]:
    """The validator of `model`, built once. Dataclasses refuse unknown fields, as the pydantic bases do."""
    if dataclasses.is_dataclass(model) and isinstance(model, type):
        names = frozenset(field.name for field in dataclasses.fields(model) if field.init)

        def refuse_unknown(data: Any) -> Any:
            unknown = sorted(map(str, data.keys() - names)) if isinstance(data, Mapping) else []
            if unknown:
                raise ValueError(f"unknown fields {unknown[:5]}; {model.__name__} has {sorted(names)}")
            return data

        return TypeAdapter(Annotated[model, BeforeValidator(refuse_unknown)])
    return TypeAdapter(model)


def deserialize_action(data: Mapping[str, Any], action_cls: Any) -> Any:
    """The action of class `action_cls` that `data` describes.

    Raises:
        pydantic.ValidationError: `data` does not fit.
    """
    return adapter_of(action_cls).validate_python(data)


def deserialize_action_with_preprocessing(data: Mapping[str, Any], action_cls: Any) -> Any:
    """As `deserialize_action`, for values typed into a form.

    JSON text under `tokens` becomes a list and, where torch is installed, a tensor; `action_id` becomes an
    integer.
    """
    prepared = dict(data)
    if isinstance(prepared.get("tokens"), str):
        prepared["tokens"] = json.loads(prepared["tokens"])
    if isinstance(prepared.get("tokens"), list):
        prepared["tokens"] = _as_tensor(prepared["tokens"])
    if isinstance(prepared.get("action_id"), str):
        prepared["action_id"] = int(prepared["action_id"])
    return deserialize_action(prepared, action_cls)


def _as_tensor(tokens: list[Any]) -> Any:
    try:
        import torch  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return tokens
    return torch.tensor(tokens, dtype=torch.long)


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a model, dataclass or mapping, by name.

    Raises:
        TypeError: it is none of them.
    """
    if isinstance(value, BaseModel):
        # The models allow arbitrary values, so pydantic's warnings about unexpected ones say nothing.
        return value.model_dump(warnings=False)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    kind = type(value).__name__
    raise TypeError(f"expected a pydantic model, a dataclass or a mapping, got a value of type {kind!r}")


def serialize_observation(observation: Any) -> dict[str, Any]:
    """`{"observation", "reward", "done"}` and, when there is any, `"metadata"`.

    The metadata stay inside the nested observation as well: clients rebuild their models from it.
    """
    fields = fields_of(observation)
    payload = {"observation": fields, "reward": fields.pop("reward", None), "done": fields.pop("done", False)}
    metadata = fields.get("metadata")
    if metadata:
        payload["metadata"] = metadata
    return payload


def json_schema_of(model: Any) -> dict[str, Any]:
    """The JSON Schema of a model, dataclass or dictionary type; a bare object where a field has none."""
    try:
        return adapter_of(model).json_schema()
    except (PydanticInvalidForJsonSchema, PydanticSchemaGenerationError):
        return {"type": "object", "title": getattr(model, "__name__", "object")}


def validation_errors(error: ValidationError) -> list[dict[str, Any]]:
    """The errors as JSON's types, without pydantic's links, exception objects or a long echo of the input."""
    errors = []
    for item in error.errors(include_url=False)[:MAX_ERRORS]:
        shown: dict[str, Any] = {"type": item["type"], "loc": list(item["loc"]), "msg": item["msg"]}
        shown["input"] = _brief(item["input"])
        if context := {key: _brief(value) for key, value in item.get("ctx", {}).items()}:
            shown["ctx"] = context
        errors.append(shown)
    return errors


def _brief(value: Any) -> Any:
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, str):
        return value if len(value) <= MAX_INPUT_CHARS else value[:MAX_INPUT_CHARS] + "..."
    if isinstance(value, BaseException):
        return _brief(str(value))
    if isinstance(value, list | dict) and not value:
        return value
    return f"<{type(value).__name__}>"
