"""Making a v2 group ready to have children with limits.

A group hands its controllers to its children only while no process is in it (the root of the whole tree
excepted). Our own group has at least us in it, so we and what we started move into a child of it first. See
"No Internal Process Constraint" in the kernel's cgroup-v2 document.
"""

from __future__ import annotations

import contextlib
import errno
import os

from sandbox.kernel.cgroups import tree

SUPERVISOR = "openenv-supervisor"
_PASSES = 10


class Refused(Exception):  # noqa: N818 - a reason that is collected, not a fault
    """Why no groups with limits can be made below a group."""


def candidates(own: str | None, mount_point: str | None) -> list[str]:
    """The groups below which ours may go, the best first; without `mount_point`, only own ground."""
    found = []
    if own is not None:
        parent = os.path.dirname(own)
        moved_by_an_earlier_server = os.path.basename(own) == SUPERVISOR
        if moved_by_an_earlier_server or (own != mount_point and is_delegated(parent)):
            found.append(parent)
        if not moved_by_an_earlier_server:
            found.append(own)
    if mount_point is not None and is_tree_root(mount_point) and mount_point not in found:
        found.append(mount_point)
    return found


def is_tree_root(group: str) -> bool:
    """Whether it is the root of the whole tree, not of a container's view; only that one has no type."""
    return not os.path.exists(f"{group}/cgroup.type")


def is_delegated(group: str) -> bool:
    """systemd marks what it handed over (`Delegate=yes`): readable by all, and an older mark by root."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


def prepare(group: str, wanted: frozenset[str], *, is_namespace_root: bool = False) -> None:
    """Let children of `group` have the `wanted` controllers. Raises Refused with the reason."""
    try:
        missing = wanted - set(tree.read(f"{group}/cgroup.controllers").split())
        if missing:
            raise Refused(f"{group} was not given {', '.join(sorted(missing))}")
        if is_tree_root(group):
            enable(group, wanted)
        else:
            _vacate_and_enable(group, wanted, whole_family=is_namespace_root or is_delegated(group))
    except OSError as error:
        raise Refused(f"{error.filename or group}: {os.strerror(error.errno or 0)}") from error


def enable(group: str, wanted: frozenset[str]) -> None:
    absent = wanted - set(tree.read(f"{group}/cgroup.subtree_control").split())
    if absent:
        tree.write(f"{group}/cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(absent)))


def _vacate_and_enable(group: str, wanted: frozenset[str], *, whole_family: bool) -> None:
    pids = tree.processes(group)
    strangers = {pid for pid in pids - _family(pids, whole=whole_family) if tree.stat(pid)}
    if strangers:
        named = ", ".join(f"{pid} ({_command(pid)})" for pid in sorted(strangers)[:4])
        raise Refused(f"{group} also holds processes that are not ours to move: {named}")
    supervisor = f"{group}/{SUPERVISOR}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(supervisor)
    try:
        _move_all(group, supervisor)
        enable(group, wanted)
    except OSError:
        for pid in pids:
            with contextlib.suppress(OSError):
                tree.write(f"{group}/cgroup.procs", str(pid))
        with contextlib.suppress(OSError):
            os.rmdir(supervisor)
        raise


def _move_all(source: str, target: str) -> None:
    """Again until nobody is left, since what is moved may fork meanwhile."""
    for _ in range(_PASSES):
        pids = tree.processes(source)
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                tree.write(f"{target}/cgroup.procs", str(pid))
    raise OSError(errno.EBUSY, "processes keep appearing", source)


def _family(pids: set[int], *, whole: bool) -> set[int]:
    """Those of `pids` that are this process or descend from it.

    Where the group was handed over as a whole, those who started us in it count too: the family of our
    topmost ancestor that is inside (the init of a container, the shell of a delegated scope).
    """
    head = os.getpid()
    if whole:
        ancestor = head
        while ancestor := _parent(ancestor):
            head = ancestor if ancestor in pids else head
    return {pid for pid in pids if _descends(pid, head)}


def _descends(pid: int, head: int) -> bool:
    while pid and pid != head:
        pid = _parent(pid)
    return pid == head


def _parent(pid: int) -> int:
    """0 for those that have none, or are gone."""
    fields = tree.stat(pid)
    return int(fields[1]) if fields else 0


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return tree.read(f"/proc/{pid}/comm").strip()
    return "gone"
