"""The set of slots of one server process: handed out, taken back, removed."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from sandbox.errors import UnsupportedError
from sandbox.kernel.cgroups import tree, v2
from sandbox.kernel.cgroups.limits import CgroupLimits
from sandbox.kernel.cgroups.owner import PREFIX, Tree, find_trees, lines, make_owner, remove_owner
from sandbox.kernel.cgroups.slot import Owned, Slot

REQUIRED = frozenset({"memory", "pids", "cpu"})

_ZYGOTE = "zygote"
_RESIDUE_SWEEPS = 3
_REMEDY = (
    "Run the server as root, or in a group that was handed to it: `systemd-run --user --scope "
    "-p Delegate=yes COMMAND`, or `Delegate=yes` in its systemd unit (for an ordinary user the cpu "
    "controller may first need `Delegate=cpu memory pids` in user@.service). In a container, mount "
    "/sys/fs/cgroup writable with a cgroup namespace of its own."
)

logger = logging.getLogger(__name__)
_serial = itertools.count()


class Cgroups:
    """The set. Close it; the janitor or `remove_stale` cleans up after a server that died without."""

    def __init__(self, owned: Sequence[Owned], locks: Sequence[int], zygote_uid: int | None) -> None:
        """Called by `open_cgroups` with directories that exist and whose locks are held."""
        versions = {each.version for each in owned}
        self.kind = "hybrid" if len(versions) > 1 else f"v{min(versions)}"
        self.controllers = frozenset().union(*(each.controllers for each in owned))
        self._owned = tuple(owned)
        self._locks = list(locks)
        self._zygote_uid = zygote_uid
        self._pid = os.getpid()
        self._names = itertools.count()
        self._free: dict[CgroupLimits, list[Slot]] = {}
        self._busy: set[Slot] = set()
        self._dirty: dict[Slot, int] = {}

    @property
    def directories(self) -> tuple[str, ...]:
        """This server's directory in every hierarchy: what the janitor has to remove."""
        return tuple(each.path for each in self._owned)

    def describe(self) -> str:
        """One line for `doctor`."""
        where = (f"{', '.join(sorted(each.controllers)) or 'kill'} in {each.path}" for each in self._owned)
        return f"cgroup {self.kind}: {'; '.join(where)}"

    def adopt(self, pid: int) -> None:
        """Put the fork server's jail into the owner directory, and so all that it forks.

        Once, at its start: 10 ms and more per hierarchy. On v2 this also makes the owner directory the common
        ancestor of the fork server and the slots, on which the kernel checks the right to clone into a slot.
        There the fork server must not have a cgroup namespace of its own: with the mount option nsdelegate,
        which systemd sets, it would not find the slots (ENOENT). A sandbox gets one by CLONE_NEWCGROUP in the
        clone3 that puts it into its slot; the slot is then its root.
        """
        for each in self._owned:
            group = f"{each.path}/{_ZYGOTE}"
            with contextlib.suppress(FileExistsError):
                os.mkdir(group)
            tree.write(f"{group}/cgroup.procs", str(pid))

    def acquire(self, limits: CgroupLimits) -> Slot:
        """An empty slot with these limits and counters at nought."""
        if not self._locks:
            raise ValueError("these cgroups are closed")
        slot = self._idle(limits) or self._fitted(limits)
        self._busy.add(slot)
        return slot

    def _idle(self, limits: CgroupLimits) -> Slot | None:
        slots = self._free.get(limits)
        if not slots:
            return None
        slot = slots.pop()
        if not slots:
            del self._free[limits]
        return slot

    def _fitted(self, limits: CgroupLimits) -> Slot:
        if lacking := limits.controllers - self.controllers:
            names = ", ".join(sorted(lacking))
            raise UnsupportedError(f"the limits need cgroup controllers that are not in use: {names}")
        slot = self._idle(next(iter(self._free), limits)) or Slot(
            f"s{next(self._names)}", self._owned, self._zygote_uid
        )
        try:
            slot.apply(limits)
            slot.restart()
        except BaseException:
            slot.remove()
            raise
        return slot

    def release(self, slot: Slot) -> bool:
        """Take a slot back. False if it cannot be used again yet; then `sweep` has to try.

        Whatever is still inside is killed. Release only when the sandbox's first process is dead: one that
        has not attached itself yet is not seen here, and would join the next user of the slot.
        """
        self._busy.remove(slot)
        if self._recycled(slot):
            return True
        self._dirty[slot] = 0
        return False

    def sweep(self) -> int:
        """Try the slots again that could not be used; how many are left."""
        for slot, tries in list(self._dirty.items()):
            if self._recycled(slot) or (tries >= _RESIDUE_SWEEPS and self._dropped(slot)):
                del self._dirty[slot]
            else:
                self._dirty[slot] = tries + 1
        return len(self._dirty)

    def trim(self, keep: int = 0) -> None:
        """Remove idle slots beyond `keep`, after a peak."""
        for limits in [limits for limits, slots in self._free.items() for _ in slots][keep:]:
            slot = self._idle(limits)
            if slot is not None and not self._dropped(slot):
                self._dirty[slot] = _RESIDUE_SWEEPS

    def _recycled(self, slot: Slot) -> bool:
        try:
            if slot.populated():
                slot.kill()
                return False
            if slot.closed or slot.has_residue():
                return False
            slot.apply(slot.limits)
            slot.restart()
        except OSError:
            logger.warning("cgroup slot is unusable", extra={"slot": slot.name}, exc_info=True)
            return False
        self._free.setdefault(slot.limits, []).append(slot)
        return True

    def _dropped(self, slot: Slot) -> bool:
        """Memory still charged to a removed group moves to the one above, where it is in nobody's way."""
        try:
            slot.remove()
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Kill what is inside and remove everything of this server; waits up to two seconds for the dying."""
        locks, self._locks = self._locks, []
        for slot in (*self._busy, *self._dirty, *itertools.chain(*self._free.values())):
            slot.close()
        self._busy.clear()
        self._dirty.clear()
        self._free.clear()
        if locks and os.getpid() == self._pid:  # a fork of the server must not take its groups away
            for each in self._owned:
                remove_owner(each.path)
        for lock in locks:
            os.close(lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_locks", None):
            warnings.warn("Cgroups was not closed", ResourceWarning, source=self, stacklevel=2)


def open_cgroups(
    prefix: str = PREFIX, *, controllers: frozenset[str] = REQUIRED, zygote_uid: int | None = None
) -> Cgroups:
    """Find the hierarchies and make this server's directory in each.

    `zygote_uid` is the user (as the host sees it) under which the fork server clones into v2 slots; it is
    given the right. Raises UnsupportedError that names each controller that cannot be used, why, and what to
    do.
    """
    trees = find_trees(tree.read("/proc/self/mountinfo"), tree.read("/proc/self/cgroup"), controllers)
    return open_trees(trees, prefix, controllers=controllers, zygote_uid=zygote_uid)


def open_trees(
    trees: Sequence[Tree], prefix: str, *, controllers: frozenset[str], zygote_uid: int | None = None
) -> Cgroups:
    """`open_cgroups` with the hierarchies given."""
    if not prefix or "/" in prefix or prefix in (".", ".."):
        raise ValueError(f"prefix must be the name of a directory, not {prefix!r}")
    owner = f"{os.getpid()}-{tree.start_time(os.getpid())}-{next(_serial)}"
    owned: list[Owned] = []
    covered = frozenset().union(*(each.controllers for each in trees))
    reasons = dict.fromkeys(controllers - covered, "not mounted")
    with contextlib.ExitStack() as undo:
        locks: list[int] = []
        for each in trees:
            try:
                mine, lock = make_owner(each, prefix, owner, zygote_uid)
            except v2.Refused as refused:
                # cpuacct only measures; without it the time used is not known, but every limit holds
                reasons |= {name: str(refused) for name in each.controllers & controllers}
                continue
            owned.append(mine)
            locks.append(lock)
            undo.callback(os.close, lock)
            undo.callback(remove_owner, mine.path)
        if reasons:
            details = "; ".join(f"{name}: {_explain(name, why)}" for name, why in sorted(reasons.items()))
            raise UnsupportedError(f"cgroup controllers cannot be used ({details}). {_REMEDY}")
        if not owned:
            raise UnsupportedError(f"no cgroup hierarchy is mounted. {_REMEDY}")
        cgroups = Cgroups(owned, locks, zygote_uid)
        undo.pop_all()
    return cgroups


def _explain(controller: str, reason: str) -> str:
    for line in lines("/proc/cgroups"):
        name, *_, enabled = line.split()
        if name == controller:
            return reason if enabled == "1" else "switched off when the kernel was booted (cgroup_disable)"
    return reason
