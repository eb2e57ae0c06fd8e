"""TOML for policies: parsing that says where, and quantities that carry a unit."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from sandbox.errors import PolicyError

__all__ = ["SIZES", "TIMES", "Document", "amount", "write"]

SIZES = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
TIMES = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}

_AMOUNT = re.compile(r"\s*(-?\d{1,15}(?:\.\d{1,15})?)\s*([A-Za-z]*)\s*")
_TABLE = re.compile(r"\s*\[\[?\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"\s*((?:[\w-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[\w-]+|\"[^\"]*\"|'[^']*'))*)\s*=")
_PART = re.compile(r"[\w-]+|\"[^\"]*\"|'[^']*'")
_TRIPLE = ('"""', "'''")
_AT_LINE = re.compile(r"\(at line (\d+), column \d+\)$")


class Document:
    """A parsed TOML text that can say on which line a key stands, which `tomllib` does not."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        try:
            self.data: dict[str, Any] = tomllib.loads(text)
        except ValueError as error:  # TOMLDecodeError, or a number with thousands of digits
            at = _AT_LINE.search(str(error))
            line = int(at[1]) if at else text.rstrip().count("\n") + 1
            message = _AT_LINE.sub("", str(error)).strip()
            raise PolicyError(f"{source}:{line}: not TOML: {message}") from None
        self._lines = _lines_of_keys(text)

    def line(self, path: tuple[str, ...]) -> int:
        """The line where `path` is written, or else the innermost table around it that is."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)


def _lines_of_keys(text: str) -> dict[tuple[str, ...], int]:
    """Find the lines of tables and keys in a text that is already known to be TOML.

    Keys inside an inline table are not found; they are reported at the line of that table.
    """
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    inside = ""  # the quotes of a string, or the brackets of an array, that go on over several lines
    for number, line in enumerate(text.splitlines(), start=1):
        if not inside:
            if match := _TABLE.match(line):
                path = table = _parts(match[1])
            elif match := _KEY.match(line):
                path = table + _parts(match[1])
            else:
                continue
            for end in range(1, len(path) + 1):
                found.setdefault(path[:end], number)
            rest = line[match.end() :]
        else:
            rest = line
        inside = _still_inside(rest, inside)
    return found


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in _PART.findall(dotted))


def _still_inside(line: str, inside: str) -> str:
    """What is still open at the end of this line: brackets of arrays and triple quotes, outermost first."""
    index = 0
    while index < len(line):
        three, one = line[index : index + 3], line[index]
        if inside.endswith(_TRIPLE):
            if one == "\\" and inside.endswith('"'):
                index += 1
            elif inside.endswith(three):
                inside, index = inside[:-3], index + 2
        elif three in _TRIPLE:
            inside, index = inside + three, index + 2
        elif one in "\"'":
            index = _end_of_string(line, index)
        elif one == "#":
            break
        elif one == "[":
            inside += one
        elif one == "]":
            inside = inside[:-1]
        index += 1
    return inside


def _end_of_string(line: str, start: int) -> int:
    """The index of the quote that ends the one-line string which begins at `start`."""
    quote, index = line[start], start + 1
    while index < len(line) and line[index] != quote:
        index += 2 if line[index] == "\\" and quote == '"' else 1
    return index


def amount(text: str, units: dict[str, Any]) -> float | int | None:
    """The number that a text such as "512 MiB" means, or None if it has no unit or another one."""
    match = _AMOUNT.fullmatch(text)
    if not match or match[2] not in units:
        return None
    value = float(match[1]) * units[match[2]] if "." in match[1] else int(match[1]) * units[match[2]]
    return int(value) if isinstance(units[match[2]], int) else float(value)


def write(value: object) -> str:
    """One value as TOML; only the kinds that a policy holds."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return '"' + "".join(_escaped(sign) for sign in value) + '"'
    assert isinstance(value, (list, tuple))
    return "[" + ", ".join(write(item) for item in value) + "]"


def _escaped(sign: str) -> str:
    if sign in '"\\':
        return "\\" + sign
    return sign if sign >= " " and sign != "\x7f" else f"\\u{ord(sign):04x}"
