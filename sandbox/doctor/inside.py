"""The whole: a driver that is started, a look around from inside, and limits that are run into.

What is said here is the word of an interpreter that has run nothing but this file's own programs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from sandbox.blocking import BlockingSandbox
from sandbox.doctor.findings import Finding
from sandbox.drivers.jail import guest_environment
from sandbox.errors import SandboxError
from sandbox.policy import MIB, Policy
from sandbox.result import Outcome, Result
from sandbox.zygote.settings import GUEST

_BUG = "this is a fault of the sandbox or of the kernel: please report it with this table"
_ROOT = {"bin", "dev", "etc", "lib", "lib64", "mnt", "opt", "proc", "tmp", "usr", "workspace"}
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
_TIMEOUT_S, _TOLERANCE_S = 0.2, 1.0

_LOOK_AROUND = """
import json, os, socket
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
try:
    socket.socket(socket.AF_INET).close()
    inet = None
except OSError as error:
    inet = error.strerror
print(json.dumps({
    "users": [*os.getresuid(), *os.getresgid()],
    "capabilities": [status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "no_new_privileges": status["NoNewPrivs"],
    "seccomp": status["Seccomp"],
    "inet": inet,
    "interfaces": [line.split(":")[0].strip() for line in open("/proc/self/net/dev").readlines()[2:]],
    "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
    "root": sorted(os.listdir("/")),
    "namespaces": {name: os.readlink("/proc/self/ns/" + name) for name in %r},
    "environment": sorted(os.environ),
}))
"""

# Each child stays below the limit of a process; together they are far above that of the sandbox.
_BOMB = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        hoard = bytearray(b"x") * %d
        time.sleep(5)
        os._exit(0)
for _ in range(4):
    pid, status = os.wait()
    if os.WIFSIGNALED(status):
        print("killed by", os.WTERMSIG(status))
        break
"""

_FORKS = """
import os, time
count = 1
try:
    while count <= %d:
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        count += 1
except BlockingIOError:
    print(count)
"""

_STUBBORN = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"


def findings(policy: Policy) -> Iterator[Finding]:
    """Start the driver under this policy, then under one with small limits."""
    try:
        with BlockingSandbox(_alone(policy)) as box:
            yield _first_step(box)
            yield from _look_around(box, policy)
            if policy.template.libraries:
                yield _imports(box, policy)
    except (SandboxError, OSError) as error:
        yield _no_driver(error)
        return
    try:
        yield from _limits(_small(policy))
    except (SandboxError, OSError) as error:
        yield Finding.missing("limits", str(error), _BUG)


def _alone(policy: Policy) -> Policy:
    return policy.replace(pool={"ready": 0, "max_sandboxes": 1})


def _small(policy: Policy) -> Policy:
    """The same mechanisms, with limits that are reached quickly and without a burden for the machine."""
    limits = policy.limits
    return _alone(policy).replace(
        limits={
            "memory_bytes": min(limits.memory_bytes, 128 * MIB),
            "processes": min(limits.processes, 32),
            "grace_s": min(limits.grace_s, 0.2),
        },
        template={"libraries": (), "preload": ()},
    )


def _no_driver(error: Exception) -> Finding:
    return Finding.missing("driver", str(error), "see what is missing above; it may be the cause")


def _first_step(box: BlockingSandbox) -> Finding:
    result = box.run_code("print(1+1)")
    if result.stdout != "2\n":
        return Finding.missing("driver", f"print(1+1) gave {result}", _BUG)
    return Finding.ok("driver", f"print(1+1) gave 2, in {result.usage.wall_s * 1000:.1f} ms")


# From inside.


def _look_around(box: BlockingSandbox, policy: Policy) -> Iterator[Finding]:
    result = box.run_code(_LOOK_AROUND % (_NAMESPACES,))
    try:
        facts = json.loads(result.stdout)
    except ValueError:
        yield Finding.missing("from inside", f"no answer: {result}", _BUG)
        return
    for name, right, detail in _judged(facts, policy):
        yield Finding.ok(name, detail) if right else Finding.missing(name, f"not as promised: {detail}", _BUG)


def _judged(facts: dict[str, Any], policy: Policy) -> Iterator[tuple[str, bool, str]]:
    users, capabilities = facts["users"], facts["capabilities"]
    yield "inside: user", users == [GUEST] * 6, f"user and group {', '.join(map(str, sorted(set(users))))}"
    yield (
        "inside: capabilities",
        not any(int(each, 16) for each in capabilities),
        f"{' '.join(sorted(set(capabilities)))}",
    )
    yield "inside: no new privileges", facts["no_new_privileges"] == "1", facts["no_new_privileges"]
    yield "inside: system-call filter", facts["seccomp"] == "2", f"mode {facts['seccomp']}"
    offline = facts["inet"] is not None and set(facts["interfaces"]) <= {"lo"}
    yield "inside: network", offline, f"interfaces: {', '.join(facts['interfaces'])}; internet sockets: {facts['inet']}"
    yield "inside: processes", len(facts["processes"]) == 2, f"visible: {facts['processes']}"
    shown = {path.split("/")[1] for path in policy.root.show}
    yield "inside: root", set(facts["root"]) <= _ROOT | shown, " ".join(facts["root"])
    shared = [name for name, link in facts["namespaces"].items() if link == os.readlink(f"/proc/self/ns/{name}")]
    yield "inside: namespaces", not shared, f"shared with the host: {', '.join(shared) or 'none'}"
    expected = sorted(guest_environment(policy))
    yield "inside: environment", facts["environment"] == expected, " ".join(facts["environment"])


def _imports(box: BlockingSandbox, policy: Policy) -> Finding:
    times = []
    for name in policy.template.libraries:
        result = box.run_code(f"import {name}")
        if not result.ok:
            why = result.stderr.strip().rpartition("\n")[2] or result.outcome
            return Finding.missing("inside: libraries", f"import {name}: {why}", "python -m sandbox install --upgrade")
        times.append(f"{name} {result.usage.wall_s:.2f} s")
    return Finding.ok("inside: libraries", f"imported: {', '.join(times)}")


# Limits.


def _limits(policy: Policy) -> Iterator[Finding]:
    limits = policy.limits
    trials: tuple[tuple[str, str, Callable[[Result], tuple[bool, str]]], ...] = (
        ("memory limit", _BOMB % (limits.memory_bytes * 2 // 5), _memory_holds),
        ("process limit", _FORKS % (limits.processes + 8), lambda result: _processes_hold(result, limits.processes)),
        ("time limit", "while True: pass", _time_holds),
        ("time limit, not yielding", _STUBBORN, lambda result: _time_holds(result, limits.grace_s)),
    )
    with BlockingSandbox(policy) as box:
        for name, program, judge in trials:
            timeout_s = _TIMEOUT_S if name.startswith("time") else None
            holds, detail = judge(box.run_code(program, timeout_s=timeout_s))
            yield Finding.ok(name, detail) if holds else Finding.missing(name, f"does not hold: {detail}", _BUG)
            box.reset()


def _memory_holds(result: Result) -> tuple[bool, str]:
    held = result.outcome is Outcome.MEMORY or "killed by 9" in result.stdout
    return held, f"{result.outcome} after {result.usage.wall_s:.2f} s {result.stdout.strip()}"


def _processes_hold(result: Result, most: int) -> tuple[bool, str]:
    count = result.stdout.strip()
    return count.isdigit() and int(count) <= most, f"{count or result.outcome} of at most {most} could be started"


def _time_holds(result: Result, grace_s: float = 0.0) -> tuple[bool, str]:
    late_s = result.usage.wall_s - _TIMEOUT_S - grace_s
    held = result.outcome is Outcome.TIMEOUT and late_s < _TOLERANCE_S
    return held, f"{result.outcome} {max(0.0, late_s) * 1000:.0f} ms after the deadline of {_TIMEOUT_S + grace_s:g} s"
