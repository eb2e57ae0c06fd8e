"""Control groups: how much memory, processor and how many tasks a sandbox may have; v1, v2 and mixtures.

    open_cgroups() ─▶ Cgroups ─acquire(limits)─▶ Slot ─release─▶ back into the set, or dirty until sweep()

    <base>/<prefix>/<pid>-<start>-<n>/    one per server and hierarchy, locked while its server lives
        zygote/                           the fork server's jail, put here once, at its start
        s0/ s1/ ...                       one slot per sandbox, used again and again

`<base>` is this process's own group wherever groups can be made below it, so that limits on the server itself
(of its container, of its unit) still hold; otherwise the root of the hierarchy.

Two kernel facts shape the interface. Moving *another* process into a group waits for an RCU grace period, 7
to 19 ms, so a sandbox is never moved: on v1 its first thread writes "0" to the descriptors in
`Slot.attach_fds`, on v2 it is born inside by clone3(CLONE_INTO_CGROUP) with `Slot.clone_fd`. And removed
groups linger in the kernel until their last page is gone, so slots are used again. See cgroups(7).

Covers: memory with swap, tasks, cpu bandwidth; counters of one use of a slot; an end to everything inside.
Does not cover: disk and network bandwidth, huge pages, cpu placement.

Nothing here is safe to call from several threads at once: one owner calls it, and every call is quick.
"""

from sandbox.kernel.cgroups.limits import CgroupLimits, CgroupUsage
from sandbox.kernel.cgroups.owner import remove_stale
from sandbox.kernel.cgroups.server import Cgroups, open_cgroups
from sandbox.kernel.cgroups.slot import Slot

__all__ = ["CgroupLimits", "CgroupUsage", "Cgroups", "Slot", "open_cgroups", "remove_stale"]
