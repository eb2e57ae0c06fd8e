"""Resource limits of a process. getrlimit(2)."""

from __future__ import annotations

import resource

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


def prepare(limits: dict[str, int]) -> list[tuple[int, tuple[int, int]]]:
    """Limits by the names above, as `apply` takes them."""
    return [(_NAMES[name], (value, value)) for name, value in limits.items()]


def apply(prepared: list[tuple[int, tuple[int, int]]]) -> None:
    """Set soft and hard limits; no process can raise them again."""
    for number, pair in prepared:
        resource.setrlimit(number, pair)
