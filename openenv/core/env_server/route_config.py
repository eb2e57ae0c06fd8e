"""GET endpoints as data."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, FastAPI


@dataclass
class GetEndpointConfig:
    """One GET endpoint and its documentation."""

    path: str
    handler: Callable[..., Any]
    response_model: Any
    tag: str
    summary: str
    description: str


def register_get_endpoints(app: FastAPI | APIRouter, configs: Iterable[GetEndpointConfig]) -> None:
    """Add every endpoint to `app`."""
    for config in configs:
        app.get(
            config.path,
            response_model=config.response_model,
            tags=[config.tag],
            summary=config.summary,
            description=config.description,
        )(config.handler)
