"""The directory of a server in each hierarchy: placed, made, locked, removed; also those of the dead."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from sandbox.kernel.cgroups import tree, v2
from sandbox.kernel.cgroups.mounts import Mount, own_directory, parse_membership, parse_mountinfo
from sandbox.kernel.cgroups.slot import Owned

PREFIX = "openenv-sandbox"

_OWNER_NAME = re.compile(r"(\d+)-(\d+)-\d+")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A mounted hierarchy, the controllers that we take from it, and where in it we are."""

    mount: Mount
    controllers: frozenset[str]
    own: str | None

    def bases(self) -> list[str]:
        """The groups below which ours may go, the best first."""
        if self.mount.version == 2:
            # What shows from above our cgroup namespace may be written to, but with nsdelegate not cloned into.
            return v2.candidates(self.own, self.mount.point if ".." not in self.mount.root.split("/") else None)
        return list(dict.fromkeys(path for path in (self.own, self.mount.point) if path is not None))


def find_trees(mountinfo: str, membership: str, wanted: frozenset[str]) -> list[Tree]:
    """Each wanted controller from v1 where it is mounted as v1 (v2 cannot have it then), the rest from v2."""
    paths = parse_membership(membership)
    mounts = [(mount, own_directory(mount, paths)) for mount in parse_mountinfo(mountinfo)]
    # A tree may be mounted twice: prefer where our own group shows.
    mounts.sort(key=lambda pair: pair[1] is None)
    remaining = wanted | {"cpuacct"}
    trees = []
    for mount, own in mounts:
        if taken := mount.controllers & remaining:
            trees.append(Tree(mount=mount, controllers=taken, own=own))
            remaining -= taken
    rest = remaining & wanted
    for mount, own in mounts:
        if mount.version == 2 and rest:
            trees.append(Tree(mount=mount, controllers=rest, own=own))
            break
    return trees


def make_owner(each: Tree, prefix: str, owner: str, zygote_uid: int | None) -> tuple[Owned, int]:
    reasons = []
    for base in each.bases():
        try:
            if each.mount.version == 2:
                v2.prepare(base, each.controllers, is_namespace_root=base == each.mount.point)
            return _make_owner_below(base, each, prefix, owner, zygote_uid)
        except v2.Refused as refused:
            reasons.append(str(refused))
        except OSError as error:
            reasons.append(f"{error.filename or base}: {os.strerror(error.errno or 0)}")
    raise v2.Refused(", ".join(reasons) or f"our own group does not show below {each.mount.point}")


def _make_owner_below(base: str, each: Tree, prefix: str, owner: str, zygote_uid: int | None) -> tuple[Owned, int]:
    above, path = f"{base}/{prefix}", f"{base}/{prefix}/{owner}"
    with contextlib.ExitStack() as undo:
        undo.callback(_remove_if_empty, above)
        _make_in_shared(above, path)
        undo.callback(os.rmdir, path)
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        undo.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if each.mount.version == 2:
            v2.enable(above, each.controllers)
            v2.enable(path, each.controllers)
            if "memory" in each.controllers:
                _require_counted_swap(path)
            if zygote_uid is not None:
                os.chown(f"{path}/cgroup.procs", zygote_uid, -1)
        undo.pop_all()
    return Owned(version=each.mount.version, controllers=each.controllers, path=path), lock


def _require_counted_swap(group: str) -> None:
    if not os.path.exists(f"{group}/memory.swap.max") and len(lines("/proc/swaps")) > 1:
        raise v2.Refused("the machine has swap and this kernel does not count it per group")


def _make_in_shared(above: str, path: str) -> None:
    """Another server that closes removes the shared directory if empty, maybe between our two steps."""
    for last in (False, False, True):
        with contextlib.suppress(FileExistsError):
            os.mkdir(above)
            # v1 memory before Linux 5.11: whether the limits of the groups above count is a choice.
            with contextlib.suppress(OSError):
                tree.write(f"{above}/memory.use_hierarchy", "1")
        try:
            os.mkdir(path)
            return
        except FileNotFoundError:
            if last:
                raise


def lines(path: str) -> list[str]:
    try:
        return tree.read(path).splitlines()
    except FileNotFoundError:
        return []


def _remove_if_empty(directory: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(directory)


def remove_owner(path: str) -> bool:
    removed = False
    try:
        removed = tree.remove(path)
    except OSError:
        logger.warning("cgroup could not be removed", extra={"path": path}, exc_info=True)
    else:
        if not removed:
            logger.warning("cgroup still holds processes that do not die", extra={"path": path})
    _remove_if_empty(os.path.dirname(path))
    return removed


def remove_stale(prefix: str = PREFIX) -> list[str]:
    """Remove the directories of dead servers, with all that is inside them; returns what was removed.

    Searches whole hierarchies, since the dead server may have been in another group than we are. A server
    counts as alive while it holds its lock (which also shows from another pid namespace) or its process runs.
    """
    removed = []
    for mount in parse_mountinfo(tree.read("/proc/self/mountinfo")):
        for shared in _find(mount.point, prefix):
            removed += [path for path in _owner_directories(shared) if _removed_if_stale(path)]
            _remove_if_empty(shared)
    return removed


def _find(root: str, name: str) -> Iterator[str]:
    for directory, children, _ in os.walk(root):
        if name in children:
            children.remove(name)
            yield f"{directory}/{name}"


def _owner_directories(shared: str) -> list[str]:
    with contextlib.suppress(OSError), os.scandir(shared) as entries:
        return [entry.path for entry in entries if _OWNER_NAME.fullmatch(entry.name)]
    return []


def _removed_if_stale(path: str) -> bool:
    match = _OWNER_NAME.fullmatch(os.path.basename(path))
    if match is None or tree.start_time(int(match[1])) == int(match[2]):
        return False
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return remove_owner(path)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
