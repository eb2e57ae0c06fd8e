"""What a template is made of on this machine: an interpreter, its libraries, and the commands that are shown."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sandbox.errors import PolicyError, UnsupportedError
from sandbox.policy import Policy, refused_host_path

PREFIX = "/opt/python"  # where the guest sees its interpreter; only /proc/self/mountinfo tells where it came from
_COMMAND_PATH = "/usr/local/bin:/usr/bin:/bin"
_LIBRARY_DIRECTORIES = ("/usr/lib64", "/usr/lib32")
_QUESTION = """
import json, os, sys, sysconfig
print(json.dumps({
    "executable": os.path.realpath(sys.executable),
    "version": list(sys.version_info[:2]),
    "stdlib": os.path.realpath(sysconfig.get_path("stdlib")),
    "shared": sysconfig.get_config_var("Py_ENABLE_SHARED"),
    "libdir": sysconfig.get_config_var("LIBDIR"),
    "ldlibrary": sysconfig.get_config_var("INSTSONAME"),
    "multiarch": sysconfig.get_config_var("MULTIARCH"),
    "debian": any(p.endswith("dist-packages") for p in sys.path) or "dist-packages" in sysconfig.get_path("purelib"),
}))
"""


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """A CPython on the host that guests will run."""

    executable: str
    version: str  # "3.11"
    stdlib: str
    shared_library: str | None
    multiarch: str | None
    debian_layout: bool  # site directories are called dist-packages

    @property
    def guest_executable(self) -> str:
        """Its path as the guest sees it."""
        return f"{PREFIX}/bin/python{self.version}"

    @property
    def guest_site(self) -> str:
        """The directory in which the guest's interpreter looks for libraries."""
        if self.debian_layout:
            return f"{PREFIX}/lib/python3/dist-packages"
        return f"{PREFIX}/lib/python{self.version}/site-packages"


@dataclass(frozen=True, kw_only=True)
class Mount:
    """One read-only entry of the root: a bind of `source`, a link to it, or (with neither) an empty directory."""

    target: str
    source: str | None = None
    link: str | None = None
    content: str | None = None
    origin: str | None = None  # where `source` comes from, if it was staged


def default_python() -> str:
    """The interpreter under the server's own virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def default_library_path(version: str) -> Path:
    """Where `python -m sandbox install` puts the guest's libraries: beside the server's, never among them."""
    return Path(sys.prefix) / "share" / "openenv-sandbox" / f"guest-{version}"


def find_interpreter(policy: Policy) -> Interpreter:
    """The interpreter that the policy names, asked about itself. Raises `UnsupportedError`."""
    path = default_python() if policy.template.python == "auto" else policy.template.python
    try:
        answer = subprocess.run(
            [path, "-I", "-S", "-c", _QUESTION], capture_output=True, check=True, timeout=20, env={}, text=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UnsupportedError(f"the interpreter {path} does not run: {error}; set template.python") from error
    facts = json.loads(answer.stdout)
    library = os.path.join(facts["libdir"] or "", facts["ldlibrary"] or "") if facts["shared"] else None
    return Interpreter(
        executable=facts["executable"],
        version=".".join(map(str, facts["version"])),
        stdlib=facts["stdlib"],
        shared_library=library if library and os.path.exists(library) else None,
        multiarch=facts["multiarch"],
        debian_layout=facts["debian"],
    )


def find_libraries(policy: Policy, interpreter: Interpreter) -> str | None:
    """The directory of the guest's libraries on the host, or None for the standard library alone."""
    if policy.template.library_path != "auto":
        path = policy.template.library_path
        if not os.path.isdir(path):
            raise UnsupportedError(f"template.library_path {path} is not a directory")
        return path
    path = str(default_library_path(interpreter.version))
    if os.path.isdir(path):
        return path
    if policy.template.libraries:
        wanted = ", ".join(policy.template.libraries)
        raise UnsupportedError(
            f"the libraries of the template ({wanted}) are not installed for Python {interpreter.version}: "
            "run `python -m sandbox install`, or set template.libraries = []"
        )
    return None


def root_mounts(policy: Policy, interpreter: Interpreter, libraries: str | None) -> Iterator[Mount]:
    """Everything that the read-only root shows, in the order of mounting."""
    version = interpreter.version
    yield from _system_libraries(interpreter)
    yield Mount(target=interpreter.guest_executable, source=interpreter.executable)
    for name in ("python", "python3"):
        yield Mount(target=f"{PREFIX}/bin/{name}", link=f"python{version}")
    yield Mount(target=f"{PREFIX}/lib/python{version}", source=interpreter.stdlib)
    # Always covered: the host interpreter's own libraries live in the directory that was just shown.
    if libraries is not None or os.path.isdir(f"{interpreter.stdlib}/site-packages"):
        yield Mount(target=interpreter.guest_site, source=libraries)
    yield from _commands(policy)
    yield from _shown_by_policy(policy)
    yield from _devices()
    for path in ("/usr/lib/locale/C.utf8", "/usr/lib/locale/C.UTF-8"):
        if os.path.isdir(path):  # the locale of the guest's LANG; newer C libraries have it built in
            yield Mount(target=path, source=path)
    yield Mount(target="/etc/passwd", content=_ACCOUNTS)
    yield Mount(target="/etc/group", content="root:x:0:\nsandbox:x:1000:\nnogroup:x:65534:\n")
    for path in ("/workspace", "/tmp", "/dev/shm", "/mnt"):  # noqa: S108
        yield Mount(target=path)


def _shown_by_policy(policy: Policy) -> Iterator[Mount]:
    for path in policy.root.show:
        if not os.path.exists(path):
            raise UnsupportedError(f"root.show names {path}, which does not exist here")
        if fault := refused_host_path(os.path.realpath(path)):
            raise PolicyError(f"root.show names {path}: {fault}")
        yield Mount(target=path, source=path)


def _devices() -> Iterator[Mount]:
    for name in ("null", "zero", "full", "random", "urandom"):
        yield Mount(target=f"/dev/{name}", source=f"/dev/{name}")
    for name, link in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        yield Mount(target=f"/dev/{name}", link=link)


_ACCOUNTS = (
    "root:x:0:0:root:/:/usr/bin/sh\n"
    "sandbox:x:1000:1000:sandbox:/workspace:/usr/bin/sh\n"
    "nobody:x:65534:65534:nobody:/:/usr/bin/false\n"
)


def _system_libraries(interpreter: Interpreter) -> Iterator[Mount]:
    """The directories in which the dynamic linker looks by itself, and nothing else of /usr/lib."""
    multiarch = f"/usr/lib/{interpreter.multiarch}" if interpreter.multiarch else None
    shown = [path for path in (multiarch, *_LIBRARY_DIRECTORIES) if path is not None and os.path.isdir(path)]
    for path in shown:
        yield Mount(target=path, source=path)
    for name in ("bin", "lib", "lib64"):
        if name == "lib64" and not os.path.isdir("/usr/lib64"):
            yield from _dynamic_linker()
        else:
            yield Mount(target=f"/{name}", link=f"usr/{name}")
    library = interpreter.shared_library
    if library is not None and os.path.dirname(os.path.realpath(library)) not in map(os.path.realpath, shown):
        # Found by default, whatever run path the interpreter was linked with. The linker looks into `shown` first:
        # a library of the same name there is that of another interpreter, and would be run instead.
        name = os.path.basename(library)
        covered = [f"{path}/{name}" for path in shown if os.path.exists(f"{path}/{name}")]
        for target in covered or [f"/usr/lib/{name}"]:
            yield Mount(target=target, source=os.path.realpath(library))


def _dynamic_linker() -> Iterator[Mount]:
    for name in os.listdir("/lib64") if os.path.isdir("/lib64") else ():
        if name.startswith("ld-"):
            yield Mount(target=f"/lib64/{name}", source=os.path.realpath(f"/lib64/{name}"))


def _commands(policy: Policy) -> Iterator[Mount]:
    for name in policy.root.commands:
        path = shutil.which(name, path=_COMMAND_PATH)
        if path is None:
            raise UnsupportedError(f"root.commands names {name!r}, which is not installed here")
        yield Mount(target=f"/usr/bin/{name}", source=os.path.realpath(path))
