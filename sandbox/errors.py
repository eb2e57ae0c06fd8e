"""What can go wrong on our side. What the guest does is never an exception: it is a field of `Result`.

SandboxError
├── PolicyError        the policy is wrong: unknown key, bad value, missing unit   (also ValueError)
├── UnsupportedError   this machine cannot enforce what the policy requires        (also RuntimeError)
├── CapacityError      no room for another sandbox                                 (also RuntimeError)
├── ProtocolError      a frame from the guest broke the protocol                   (also ValueError)
├── SandboxDied        the sandbox ended while it was needed                       (also ConnectionError)
├── SandboxClosed      the handle was used after close                             (also RuntimeError)
└── FileError          a file call was refused inside; `errno` says why            (also OSError)
"""

from __future__ import annotations

__all__ = [
    "CapacityError",
    "FileError",
    "PolicyError",
    "ProtocolError",
    "SandboxClosed",
    "SandboxDied",
    "SandboxError",
    "UnsupportedError",
]


class SandboxError(Exception):
    """Root of every fault that is ours and not the guest's."""


class PolicyError(SandboxError, ValueError):
    """The policy is wrong; the message names the file, the key and the remedy."""


class UnsupportedError(SandboxError, RuntimeError):
    """This machine cannot enforce what the policy requires; the message names what is missing."""


class CapacityError(SandboxError, RuntimeError):
    """There is no room for another sandbox."""


class ProtocolError(SandboxError, ValueError):
    """A frame from inside was malformed, too large or out of turn; that sandbox is ended."""


class SandboxDied(SandboxError, ConnectionError):  # noqa: N818 - the name is part of the contract
    """The sandbox ended while a call was waiting on it."""


class SandboxClosed(SandboxError, RuntimeError):  # noqa: N818
    """The handle was used after `close`."""


class FileError(SandboxError, OSError):
    """A file call was refused inside the sandbox; `errno` and `filename` are those of the refusal."""
