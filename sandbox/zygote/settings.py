"""What the host tells a zygote at its start. Data only; the host made every decision in it."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

REQUEST = struct.Struct("<QIIBQ")  # number, warden's id, guest's id, whether a cgroup comes last, processors
REPLY = struct.Struct("<Q")  # number; a pidfd comes along, or the text of an error follows
HELLO = b"\0"  # the first packet from a zygote: this byte, then a JSON object

GUEST = 1000  # the guest's user and group, as the sandbox sees them


class Settings(NamedTuple):
    """Read once, from the first packet."""

    workspace_bytes: int
    workspace_files: int
    rlimits: dict[str, int]
    open_files: int
    value_bytes: int
    environment: dict[str, str]
    filter_hex: str
    libraries: list[str]
    preload: list[str]
    memory_watchdog_bytes: int | None
    two_ids: bool  # False for an ordinary user, who has a single id to give

    @classmethod
    def load(cls, body: dict[str, Any]) -> Settings:
        """Build from the decoded packet."""
        return cls(**body)

    @property
    def protected_from(self) -> int:
        """The lowest of our own descriptors in an interpreter; the filter keeps guest code from closing them."""
        return protected_descriptors(self.open_files)[0]


def protected_descriptors(open_files: int) -> range:
    """Saved stdin, stdout, stderr, and the channel: the highest numbers that the limit allows."""
    return range(open_files - 4, open_files)
