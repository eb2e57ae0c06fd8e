"""A directory of groups as a whole: who is inside, kill them, remove it.

Standard library only and no import of ours: the janitor loads this file by its path, after the server is
gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterable

_PASSES = 8


def write(path: str, text: str) -> None:
    """Write `text` in one call, as kernel files want it; an OSError carries the path."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts).decode()
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def processes(group: str) -> set[int]:
    """The processes in `group` itself; empty when the group is gone.

    Opened afresh each time: v1 gives a descriptor that stays open the list of up to a second ago. A process
    of a pid namespace that we cannot see shows as 0 and is left out.
    """
    try:
        return {int(pid) for pid in read(f"{group}/cgroup.procs").split()} - {0}
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return set()
        raise


def stat(pid: int) -> list[str]:
    """/proc/<pid>/stat from the state on: [0] state, [1] parent, [19] start. Empty for no such process."""
    try:
        # The name before that, in parentheses, may itself hold spaces and parentheses.
        return read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def start_time(pid: int) -> int | None:
    """When a process began, in ticks since boot; with the pid, its name for ever. None if dead or zombie."""
    fields = stat(pid)
    return int(fields[19]) if fields and fields[0] not in "ZX" else None


def subtree(root: str) -> list[str]:
    """`root` and every group below it, the deepest first."""
    found: list[str] = []
    with contextlib.suppress(FileNotFoundError), os.scandir(root) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                found += subtree(entry.path)
    return [*found, root]


def populated(root: str) -> bool:
    """Whether a process lives in `root` or below. Zombies do not count: they hold no memory, cannot run."""
    try:
        return "populated 1" in read(f"{root}/cgroup.events")
    except FileNotFoundError:
        return any(processes(group) for group in subtree(root))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
        raise


def kill(root: str) -> None:
    """SIGKILL to every process in `root` and below. Dying takes them a moment longer: see `populated`."""
    try:
        write(f"{root}/cgroup.kill", "1")
    except FileNotFoundError:  # v1, or v2 before Linux 5.14
        kill_listed(subtree(root))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def kill_listed(groups: Iterable[str]) -> None:
    """`kill` without the kernel's help, and not below: signal those listed until a pass finds nobody new.

    Within bounds, because forks can outrun us; whoever calls looks again.
    """
    signalled: set[int] = set()
    for group in groups:
        for _ in range(_PASSES):
            fresh = processes(group) - signalled
            if not fresh:
                break
            _signal(group, fresh)
            signalled |= fresh


def _signal(group: str, pids: set[int]) -> None:
    """A pid may pass to somebody else between reading and signalling, so: hold it first, then look again."""
    held: dict[int, int] = {}
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                held[pid] = os.pidfd_open(pid)
        still_inside = processes(group)
        for pid, pidfd in held.items():
            if pid in still_inside:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        for pidfd in held.values():
            os.close(pidfd)


def remove(root: str, wait_s: float = 2.0) -> bool:
    """Kill everything in `root` and below, then remove it, leaves first. False if that took too long."""
    deadline = time.monotonic() + wait_s
    pause_s = 0.001
    while not _removed(root):
        if time.monotonic() > deadline:
            return False
        with contextlib.suppress(OSError):  # no forks any more, so that killing by list comes to an end
            write(f"{root}/pids.max", "0")
        kill(root)
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.05)
    return True


def _removed(root: str) -> bool:
    for group in subtree(root):
        try:
            os.rmdir(group)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
                return False
            raise
    return True
