"""Sections of settings: frozen dataclasses whose fields carry meaning, bounds and check in their metadata."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from sandbox import _toml
from sandbox._checks import Check
from sandbox.errors import PolicyError

__all__ = [
    "Section",
    "SettingError",
    "amount_of_bytes",
    "fields_of",
    "measured",
    "readable",
    "refuse_unknown",
    "seconds",
    "setting",
]

_PIB = 2**50  # a larger limit would mean nothing
_YEAR_S = 365 * 86400.0


class SettingError(PolicyError):
    """A wrong setting; `path` leads to it, so that a reader of a file can add the line."""

    def __init__(self, path: tuple[str, ...], message: str) -> None:
        super().__init__(f"{'.'.join(path)}: {message}")
        self.path = path


def setting(
    doc: str, *, least: float | None = None, most: float | None = None, check: Check | None = None
) -> Mapping[str, Any]:
    """Metadata of a field: what it means and may be. `check` sees each item of a tuple or mapping."""
    return {"doc": doc, "least": least, "most": most, "check": check}


def amount_of_bytes(doc: str, *, least: int = 1) -> Mapping[str, Any]:
    """Metadata of a size."""
    return setting(doc, least=least, most=_PIB)


def seconds(doc: str, *, most: float = _YEAR_S) -> Mapping[str, Any]:
    """Metadata of a duration."""
    return setting(doc, least=0.001, most=most)


class Section:
    """Base of the dataclasses: checks every field against its annotation and its metadata."""

    __slots__ = ()
    table: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        for name, field in fields_of(type(self)).items():
            path = (*self.table, name)
            value = _typed(path, str(field.type), getattr(self, name))
            _bounded(path, field.metadata, value)
            object.__setattr__(self, name, value)

    def settings(self) -> dict[str, Any]:
        """Names and values."""
        return {name: getattr(self, name) for name in fields_of(type(self))}


def fields_of(kind: type[Section]) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a section by name."""
    return {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63  # as in TOML


def _is_finite(value: object) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _typed(path: tuple[str, ...], annotation: str, value: Any) -> Any:
    """`value` in the form that the annotation names, or an error. Integers become floats where due."""
    match annotation:
        case "int":
            good, remedy = _is_whole(value), "write a whole number"
        case "float":
            good, remedy = _is_finite(value), "write a finite number"
        case "str":
            good, remedy = isinstance(value, str), "write a string"
        case "int | str":
            good, remedy = value == "auto" or _is_whole(value), 'write a whole number or "auto"'
        case "tuple[str, ...]":
            good = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
            remedy = "write a list of strings"
        case "Mapping[str, str]":
            good, remedy = isinstance(value, Mapping), f"write a table [{'.'.join(path)}]"
        case _:
            good, remedy = (
                type(value).__name__ == annotation,
                f"write a table [{path[-1]}], or give a {annotation}",
            )
    if not good:
        raise SettingError(path, f"must not be {_kind(value)}; {remedy}")
    return _FORMS.get(annotation, lambda same: same)(value)


_FORMS: dict[str, Any] = {
    "float": float,
    "tuple[str, ...]": tuple,
    "Mapping[str, str]": lambda value: MappingProxyType(dict(value)),
}


def _bounded(path: tuple[str, ...], rules: Mapping[str, Any], value: Any) -> None:
    least, most, check = rules.get("least"), rules.get("most"), rules.get("check")
    if isinstance(value, (int, float)) and least is not None and value < least:
        raise SettingError(path, f"{value} is too small; write at least {readable(path[-1], least)}")
    if isinstance(value, (int, float)) and most is not None and value > most:
        raise SettingError(path, f"{value} is too large; write at most {readable(path[-1], most)}")
    if isinstance(value, tuple) and len(set(value)) < len(value):
        twice = next(item for item in value if value.count(item) > 1)
        raise SettingError(path, f'"{twice}" appears twice; remove one')
    for where, item in _items(path, value):
        if check and (problem := check(item)):
            raise SettingError(where, problem)


def _items(path: tuple[str, ...], value: Any) -> Iterable[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping):
        return [((*path, str(name)), (name, text)) for name, text in value.items()]
    return [(path, item) for item in (value if isinstance(value, tuple) else (value,))]


def _kind(value: object) -> str:
    if isinstance(value, str):
        return f'the string "{value}"' if len(value) < 40 else "a string"
    if isinstance(value, (list, tuple)):
        strings = all(isinstance(item, str) for item in value)
        return "a list" if strings else "a list with other things than strings"
    names = {bool: "true or false", dict: "a table", type(None): "None"}
    return names.get(type(value)) or (repr(value) if isinstance(value, (int, float)) else type(value).__name__)


# ---- quantities and names, as an operator writes them

_QUANTITIES = (("_bytes", _toml.SIZES, "512 MiB"), ("_s", _toml.TIMES, "30 s"))
_FOREIGN_UNIT = re.compile(
    r"_(b|[kmgt]i?b|bytes|s|ms|secs?|seconds|min|minutes|h|hours|m|millis|timeout)$", re.IGNORECASE
)


def measured(path: tuple[str, ...], value: Any) -> Any:
    """A quantity that was written with its unit, as the number that it means."""
    for suffix, units, example in _QUANTITIES:
        if path[-1].endswith(suffix) and isinstance(value, str):
            number = _toml.amount(value, units)
            if number is None:
                known = f'write it like "{example}" (units: {", ".join(units)})'
                raise SettingError(path, f'"{value}" has no unit that fits; {known}')
            return number
    return value


def readable(name: str, value: float) -> str:
    """A quantity with the largest unit that keeps it exact."""
    if name.endswith("_bytes"):
        sizes = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
        unit = [unit for unit, size in sizes.items() if value % size == 0][-1]
        return f"{int(value) // sizes[unit]} {unit}"
    return f"{value:.12g} s" if name.endswith("_s") else f"{value:.12g}"


def refuse_unknown(kind: type[Section], keys: Iterable[str], elsewhere: Mapping[str, type[Section]]) -> None:
    """Raise for the first key that this section does not have; `elsewhere` are sections that may have it."""
    for key in keys:
        if key not in fields_of(kind):
            raise SettingError((*kind.table, key), f"unknown key; {_meant(key, list(fields_of(kind)), elsewhere)}")


def _meant(key: str, known: list[str], elsewhere: Mapping[str, type[Section]]) -> str:
    stem = _FOREIGN_UNIT.sub("", key)
    for suffix, _, example in _QUANTITIES:
        if stem + suffix in known:
            return f'unit {"missing" if stem == key else "is another"}: write {stem}{suffix} = "{example}"'
    for name, kind in elsewhere.items():
        if key in fields_of(kind):
            return f"it belongs into the table [{name}]"
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f'did you mean "{close[0]}"?' if close else f"known are {', '.join(known)}"
