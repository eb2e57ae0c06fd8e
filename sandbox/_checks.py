"""Checks of single values in a policy. Each returns None, or what is wrong and what to write instead."""

from __future__ import annotations

import builtins
import keyword
import os
import re
from collections.abc import Callable
from typing import Any

__all__ = [
    "Check",
    "auto_or_path",
    "function_name",
    "matches",
    "module_name",
    "one_of",
    "refused_host_path",
    "variable",
]

Check = Callable[[Any], str | None]


def one_of(*choices: str) -> Check:
    """One of these words."""
    known = " or ".join(f'"{choice}"' for choice in choices)
    return lambda value: None if value in choices else f'must be {known}, not "{value}"'


def matches(pattern: str, remedy: str) -> Check:
    """A text that this pattern describes as a whole."""
    return lambda value: None if re.fullmatch(pattern, value) else f'"{value}" cannot be used; {remedy}'


def auto_or_path(value: str) -> str | None:
    """ "auto", or an absolute path."""
    return None if value == "auto" else _path(value)


def _path(value: str) -> str | None:
    if not value.isprintable():
        return f"{value!r} contains control characters; write a plain path"
    if not value.startswith("/") or value.startswith("//") or os.path.normpath(value) != value:
        return f'"{value}" is no such path; write an absolute one without "..", "." or doubled slashes'
    return None


# Whole trees that describe or control the host, and directories that are too much to show as a whole.
_PRIVATE_TREES = ("/proc", "/sys", "/dev", "/run", "/etc", "/root", "/boot", "/var/run", "/var/lib/docker")
_TOO_MUCH = ("/", "/home", "/var", "/var/lib", "/tmp", "/var/tmp", "/opt", "/srv", "/mnt", "/media")  # noqa: S108


def refused_host_path(path: str) -> str | None:
    """Why this host path must not be shown to guests, or None.

    The check is lexical: whoever binds the path asks again with its resolved form.
    """
    if fault := _path(path):
        return fault
    for tree in _PRIVATE_TREES:
        if path == tree or path.startswith(tree + "/"):
            return f'"{path}" is in {tree}, which describes or controls the host; copy what is needed elsewhere'
    if path in _TOO_MUCH:
        return f'"{path}" is too much of the host; name the directory below it that guests need'
    if os.path.dirname(path) == "/home":
        return f'"{path}" is the home of a user, with its keys; name the directory below it that guests need'
    return None


_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CODE_LOADING = re.compile(r"LD_.*|PYTHON.*|GLIBC_TUNABLES|GCONV_PATH")
# The only PYTHON* names that change neither which code an interpreter runs nor where it looks for it.
_HARMLESS_PYTHON = ("PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED", "PYTHONUNBUFFERED", "PYTHONUTF8")


def variable(item: tuple[object, object]) -> str | None:
    """An environment variable that changes data and not which code is loaded."""
    name, value = item
    if not isinstance(name, str) or not _VARIABLE_NAME.fullmatch(name):
        return "is not a name for a variable; use letters, digits and underscores, not a digit first"
    if _CODE_LOADING.fullmatch(name) and name not in _HARMLESS_PYTHON:
        return f"is refused: it changes which code is loaded; of its kind only {', '.join(_HARMLESS_PYTHON)}"
    if not isinstance(value, str):
        return f"must be a string, not {value!r}; put it in quotes"
    if "\0" in value:
        return "contains a NUL, which no environment can hold; remove it"
    return None


def module_name(value: str) -> str | None:
    """A name that an import statement could use."""
    good = all(part.isidentifier() and not keyword.iskeyword(part) for part in value.split("."))
    return None if good else f'"{value}" is not an import name; write it as in an import statement'


def function_name(value: str) -> str | None:
    """A name under which a guest could call a function without losing another one."""
    if not value.isidentifier() or keyword.iskeyword(value) or value.startswith("__"):
        return f'"{value}" is not a name for a function; use a Python identifier'
    return f'"{value}" would hide the builtin; choose another name' if hasattr(builtins, value) else None
