"""A small process that outlives the server and cleans up after one that was killed.

The server holds the only writing end of a pipe that is the janitor's standard input, and tells it over time
what would have to go: processes, cgroup directories, temporary directories. When the server says that it is
done, the janitor exits. When the pipe ends without that, however the server died, the janitor carries the
orders out, within two seconds.

It is in a session of its own, ignores the signals that end a server, has no environment, and holds no
descriptor but the pipe. A process is named by pid and start time, so that a later process with the same pid
is left alone.

Does not cover: a kill of the janitor too (of the whole control group by a service manager, by the OOM
killer); then the next server finds the groups by `remove_stale`. A process that the server forks without exec
holds the pipe open as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from types import TracebackType
from typing import Self

from sandbox.kernel.cgroups.tree import start_time

__all__ = ["Janitor"]

_PROGRAM = f"{os.path.dirname(os.path.abspath(__file__))}/_janitor_main.py"
_EXIT_S = 2.0


class Janitor:
    """The server's end. Keep it referenced: dropped without `close`, it lets the orders be carried out.

    Telling raises OSError (BrokenPipeError) when the janitor is dead.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Called by `start`."""
        self._process = process

    @classmethod
    def start(cls) -> Self:
        # A Python that finds its own library only by LD_LIBRARY_PATH would not start without.
        environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", _PROGRAM],
            bufsize=0,
            cwd="/",
            env=environment,
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def watch_process(self, pid: int) -> None:
        """Kill this process if the server dies. Raises ProcessLookupError if it is dead already."""
        start = start_time(pid)
        if start is None:
            raise ProcessLookupError(f"no process {pid}")
        self._tell({"kill": [pid, start]})

    def remove_later(self, *groups: str) -> None:
        """Kill what is inside these cgroup directories and remove them with all below, if the server dies."""
        self._tell({"remove": groups})

    def remove_if_empty_later(self, *directories: str) -> None:
        """Remove these directories if nothing is in them by then."""
        self._tell({"remove_if_empty": directories})

    def unlink_later(self, *directories: str) -> None:
        """Remove these ordinary directories and all their contents."""
        self._tell({"unlink": directories})

    def forget(self, *items: int | str) -> None:
        """These pids and paths are taken care of."""
        self._tell({"forget": items})

    def close(self) -> None:
        """All is cleaned up: the janitor exits without doing anything."""
        if self._process.stdin is None or self._process.stdin.closed:
            return
        with contextlib.suppress(OSError):
            self._tell({"done": True})
        self._process.stdin.close()
        try:
            self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tell(self, message: dict[str, object]) -> None:
        if self._process.stdin is None or self._process.stdin.closed:
            raise ValueError("the janitor was dismissed")
        # One write, so that the death of the server cannot cut a message short unless it is longer than the
        # pipe's atomic size; what is cut short is not carried out.
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
