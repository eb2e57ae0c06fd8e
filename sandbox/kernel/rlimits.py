"""Resource limits of a process, as calls to be run. prlimit(2)."""

from __future__ import annotations

import resource
import struct

from sandbox.kernel import libc

_NAMES = {
    "address_space_bytes": resource.RLIMIT_AS,
    "core_bytes": resource.RLIMIT_CORE,
    "data_bytes": resource.RLIMIT_DATA,
    "file_size_bytes": resource.RLIMIT_FSIZE,
    "locked_bytes": resource.RLIMIT_MEMLOCK,
    "message_queue_bytes": resource.RLIMIT_MSGQUEUE,
    "open_files": resource.RLIMIT_NOFILE,
    "processes": resource.RLIMIT_NPROC,
    "queued_signals": resource.RLIMIT_SIGPENDING,
    "stack_bytes": resource.RLIMIT_STACK,
}


def limit(limits: dict[str, int]) -> tuple[libc.Call, ...]:
    """Soft and hard limits by the names above; no process can raise them again."""
    return tuple(
        libc.prepare("prlimit64", 0, _NAMES[name], struct.pack("=QQ", value, value)) for name, value in limits.items()
    )
