"""From the names that a policy allows to the program that the kernel runs before every call. seccomp(2).

The host compiles, the guest's processes install: nothing of libseccomp is needed inside. What the names and
the argument rules mean is data, in `syscalls.toml` beside this file. It denies what it does not know:
EPERM for a call that is not allowed, death for one of another architecture (on x86-64: int 0x80 and x32).
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import importlib.resources
import itertools
import os
import platform
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sandbox.errors import PolicyError, UnsupportedError

__all__ = ["allowed_calls", "compile_filter", "explain_filter"]

# The tokens of seccomp(2)'s arch field. The rules in the table were checked against these two only.
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_UNKNOWN_CALL = -1  # libseccomp: no architecture has it; other negative numbers: this one lacks it

# Which argument of these calls names the descriptor that is closed or replaced.
_CLOSED_ARGUMENT = {"close": 0, "dup2": 1, "dup3": 1, "close_range": 1}

_TREE_OPTIMISATION = 2  # libseccomp 2.5: a binary search over the numbers


class Allows(Protocol):
    """The part of a policy that is compiled here."""

    @property
    def allow(self) -> tuple[str, ...]:
        """Names of groups and of single calls."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Comparison:
    """Argument `arg`, reduced to the bits of `mask`, is `value`."""

    arg: int
    mask: int
    value: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Table:
    """The content of syscalls.toml. `rules`: the alternatives of a call, each of comparisons."""

    groups: Mapping[str, tuple[str, ...]]
    rules: Mapping[str, tuple[tuple[_Comparison, ...], ...]]
    answers: Mapping[str, tuple[str, ...]]
    refused: Mapping[str, str]
    numbers: Mapping[str, int]

    def expand(self, names: Iterable[str]) -> set[str]:
        """The calls that these groups and calls stand for."""
        calls: set[str] = set()
        for name in names:
            if not name.startswith("@"):
                calls.add(name)
            elif name in self.groups:
                calls.update(self.groups[name])
            else:
                raise PolicyError(f'seccomp.allow: there is no group "{name}"; {_meant(name, self.groups)}')
        return calls


def compile_filter(
    seccomp: Allows,
    *,
    protected_fds_from: int | None = None,
    deny: Iterable[str] = (),
    architecture: str | None = None,
) -> bytes:
    """Compile to an array of `struct sock_filter`, for this machine's architecture unless another is named.

    Descriptors from `protected_fds_from` on cannot be closed or replaced by the guest, whatever it puts into
    the upper half of the register; let them be the highest numbers that RLIMIT_NOFILE admits, since the guest
    could not close its own there. `deny` takes groups and calls away from what the policy allows.
    """
    built = _build(seccomp, protected_fds_from, deny, architecture)
    return _exported(built.export_bpf)


def explain_filter(
    seccomp: Allows,
    *,
    protected_fds_from: int | None = None,
    deny: Iterable[str] = (),
    architecture: str | None = None,
) -> str:
    """The same filter as text that an operator can read: libseccomp's pseudo filter code."""
    built = _build(seccomp, protected_fds_from, deny, architecture)
    return _exported(built.export_pfc).decode()


def allowed_calls(seccomp: Allows, *, deny: Iterable[str] = ()) -> dict[str, bool]:
    """The calls that a policy allows, sorted; true for those whose arguments are checked as well."""
    table = _table()
    return {name: name in table.rules for name in sorted(table.expand(seccomp.allow) - table.expand(deny))}


def _build(seccomp: Allows, protected_fds_from: int | None, deny: Iterable[str], architecture: str | None) -> Any:
    lib, table, machine = _libseccomp(), _table(), architecture or platform.machine()
    if machine not in _ARCHITECTURES:
        raise UnsupportedError(
            f"no system-call filter for {machine}; use a machine with x86_64 or aarch64, or the docker driver"
        )
    denied = table.expand(deny)
    for _ in _numbers(lib, table, machine, denied):
        pass  # a misspelt name must not deny nothing
    allowed = table.expand(seccomp.allow) - denied
    for name in sorted(allowed & set(table.refused)):
        raise PolicyError(f"seccomp.allow: {name} cannot be allowed: {table.refused[name]}; remove it")
    built = _empty(lib, machine)
    for name, number in _numbers(lib, table, machine, allowed):
        for conditions in table.rules.get(name, ((),)):
            if protected_fds_from is not None and name in _CLOSED_ARGUMENT:
                _protect(lib, built, name, number, protected_fds_from)
            else:
                arguments = [lib.Arg(c.arg, lib.MASKED_EQ, c.mask, c.value) for c in conditions]
                built.add_rule_exactly(lib.ALLOW, number, *arguments)
    for answer, calls in table.answers.items():
        for _, number in _numbers(lib, table, machine, set(calls) - allowed):
            built.add_rule_exactly(lib.ERRNO(getattr(errno, answer)), number)
    return built


def _empty(lib: Any, machine: str) -> Any:
    """A filter for this architecture that denies everything."""
    built = lib.SyscallFilter(lib.ERRNO(errno.EPERM))
    token = _ARCHITECTURES[machine]
    if token != lib.system_arch() & 0xFFFFFFFF:
        built.add_arch(token)
        built.remove_arch(lib.Arch.NATIVE)
    try:
        built.set_attr(lib.Attr.ACT_BADARCH, lib.KILL_PROCESS)
    except OSError as error:
        raise UnsupportedError(
            f"the kernel or libseccomp cannot end a process for a call of another architecture ({error}); "
            "Linux 4.14 and libseccomp 2.4 can"
        ) from error
    with contextlib.suppress(OSError):  # libseccomp before 2.5: the same decisions, a little slower
        built.set_attr(lib.Attr.CTL_OPTIMIZE, _TREE_OPTIMISATION)
    return built


def _protect(lib: Any, built: Any, name: str, number: int, first: int) -> None:
    """Allow the call below `first`. The comparison is 64 bits wide and a descriptor is 32: whoever
    fills the upper half is refused too. close_range answers ENOSYS, so that callers close one by one.
    """
    argument = _CLOSED_ARGUMENT[name]
    refusal = errno.ENOSYS if name == "close_range" else errno.EBADF
    built.add_rule_exactly(lib.ALLOW, number, lib.Arg(argument, lib.LT, first))
    built.add_rule_exactly(lib.ERRNO(refusal), number, lib.Arg(argument, lib.GE, first))


def _numbers(lib: Any, table: _Table, machine: str, names: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Names with the numbers that libseccomp takes: always those of the machine that it runs on, even when it
    compiles for another one. Calls that the target lacks are left out.
    """
    for name in sorted(names):
        there = lib.resolve_syscall(_ARCHITECTURES[machine], name)
        if there >= 0:
            yield name, lib.resolve_syscall(lib.Arch.NATIVE, name)
        elif there == _UNKNOWN_CALL and name in table.numbers:
            if machine == platform.machine():  # libseccomp cannot translate what it does not know
                yield name, table.numbers[name]
        elif there == _UNKNOWN_CALL:
            known = set(itertools.chain(*table.groups.values()))
            raise PolicyError(f'seccomp.allow: there is no system call "{name}"; {_meant(name, known)}')


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else "sandbox/kernel/syscalls.toml lists groups and calls"


def _libseccomp() -> Any:
    try:
        import pyseccomp
    except ImportError as error:
        raise UnsupportedError(
            'no system-call filter without the package pyseccomp; install it: pip install "openenv[server]"'
        ) from error
    except RuntimeError as error:  # what it raises when it does not find the shared library
        raise UnsupportedError(
            "no system-call filter without libseccomp; install the system's package: libseccomp2 on Debian "
            "and Ubuntu, libseccomp on Fedora, Arch and Alpine"
        ) from error
    return pyseccomp


def _exported(export: Any) -> bytes:
    with open(os.memfd_create("seccomp"), "rb+") as file:
        export(file)
        file.seek(0)
        return file.read()


@functools.cache
def _table() -> _Table:
    text = importlib.resources.files("sandbox.kernel").joinpath("syscalls.toml").read_text(encoding="utf-8")
    data = tomllib.loads(text)
    rules: dict[str, tuple[tuple[_Comparison, ...], ...]] = {}
    for rule in data["rules"]:
        for name in rule["syscalls"]:
            rules[name] = rules.get(name, ()) + tuple(_alternatives(rule["where"]))
    return _Table(
        groups={name: tuple(calls) for name, calls in data["groups"].items()},
        rules=rules,
        answers=data["answers"],
        refused=data["refused"],
        numbers=data["numbers"],
    )


def _alternatives(where: list[dict[str, Any]]) -> Iterator[tuple[_Comparison, ...]]:
    """Every choice of one value per condition."""
    per_condition = [
        [_Comparison(arg=c["arg"], mask=c.get("mask", 0xFFFFFFFF), value=value) for value in c["is"].values()]
        for c in where
    ]
    yield from itertools.product(*per_condition)
