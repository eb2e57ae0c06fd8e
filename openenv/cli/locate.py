"""Finds the environment that a command line means."""

import difflib
import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

import yaml

MANIFEST = "openenv.yaml"
DEFAULT_APP = "server.app:app"


class LocateError(Exception):
    """There is no such environment, or it cannot be served; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Located:
    """An environment: its folder, its application's import string, and what `sys.path` needs for it."""

    name: str
    folder: Path
    app: str
    import_paths: tuple[str, ...]


def locate(target: str | None, cwd: Path) -> Located:
    """The environment meant by a name, a path, or nothing (the folder one is in).

    Raises:
        LocateError: none is meant, or it lacks something.
    """
    if target is None:
        return _described(_enclosing(cwd))
    folder = cwd / target
    if folder.is_dir() and _is_environment(folder):
        return _described(folder.resolve())
    if os.sep in target or target.startswith("."):
        problem = f"has no {MANIFEST}" if folder.is_dir() else "is not a directory"
        raise LocateError(f"{target} {problem}. Give the folder of an environment, or its name.")
    return _described(_named(target, cwd))


def _is_environment(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or (folder / "server" / "app.py").is_file()


def _enclosing(cwd: Path) -> Path:
    for folder in (cwd, *cwd.parents):
        if (folder / MANIFEST).is_file():
            return folder
    known = ", ".join(sorted(_known(cwd))) or "none found"
    raise LocateError(
        f"No {MANIFEST} here or above. Name an environment or give its folder: openenv serve NAME\nKnown names: {known}"
    )


def _named(name: str, cwd: Path) -> Path:
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    candidates = [plain] if plain.endswith("_env") else [f"{plain}_env", plain]
    known = _known(cwd)
    for candidate in candidates:
        if candidate in known:
            return known[candidate]
        if (installed := _installed(candidate)) is not None:
            return installed
    close = difflib.get_close_matches(candidates[0], known, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    raise LocateError(
        f"No environment named '{name}'.{hint}\n"
        f"Known names: {', '.join(sorted(known)) or 'none found'}. "
        f"It may also be a folder that contains {MANIFEST}."
    )


def _known(cwd: Path) -> dict[str, Path]:
    """Environments of the checkout around `cwd` first, then installed ones."""
    found = {}
    for distribution in distributions():
        title = distribution.metadata["Name"] or ""
        if title.startswith("openenv-"):
            package = title.removeprefix("openenv-").replace("-", "_")
            if (folder := _installed(package)) is not None:
                found[package] = folder
    for folder in _of_checkout(cwd):
        found[folder.name] = folder
    return found


def _of_checkout(cwd: Path) -> Iterator[Path]:
    for above in (cwd, *cwd.parents):
        envs = above / "envs"
        if envs.is_dir():
            yield from (folder for folder in sorted(envs.iterdir()) if _is_environment(folder))
            return


def _installed(package: str) -> Path | None:
    if not package.isidentifier():
        return None
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        folder = Path(location)
        if _is_environment(folder):
            return folder.resolve()
    return None


def _described(folder: Path) -> Located:
    manifest = _manifest(folder)
    name = str(manifest.get("name") or folder.name)
    app = str(manifest.get("app") or DEFAULT_APP)
    module, _, attribute = app.partition(":")
    package = folder
    for candidate in (folder, folder / folder.name, folder / name):
        if _has_module(candidate, module):
            package = candidate
            break
    else:
        raise LocateError(
            f"{folder} has no {module.replace('.', '/')}.py. "
            f"Create it, or set `app: <module>:<attribute>` in its {MANIFEST}."
        )
    prefix, paths = _importable(package)
    return Located(
        name=name,
        folder=folder,
        app=f"{prefix}{module}:{attribute or 'app'}",
        import_paths=(*paths, str(package)),
    )


def _manifest(folder: Path) -> dict[str, object]:
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LocateError(f"{path} cannot be read: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise LocateError(f"{path} must hold keys and values, such as `app: {DEFAULT_APP}`")
    return content or {}


def _has_module(folder: Path, module: str) -> bool:
    base = folder.joinpath(*module.split("."))
    return base.with_suffix(".py").is_file() or (base / "__init__.py").is_file()


def _importable(package: Path) -> tuple[str, tuple[str, ...]]:
    """The prefix under which the package's modules are imported, and the folders `sys.path` needs for it."""
    if not (package / "__init__.py").is_file() or not package.name.isidentifier():
        return "", ()
    if _installed(package.name) == package:
        return f"{package.name}.", ()
    if (package.parent / "__init__.py").is_file():  # a checkout's `envs` package
        return f"{package.parent.name}.{package.name}.", (str(package.parent.parent),)
    return f"{package.name}.", (str(package.parent),)
