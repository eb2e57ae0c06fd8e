"""Both roads of the codec write and read the same."""

import collections
import datetime as dt
import decimal
import enum
import json
import pathlib
import uuid
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openenv.core import _json
from openenv.core.env_server.types import State

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(JSON_VALUES)
def test_every_json_value_comes_back_exactly(value: Any) -> None:
    assert _json.loads(_json.dumps(value)) == value


class Number(enum.IntEnum):
    ONE = 1


class Word(enum.StrEnum):
    A = "a"


class Text(str):
    __slots__ = ()


UNUSUAL = [
    np.arange(4).reshape(2, 2),
    np.float32(0.1),
    np.float64(0.1),
    np.bool_(True),
    np.str_("s"),
    np.datetime64("2026-01-02"),
    [float("nan"), float("-inf")],
    b"\xff",
    bytearray(b"text"),
    memoryview(b"text"),
    dt.date(2026, 1, 2),
    dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.timezone(dt.timedelta(hours=2))),
    dt.time(1, 2),
    dt.timedelta(days=1),
    {"b", "a"},
    frozenset({1, "a"}),
    collections.deque([1, 2]),
    collections.OrderedDict(b=1, a=2),
    range(3),
    Number.ONE,
    Word.A,
    Text("t"),
    uuid.UUID(int=7),
    pathlib.PurePosixPath("/a/b"),
    decimal.Decimal("1.10"),
    1 + 2j,
    State(step_count=1),
    {1: "int", 1.5: "float", None: "none", Word.A: "enum", (1, 2): "tuple", b"k": "bytes"},
    {True: "bool"},
]


@pytest.mark.parametrize("value", UNUSUAL, ids=lambda value: type(value).__name__)
def test_the_fast_road_and_the_slow_road_agree(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = json.loads(_json.dumps({"v": value}))
    monkeypatch.setattr(_json, "_fast_dumps", None)
    assert json.loads(_json.dumps({"v": value})) == fast


@pytest.mark.parametrize("fast", [True, False])
def test_what_has_no_place_is_an_error_that_names_the_type(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(_json, "_fast_dumps", None)
    for value in (object(), len, {"deep": [{"x": object}]}):
        with pytest.raises(TypeError, match="cannot be sent as JSON"):
            _json.dumps(value)
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(TypeError, match="nested too deeply"):
        _json.dumps(endless)


@pytest.mark.parametrize("text", ["", "{", "[1,]", "nul", '{"a":1}x', "[" * 200_000, "9" * 5000, b"\xff\xfe"])
def test_what_is_not_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        _json.loads(text)
