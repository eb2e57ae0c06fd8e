"""The guest's libraries: installed once into a directory of their own, which every sandbox sees read-only.

Only wheels, and no code of theirs runs on this machine outside a sandbox: unpacking and compiling execute nothing,
and the last step, importing them and listing the fonts for matplotlib, happens inside. The directory is made beside
its place and renamed into it, so that nobody ever sees half of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sandbox.blocking import BlockingSandbox
from sandbox.drivers.template import Interpreter, default_library_path, find_interpreter
from sandbox.errors import PolicyError, SandboxError, UnsupportedError
from sandbox.policy import Policy

__all__ = ["DEFAULT_REQUIREMENTS", "Installation", "install"]

DEFAULT_REQUIREMENTS = Path(__file__).with_name("guest-requirements.txt")

_MARKER = ".openenv-sandbox.json"
_RECIPE = 1  # to be raised when the same requirements are to be made into another directory
_TOOL_PATIENCE_S = 1800.0
# Variables that would send the tools elsewhere, or to another interpreter, than their arguments say.
_MISLEADING = re.compile(r"PYTHON.*|VIRTUAL_ENV|CONDA_PREFIX|PIP_(TARGET|PREFIX|ROOT|USER|PYTHON|REQUIRE_VIRTUALENV)")
# Options of the tools that name an index, and requirements that name a project or a wheel. pip would build a source
# archive that is named by its path, whatever --only-binary says.
_HARMLESS_OPTION = re.compile(r"(-i|-f|--(extra-)?index-url|--find-links|--no-index|--pre|--trusted-host)(\s|=|$)")
_PROJECT = re.compile(r"[A-Za-z0-9][\w.-]*\s*(\[[^\]]*\])?\s*([<>=!~;(].*)?")
_WHEEL = re.compile(r"(\S+\s*@\s*)?\S+\.whl(#\S*)?(\s*;.*)?")
_ARCHIVE = re.compile(r".*\.(zip|tar|tgz|tbz|txz|tar\.\w+)", re.IGNORECASE)
_NOT_FOR_GUESTS = ("openenv", "sandbox", "envs")
_FONT_MANAGER = "matplotlib/font_manager.py"
_FONT_LIST = "matplotlib/fontlist-of-guest.json"
_ANCHOR = "\nfontManager = _load_fontmanager()\n"
_PREBUILT = """
# Changed by `python -m sandbox install`: a fresh sandbox has no cache, and listing the fonts anew takes 0.15 s.
try:
    fontManager = json_load(Path(__file__).with_name("fontlist-of-guest.json"))
except Exception:
    fontManager = _load_fontmanager()
"""
_LIST_FONTS = """
import matplotlib.font_manager as manager
manager.json_dump(manager._load_fontmanager(), "/workspace/fonts.json")
"""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Installation:
    """What `install` did."""

    path: Path
    version: str  # of Python, "3.11"
    changed: bool
    unchecked: str | None = None  # why the libraries could not be tried inside a sandbox, if they could not


def install(
    *,
    requirements: Path = DEFAULT_REQUIREMENTS,
    python: str = "auto",
    into: Path | None = None,
    again: bool = False,
    say: Say = lambda line: None,
) -> Installation:
    """Make the library directory for this interpreter; nothing is done if it is there already.

    Raises `PolicyError` for wrong arguments, and `UnsupportedError` with the tool's own words if it fails.
    """
    interpreter = find_interpreter(Policy.default().replace(template={"python": _absolute(python)}))
    target = Path(os.path.abspath(into)) if into is not None else default_library_path(interpreter.version)
    marker = {"recipe": _RECIPE, "requirements": _checked(requirements), "python": _kind(interpreter)}
    _refuse_foreign(target)
    with _alone(target.parent):
        for left in target.parent.glob(f".{target.name}-*"):  # by an installation that was killed
            shutil.rmtree(left, ignore_errors=True)
        if not again and _read_marker(target) == marker:
            return Installation(path=target, version=interpreter.version, changed=False)
        with _beside(target) as fresh:
            say(f"installing {requirements} for Python {interpreter.version}; the first time this downloads them")
            _unpack(fresh, requirements, interpreter)
            _tidy(fresh)
            say("compiling them")
            _compile(fresh, interpreter.guest_site, interpreter)
            say("trying them inside a sandbox")
            unchecked = _try_inside(fresh, interpreter)
            (fresh / _MARKER).write_text(json.dumps(marker), encoding="ascii")
            _put_in_place(fresh, target)
    return Installation(path=target, version=interpreter.version, changed=True, unchecked=unchecked)


def _absolute(python: str) -> str:
    if python == "auto":
        return python
    found = shutil.which(python)
    if found is None:
        raise PolicyError(f"--python {python}: there is no such program")
    return os.path.abspath(found)


def _checked(requirements: Path) -> str:
    """A digest of the file, whose every line stands for wheels."""
    try:
        raw = requirements.read_bytes()
        text = raw.decode()
    except OSError as error:
        raise PolicyError(f"{requirements}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PolicyError(f"{requirements}: is not UTF-8; save it as UTF-8") from error
    number = 1
    for line in text.replace("\\\n", " \0").split("\n"):
        bare = re.sub(r"\0|(^|\s)#.*|\s--hash[=\s]\s*\S+", "", line).strip()
        wheels = _WHEEL.fullmatch(bare) or (_PROJECT.fullmatch(bare) and not _ARCHIVE.fullmatch(bare))
        if bare and not wheels and not _HARMLESS_OPTION.match(bare):
            raise PolicyError(
                f'{requirements}:{number}: "{bare}" is no name of a project and no wheel; install only those'
            )
        number += 1 + line.count("\0")
    return hashlib.sha256(raw).hexdigest()


def _kind(interpreter: Interpreter) -> str:
    return f"{interpreter.version} {platform.machine()}"


# The directory.


def _read_marker(target: Path) -> object:
    try:
        return json.loads((target / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _refuse_foreign(target: Path) -> None:
    """What is replaced must be ours, and never among what this server imports."""
    if {"site-packages", "dist-packages"} & set(target.resolve().parts):
        raise PolicyError(f"{target}: a server may import from there; choose a directory for guests alone")
    if os.path.lexists(target) and not target.is_dir():
        raise PolicyError(f"{target} is not a directory; choose another with --into")
    if target.is_dir() and any(target.iterdir()) and _read_marker(target) is None:
        raise PolicyError(f"{target} holds something else; choose an empty or a new directory with --into")


@contextlib.contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """Keep a second installation waiting."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if not os.access(parent, os.W_OK):
            os.close(lock)
            raise PermissionError(13, "Permission denied", str(parent))
    except OSError as error:
        raise UnsupportedError(
            f"{error.filename} cannot be written ({error.strerror}): choose a place with --into, "
            "and name it in the policy as template.library_path"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A new directory on the same file system, removed unless it was renamed."""
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        fresh.chmod(0o755)
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _put_in_place(fresh: Path, target: Path) -> None:
    if not target.exists():
        fresh.rename(target)
        return
    with _beside(target) as old:
        target.rename(old)
        try:
            fresh.rename(target)
        except BaseException:
            old.rename(target)
            raise


# The tools.


def _unpack(fresh: Path, requirements: Path, interpreter: Interpreter) -> None:
    arguments = ["--target", str(fresh), "--only-binary", ":all:", "--requirement", str(requirements)]
    tool = _find_uv()
    if tool is not None:
        # Copies, so that nothing which changes the tool's cache later changes what guests see.
        where = ["--python", interpreter.executable, "--link-mode", "copy"]
        command = [tool, "pip", "install", "--no-progress", *where, *arguments]
    else:
        command = [*_find_pip(interpreter), "install", "--no-compile", "--no-warn-script-location", *arguments]
    environment = {name: value for name, value in os.environ.items() if not _MISLEADING.fullmatch(name)}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, check=False, env=environment, errors="replace", stdin=subprocess.DEVNULL,
            text=True, timeout=_TOOL_PATIENCE_S,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise UnsupportedError(f"{command[0]} does not run: {error}") from error
    if done.returncode:
        raise UnsupportedError(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr.strip()[-4000:]}")
    for name in _NOT_FOR_GUESTS:
        if (fresh / name).exists():
            raise PolicyError(f"{requirements} brings {name}: the server's packages are not for guests; remove it")


def _find_uv() -> str | None:
    """$UV, the package uv, PATH, or the project's own tools."""
    named = os.environ.get("UV")
    if named:
        return named
    beside = Path(__file__).parents[1] / ".tools" / "bin" / "uv"
    packaged = Path(sys.prefix) / "bin" / "uv"
    for path in (packaged, beside):
        if os.access(path, os.X_OK):
            return str(path)
    return shutil.which("uv")


def _find_pip(interpreter: Interpreter) -> list[str]:
    candidates = [interpreter.executable]
    if "{}.{}".format(*sys.version_info) == interpreter.version:
        candidates.insert(0, sys.executable)
    for executable in candidates:
        question = [executable, "-m", "pip", "--version"]
        if subprocess.run(question, capture_output=True, check=False).returncode == 0:
            return [executable, "-m", "pip"]
    raise UnsupportedError("neither uv nor pip was found; install one of them, for example: pip install uv")


def _tidy(fresh: Path) -> None:
    """Nothing but what can be imported, and no path of this machine."""
    shutil.rmtree(fresh / "bin", ignore_errors=True)
    (fresh / ".lock").unlink(missing_ok=True)
    for path in fresh.glob("*.dist-info/direct_url.json"):
        path.unlink()


def _compile(path: Path, shown_in: str, interpreter: Interpreter) -> None:
    """Bytecode that is taken without a look at the source, and that names it as guests see it.

    A file with an error in it (tests of a library have such) fails alone, and as it would inside.
    """
    subprocess.run(
        [interpreter.executable, "-I", "-S", "-m", "compileall", "-q", "-f", "-j", "0",
         "--invalidation-mode", "unchecked-hash", "-d", shown_in, str(path)],
        check=False, env={}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


# Inside.


def _try_inside(fresh: Path, interpreter: Interpreter) -> str | None:
    """Import the default template's libraries in a sandbox; why that was impossible, or None."""
    present = [name for name in Policy.default().template.libraries if _provides(fresh, name)]
    policy = Policy.default().replace(
        template={"python": interpreter.executable, "library_path": str(fresh), "libraries": present},
        pool={"ready": 0, "max_sandboxes": 1},
    )
    broken = None
    try:
        with BlockingSandbox(policy) as box:
            for name in present:
                result = box.run_code(f"import {name}")
                if not result.ok:
                    broken = broken or f"import {name}: {result.outcome}\n{result.stderr.strip()}"
            if "matplotlib" in present and broken is None:
                _keep_font_list(box, fresh, interpreter)
    except SandboxError as error:
        return str(error)
    if broken is not None:
        raise UnsupportedError(f"the libraries do not work inside a sandbox: {broken}")
    return None


def _provides(directory: Path, name: str) -> bool:
    return (directory / name).is_dir() or (directory / f"{name}.py").is_file()


def _keep_font_list(box: BlockingSandbox, fresh: Path, interpreter: Interpreter) -> None:
    """Give matplotlib the list of its fonts, which it else makes at the first plot of every sandbox.

    It looks for such a list only in a directory that it can write to, which no sandbox shares with another.
    """
    source = (fresh / _FONT_MANAGER).read_text(encoding="utf-8")
    if source.count(_ANCHOR) != 1 or not box.run_code(_LIST_FONTS).ok:
        return  # another matplotlib than was tried: slower, and right
    (fresh / _FONT_LIST).write_bytes(box.read_file("fonts.json", limit_bytes=1 << 20))
    (fresh / _FONT_MANAGER).write_text(source.replace(_ANCHOR, _PREBUILT), encoding="utf-8")
    _compile(fresh / _FONT_MANAGER, f"{interpreter.guest_site}/matplotlib", interpreter)
