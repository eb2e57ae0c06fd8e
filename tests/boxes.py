"""Sandboxes for tests: one pool per session, and a proof at its end that nothing of ours is left on the machine."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from sandbox import Policy, Result, Sandbox, SandboxPool

POLICY = """
[template]
libraries = []
[limits]
memory_bytes = "512 MiB"
workspace_bytes = "32 MiB"
workspace_files = 4096
wall_s = 20
[pool]
ready = 2
max_sandboxes = 64
"""


def policy(extra: str = "") -> Policy:
    """The tests' policy, with further tables or dotted settings."""
    changes = Policy.loads(extra).to_dict() if extra else {}
    base = Policy.loads(POLICY)
    default = Policy.default().to_dict()
    for name, section in changes.items():
        if section != default[name]:
            changed = section
            if isinstance(section, dict):
                changed = {key: value for key, value in section.items() if value != default[name][key]}
            base = base.replace(**{name: changed})
    return base


def groups_of(pid: int) -> list[str]:
    """The control groups that a server with this pid has made."""
    found: list[str] = []
    for top, names, _ in os.walk("/sys/fs/cgroup"):
        if os.path.basename(top).startswith("openenv"):
            found += [f"{top}/{name}" for name in names if name.startswith(f"{pid}-")]
            names.clear()
    return found


def _is_of(process: psutil.Process, directory: str) -> bool:
    try:
        words = process.cmdline()
    except psutil.NoSuchProcess:
        return False
    return any(directory in word or word.startswith(("/proc/self/fd", "/opt/python")) for word in words)


def leftovers(directory: str) -> list[str]:
    """What a closed pool of this process has left: children, groups, mounts, files."""
    found = [f"process {child.pid}" for child in psutil.Process().children(recursive=True) if _is_of(child, directory)]
    found += groups_of(os.getpid())
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if directory in line]
    return found + [str(path) for path in Path(directory).glob("openenv-sandbox-*")]


@pytest.fixture(scope="session")
def nothing_is_left() -> Iterator[str]:
    """Everything that started has stopped when the session ends."""
    directory = tempfile.mkdtemp(prefix="sandbox-tests-", dir="/tmp")  # not pytest's, which the jail may not enter
    os.chmod(directory, 0o711)
    before, tempfile.tempdir = tempfile.tempdir, directory
    yield directory
    tempfile.tempdir = before
    deadline = time.monotonic() + 2.0
    while (left := leftovers(directory)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left
    shutil.rmtree(directory)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_pool(nothing_is_left: str) -> AsyncIterator[SandboxPool]:
    async with SandboxPool(policy()) as pool:
        yield pool


@pytest_asyncio.fixture(loop_scope="session")
async def box(shared_pool: SandboxPool) -> AsyncIterator[Sandbox]:
    """A fresh sandbox."""
    async with shared_pool.sandbox() as sandbox:
        yield sandbox


async def works(box: Sandbox) -> None:
    """The next step gives a normal observation: streams, value and traceback."""
    result = await box.run_code("import sys\nprint('next')\nprint('err', file=sys.stderr)\n6 * 7")
    facts = (result.outcome, result.stdout, result.stderr, result.value, result.exit_code, result.signal)
    assert facts == ("ok", "next\n", "err\n", "42", 0, None)
    assert not result.truncated
    assert not result.state_lost


def pids(box: Sandbox) -> set[int]:
    """The processes of a sandbox, as the host sees them."""
    slot = box._box.slot  # type: ignore[attr-defined]
    if slot is None:
        return _members_of_namespace(box._box._pidfd)  # type: ignore[attr-defined]
    _, group = slot._groups[0]
    return {int(line) for line in Path(f"{group}/cgroup.procs").read_text().split()}


def _members_of_namespace(pidfd: int) -> set[int]:
    """Who shares the pid namespace of the process behind a descriptor."""
    text = Path(f"/proc/self/fdinfo/{pidfd}").read_text()
    (pid,) = (int(line.split()[1]) for line in text.splitlines() if line.startswith("Pid:"))
    own = _namespace(pid)
    return {other for other in psutil.pids() if own is not None and _namespace(other) == own}


def _namespace(pid: int) -> str | None:
    """The pid namespace of a process; None if it has ended, waited for or not, or is somebody else's."""
    try:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
            return None
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None


def tasks(box: Sandbox) -> int:
    """The threads of a sandbox, its warden's included, as the host sees them."""
    slot = box._box.slot  # type: ignore[attr-defined]
    if slot is not None:
        return int(slot.tasks())
    return sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids(box) if os.path.exists(f"/proc/{pid}/task"))


def has_cgroups(pool: SandboxPool) -> bool:
    """Whether the limits of this pool are kept by cgroups, and not by what replaces them."""
    return pool.driver.cgroups is not None  # type: ignore[attr-defined]


async def until(condition: Callable[[], Any], within_s: float = 2.0) -> bool:
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.005)
    return True


def said(result: Result) -> tuple[str, int, int | None]:
    """What happened, in brief."""
    return str(result.outcome), result.exit_code, result.signal
