"""Small helpers that environments and trainers import."""

from collections.abc import Coroutine
from typing import Any, TypeVar

from openenv.core._portal import run_blocking

T = TypeVar("T")

_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


def convert_to_ws_url(url: str) -> str:
    """`url` with a WebSocket scheme and without a trailing slash; a bare host gets `ws://`.

    Raises:
        ValueError: the scheme is not http, https, ws or wss.
    """
    scheme, separator, rest = url.strip().partition("://")
    if not separator:
        return f"ws://{scheme}".rstrip("/")
    if scheme.lower() not in _SCHEMES:
        raise ValueError(f"cannot connect to {url!r}: the scheme must be one of {', '.join(sorted(_SCHEMES))}")
    return f"{_SCHEMES[scheme.lower()]}://{rest}".rstrip("/")


def run_async_safely(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run `coroutine` to its end and return its value, also when this thread already runs an event loop."""
    return run_blocking(coroutine)
