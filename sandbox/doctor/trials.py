"""What has to be tried in a process of its own, because there is no way back. Run by `host.py`; answers in JSON.

python -c "..." ROOT NAME < INPUT      {"failed": null} or {"failed": "stage", "why": "..."}, and further facts
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from sandbox.kernel import libc, mounts, namespaces, seccomp

_PR_SET_NO_NEW_PRIVS = 38


def main(name: str) -> None:
    """Try one thing and print what happened."""
    trials: dict[str, Callable[[], dict[str, Any]]] = {
        "namespaces": _namespaces,
        "seccomp": _seccomp,
        "landlock": _landlock,
    }
    print(json.dumps(trials[name]()))  # noqa: T201 - this process's answer


def _namespaces() -> dict[str, Any]:
    """What nsjail does, and what the zygote does inside it."""
    stages: tuple[tuple[str, int, Callable[[], None]], ...] = (
        ("user namespace", namespaces.NEWUSER, _nothing),
        ("the other namespaces", namespaces.ALL, _nothing),
        ("procfs", namespaces.ALL, _mount_full_proc),
        ("nested namespaces", namespaces.ALL, _nest),
    )
    for stage, flags, do in stages:
        if (why := _in_child(flags, do)) is not None:
            return {"failed": stage, "why": why}
    return {"failed": None}


def _nothing() -> None:
    """Being there is enough."""


def _mount_full_proc() -> None:
    nosuid_nodev_noexec = 2 | 4 | 8
    libc.run((mounts.private("/"), libc.prepare("mount", "proc", "/proc", "proc", nosuid_nodev_noexec)))


def _mount_private_proc() -> None:
    libc.run((mounts.proc("/proc"),))


def _nest() -> None:
    _mount_full_proc()
    if (why := _in_child(namespaces.ALL, _mount_private_proc, b"1000 0 1\n")) is not None:
        raise RuntimeError(why)


def _in_child(flags: int, do: Callable[[], None], id_map: bytes | None = None) -> str | None:
    """Run `do` in a child in new namespaces, as its only user; what went wrong, or None."""
    gate, opener = os.pipe()
    told, teller = os.pipe()
    try:
        pid, pidfd = namespaces.fork_into_new(flags)
        if pid == 0:
            os.close(opener)
            os.close(told)
            _child(gate, teller, do)
        os.close(pidfd)
        os.close(teller)
        teller = -1
        _map_own_ids(pid, id_map)
        os.write(opener, b"1")
        answer = os.read(told, 4096).decode()
        os.waitpid(pid, 0)
    except OSError as error:
        return str(error)
    finally:
        for descriptor in (gate, opener, told, teller):
            if descriptor >= 0:
                os.close(descriptor)
    return None if answer == "done" else answer or "the child died"


def _map_own_ids(pid: int, id_map: bytes | None) -> None:
    if id_map is None:
        with open(f"/proc/{pid}/setgroups", "w", encoding="ascii") as file:
            file.write("deny")  # else only CAP_SETGID may map a group
    for name, own in (("uid_map", os.geteuid()), ("gid_map", os.getegid())):
        with open(f"/proc/{pid}/{name}", "wb") as file:
            file.write(id_map if id_map is not None else b"0 %d 1\n" % own)


def _child(gate: int, teller: int, do: Callable[[], None]) -> NoReturn:
    try:
        if os.read(gate, 1) == b"1":
            do()
            os.write(teller, b"done")
    except Exception as error:  # a process edge: whatever it is, the parent tells
        os.write(teller, str(error).encode())
    finally:
        os._exit(0)


def _seccomp() -> dict[str, Any]:
    """Install the filter that the host compiled, and ask the kernel whether it is there."""
    program = sys.stdin.buffer.read()
    status = os.open("/proc/self/status", os.O_RDONLY)
    try:
        libc.run((libc.prepare("prctl", _PR_SET_NO_NEW_PRIVS, 1), seccomp.install(program)))
    except OSError as error:
        return {"failed": "seccomp", "why": str(error)}
    lines = os.read(status, 65536).splitlines()
    if b"Seccomp:\t2" not in lines:
        return {"failed": "seccomp", "why": "the kernel took the filter, and does not show it in /proc/self/status"}
    return {"failed": None}


def _landlock() -> dict[str, Any]:
    try:
        return {"failed": None, "abi": libc.landlock_abi()}
    except OSError as error:
        return {"failed": "landlock", "why": str(error)}
