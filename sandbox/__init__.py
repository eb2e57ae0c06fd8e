"""Real CPython for untrusted code: the isolation of a jail at the latency of a function call.

    async with SandboxPool(Policy.load("policy.toml")) as pool:
        async with pool.sandbox() as box:
            result = await box.run_code("x = 21\nprint(x * 2)", timeout_s=5)

or, in a script, `with Sandbox.open() as box: box.run_code("...")`.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox.errors import (
        CapacityError,
        FileError,
        PolicyError,
        ProtocolError,
        SandboxClosed,
        SandboxDied,
        SandboxError,
        UnsupportedError,
    )
    from sandbox.policy import Limits, Policy
    from sandbox.pool import SandboxPool
    from sandbox.result import FileEntry, Outcome, Result, Truncated, Usage
    from sandbox.sandbox import Sandbox

_HOMES = {
    "sandbox.errors": (
        "CapacityError", "FileError", "PolicyError", "ProtocolError", "SandboxClosed", "SandboxDied",
        "SandboxError", "UnsupportedError",
    ),
    "sandbox.policy": ("Limits", "Policy"),
    "sandbox.pool": ("SandboxPool",),
    "sandbox.result": ("FileEntry", "Outcome", "Result", "Truncated", "Usage"),
    "sandbox.sandbox": ("Sandbox",),
}  # fmt: skip

__all__ = [
    "CapacityError",
    "FileEntry",
    "FileError",
    "Limits",
    "Outcome",
    "Policy",
    "PolicyError",
    "ProtocolError",
    "Result",
    "Sandbox",
    "SandboxClosed",
    "SandboxDied",
    "SandboxError",
    "SandboxPool",
    "Truncated",
    "UnsupportedError",
    "Usage",
]


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            if sys.platform != "linux" and home in ("sandbox.pool", "sandbox.sandbox"):
                raise ImportError("the sandbox needs Linux; elsewhere, run the server in Docker (see README.md)")
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
