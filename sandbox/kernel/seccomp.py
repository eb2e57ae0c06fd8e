"""A system-call filter that the host compiled, as a call to be run. seccomp(2)."""

from __future__ import annotations

import struct

from sandbox.kernel import libc

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_INSTRUCTION_BYTES = 8


def install(program: bytes) -> libc.Call:
    """Filter every later system call of this process and its children, for good. Needs no-new-privileges."""
    loaded = libc.prepare("prctl", _PR_SET_SECCOMP, _MODE_FILTER, program)
    description = struct.pack("@HP", len(program) // _INSTRUCTION_BYTES, libc.address(loaded, 0))  # struct sock_fprog
    call = libc.prepare("prctl", _PR_SET_SECCOMP, _MODE_FILTER, description)
    return call._replace(memory=call.memory + loaded.memory)
