"""Sandboxes with one wall taken away: the control without which a test of that wall proves nothing.

A control is a change of what the host sends to the zygote, or of one line of the program that the zygote is. Production
code knows nothing of it: the variants are drivers that only tests make.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zipfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sandbox import Policy, SandboxPool
from sandbox.drivers import zygote
from sandbox.drivers.program import open_program
from sandbox.drivers.zygote import ZygoteDriver

from ..boxes import policy

PROBES = Path(__file__).parent / "probes"
ALLOW_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000).hex()  # BPF_RET, SECCOMP_RET_ALLOW


def probe(name: str, **values: object) -> str:
    """The source of a probe, with the names that it expects set."""
    settings = "".join(f"{key} = {value!r}\n" for key, value in values.items())
    return settings + (PROBES / f"{name}.py").read_text()


class Weakened(ZygoteDriver):
    """The zygote driver with changed settings."""

    def __init__(self, rules: Policy, settings: Mapping[str, Any]) -> None:
        super().__init__(rules)
        self._changes = settings

    def _settings(self, environment: dict[str, str]) -> dict[str, Any]:
        return {**super()._settings(environment), **self._changes}


def _altered(changes: Mapping[str, Sequence[tuple[str, str]]]) -> Callable[[], int]:
    """The zygote's program with a line of some of its files replaced."""

    def open_altered() -> int:
        original = open_program()
        with open(original, "rb") as file:
            file.seek(0)
            archive = zipfile.ZipFile(io.BytesIO(file.read()))
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w") as made:
            for name in archive.namelist():
                text = archive.read(name).decode()
                for old, new in changes.get(name, ()):
                    assert old in text, f"the control is out of date: {old!r} is not in {name}"
                    text = text.replace(old, new)
                made.writestr(name, text)
        descriptor = os.memfd_create("altered", os.MFD_CLOEXEC)
        os.write(descriptor, target.getvalue())
        return descriptor

    return open_altered


@contextlib.asynccontextmanager
async def weakened(
    *,
    settings: Mapping[str, Any] | None = None,
    program: Mapping[str, Sequence[tuple[str, str]]] | None = None,
    rules: str = "",
) -> AsyncIterator[SandboxPool]:
    """A pool whose sandboxes lack a wall."""
    text = policy(rules)
    with pytest.MonkeyPatch.context() as patch:
        if program is not None:
            patch.setattr(zygote, "open_program", _altered(program))
        async with SandboxPool(text, driver=Weakened(text, settings or {})) as pool:
            yield pool


ENTER = "sandbox/zygote/enter.py"
_AS_ROOT = (
    "*(privileges.become(GUEST) if settings.two_ids else ()),\n            privileges.keep_capabilities(),",
    "",
)
_OPEN_WARDEN = ("privileges.dumpable(False),", "privileges.dumpable(True),")
_NEWPROC = ('mounts.proc("/proc"),', "")
_KEEP_OPEN = ("os.closerange(3, wall.protected[0])", "pass")
_ONE_NETWORK = ("NEWUSER | NEWPID | NEWNET", "NEWUSER | NEWPID")
WITHOUT: dict[str, dict[str, Any]] = {
    "filter": {"settings": {"filter_hex": ALLOW_ALL}},
    "user": {"settings": {"filter_hex": ALLOW_ALL}, "program": {ENTER: [_AS_ROOT]}},
    "network_namespace": {"program": {"sandbox/kernel/namespaces.py": [_ONE_NETWORK]}},
    "private_proc": {"program": {ENTER: [_NEWPROC]}},
    "dumpable": {"settings": {"filter_hex": ALLOW_ALL}, "program": {ENTER: [_OPEN_WARDEN, _AS_ROOT]}},
    "closing": {"program": {ENTER: [_KEEP_OPEN]}},
}
