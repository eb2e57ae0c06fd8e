"""The zygote's program as a sealed memory file: nothing of ours is on a path that the jail can see."""

from __future__ import annotations

import fcntl
import io
import os
import zipfile
from pathlib import Path

_FOLDERS = ("guest", "kernel", "zygote")
_MAIN = """\
import sys
if sys.argv[1] == "stage":
    from sandbox.zygote.stage import main
    main(sys.argv[2])
else:
    from sandbox.zygote import hooks
    hooks.record()
    from sandbox.zygote.start import main
    main(int(sys.argv[2]))
"""
_HOST_ONLY = ("kernel/cgroups", "kernel/filter", "kernel/syscalls")


def open_program() -> int:
    """A descriptor of a zip application that Python runs as `python /proc/self/fd/N`; the caller closes it."""
    package = Path(__file__).parents[1]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
        target.writestr("__main__.py", _MAIN)
        target.writestr("sandbox/__init__.py", "")
        for folder in _FOLDERS:
            for source in sorted((package / folder).rglob("*.py")):
                name = source.relative_to(package).as_posix()
                if not name.startswith(_HOST_ONLY):
                    target.writestr(f"sandbox/{name}", source.read_text(encoding="utf-8"))
    descriptor = os.memfd_create("zygote", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, archive.getvalue())
    fcntl.fcntl(
        descriptor,
        fcntl.F_ADD_SEALS,
        fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE,
    )
    return descriptor
