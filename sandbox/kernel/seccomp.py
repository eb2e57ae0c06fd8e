"""Installing a system-call filter that the host compiled. seccomp(2)."""

from __future__ import annotations

from sandbox.kernel import libc


def install(program: bytes) -> None:
    """Filter every later system call of this process and its children. Needs no-new-privileges."""
    libc.set_seccomp_filter(program)
