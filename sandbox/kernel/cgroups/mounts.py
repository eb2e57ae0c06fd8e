"""Where cgroup trees are mounted (/proc/self/mountinfo) and where in them we are (/proc/self/cgroup)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

KNOWN = frozenset({"memory", "pids", "cpu", "cpuacct"})


@dataclass(frozen=True, kw_only=True)
class Mount:
    """One mount of a tree. `root` is the group that shows at `point`; a container may see only its own."""

    version: int
    controllers: frozenset[str]
    root: str
    point: str


def parse_mountinfo(text: str) -> list[Mount]:
    """The cgroup mounts, in order; v1 trees that have none of our controllers are left out."""
    mounts = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fstype, _, rest = after.partition(" ")
        if fstype not in ("cgroup", "cgroup2"):
            continue
        fields = before.split(" ")
        options = rest.rpartition(" ")[2].split(",")
        controllers = KNOWN.intersection(options) if fstype == "cgroup" else frozenset()
        if fstype == "cgroup2" or controllers:
            mounts.append(
                Mount(
                    version=1 if fstype == "cgroup" else 2,
                    controllers=frozenset(controllers),
                    root=_unescape(fields[3]),
                    point=_unescape(fields[4]),
                )
            )
    return mounts


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def parse_membership(text: str) -> dict[str, str]:
    """Controller to our group's path in its tree; the v2 tree is under the empty name."""
    paths = {}
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            paths[name] = path
    return paths


def own_directory(mount: Mount, membership: Mapping[str, str]) -> str | None:
    """The directory of our own group, or None if it does not show under this mount.

    Both paths are relative to the root of our cgroup namespace. Where that root is below the mount's, the
    kernel prints ".." and the names between cannot be known.
    """
    name = "" if mount.version == 2 else min(mount.controllers)
    path = membership.get(name)
    if path is None or ".." in path.split("/"):
        return None
    root = mount.root.rstrip("/")
    if path != root and not path.startswith(f"{root}/"):
        return None
    return (mount.point.rstrip("/") + path[len(root) :]).rstrip("/") or "/"
