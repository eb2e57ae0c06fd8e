"""JSON text, in both directions, for client and server.

The fast codecs refuse three things that Python programs do produce: lone surrogates, integers beyond 64 bits
and deep nesting. Those messages take the slow road through the standard library, which loses nothing.

What JSON does not know is written by one rule:

| value | becomes |
|---|---|
| numpy, torch and other arrays and their scalars (anything with `tolist()`) | nested lists, numbers |
| `bytes`, `bytearray`, `memoryview` | the text if it is UTF-8, otherwise base64 |
| `datetime`, `date`, `time` | ISO 8601 |
| `timedelta` | seconds |
| `set`, `frozenset` | a list, sorted if the members can be compared |
| `tuple`, `deque`, other iterable collections | a list |
| `Enum` | its value |
| `UUID`, `Path`, `Decimal`, `complex` | `str(value)` |
| pydantic model, dataclass | an object of its fields |
| a key that is not text | `str` of it; None, True and False as JSON spells them |
| NaN, infinities | null |

Anything else is an error that names the type.
"""

import base64
import dataclasses
import enum
import json
import math
import pathlib
import uuid
from collections.abc import Callable, Collection, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

from pydantic import BaseModel
from pydantic_core import from_json

_FastDumps = Callable[[Any], bytes]


def _load_orjson() -> _FastDumps | None:
    try:
        import orjson
    except ImportError:  # a client-only install
        return None
    # Dataclasses and datetimes go through `plain`, so that both roads write the same text.
    options = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_SUBCLASS

    def dumps(value: Any) -> bytes:
        return orjson.dumps(value, plain, options)

    return dumps


_AS_TEXT = (uuid.UUID, pathlib.PurePath, Decimal, complex)


def _text_of_bytes(value: bytes | bytearray | memoryview) -> str:
    raw = bytes(value)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return base64.b64encode(raw).decode("ascii")


def _sorted_if_possible(value: Collection[Any]) -> list[Any]:
    try:
        return sorted(value)
    except TypeError:
        return list(value)


def _plain_scalar(value: Any) -> Any:
    """`value` in JSON's types if it is one of the scalars above, otherwise `value` itself."""
    for base in (str, int, float):
        if isinstance(value, base) and not isinstance(value, enum.Enum):
            return base(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, bytes | bytearray | memoryview):
        return _text_of_bytes(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value) if isinstance(value, _AS_TEXT) else value


def plain(value: Any) -> Any:
    """One level of the rule above: a value whose outermost type JSON knows.

    Raises:
        TypeError: the type has no place in the rule.
    """
    scalar = _plain_scalar(value)
    if scalar is not value:
        return scalar
    if isinstance(value, BaseModel):
        return value.model_dump(warnings=False)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_key(key): item for key, item in value.items()}
    if callable(getattr(value, "tolist", None)):
        return value.tolist()
    if isinstance(value, set | frozenset):
        return _sorted_if_possible(value)
    if isinstance(value, Collection):
        return list(value)
    raise TypeError(f"a value of type {type(value).__name__!r} cannot be sent as JSON")


def _key(key: Any) -> str:
    if isinstance(key, str) and not isinstance(key, enum.Enum):
        return str(key)
    if key is None or isinstance(key, bool):
        return json.dumps(key)
    scalar = _plain_scalar(key)
    return _key(scalar) if scalar is not key and not isinstance(scalar, type(key)) else str(scalar)


def _tree(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else None
    if kind is str or kind is int:
        return value
    if kind is dict:
        return {_key(key): _tree(item) for key, item in value.items()}
    if kind is list or kind is tuple:
        return [_tree(item) for item in value]
    return _tree(plain(value))


_fast_dumps = _load_orjson()


def dumps(value: Any) -> bytes:
    """`value` as UTF-8 JSON by the rule above.

    Raises:
        TypeError: something in it has no place in the rule, or is nested too deeply.
    """
    if _fast_dumps is not None:
        try:
            return _fast_dumps(value)
        except TypeError:
            # Lone surrogates, wide integers, unusual keys; or a type that the slow road names too.
            pass
    try:
        return json.dumps(_tree(value), separators=(",", ":")).encode("ascii")
    except RecursionError:
        raise TypeError("the value is nested too deeply for JSON") from None


def loads(text: str | bytes) -> Any:
    """The value of JSON `text`.

    Raises:
        ValueError: not JSON; the message says where.
    """
    try:
        return from_json(text)
    except ValueError:
        pass  # lone surrogates and deep nesting are legal JSON; what is not fails again below
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
