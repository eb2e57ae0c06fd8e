"""The janitor's own program: orders come on standard input, as lines of JSON. See `sandbox.janitor`.

It runs when the server is dead, so everything it needs is loaded before; it imports the standard library and,
by its path, the one file that knows how to end and remove a tree of groups.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import sys
import time
from typing import Any

sys.path.append(f"{os.path.dirname(os.path.abspath(__file__))}/kernel/cgroups")
tree: Any = importlib.import_module("tree")

GRACE_S = 2.0


class Orders:
    """What to do if the server dies, in the order in which it was told."""

    def __init__(self) -> None:
        self.done = False
        self._kill: dict[int, int] = {}
        self._by_verb: dict[str, dict[str, None]] = {"remove": {}, "remove_if_empty": {}, "unlink": {}}

    def take(self, line: bytes) -> None:
        """One message. The end of a line that was cut off by the server's death is not an order."""
        try:
            message = json.loads(line)
        except ValueError:
            return
        for verb, value in message.items():
            if verb == "done":
                self.done = True
            elif verb == "kill":
                self._kill[value[0]] = value[1]
            elif verb == "forget":
                self._forget(value)
            else:
                self._by_verb[verb].update(dict.fromkeys(value))

    def _forget(self, items: list[Any]) -> None:
        for item in items:
            self._kill.pop(item, None)
            for paths in self._by_verb.values():
                paths.pop(item, None)

    def carry_out(self) -> None:
        """Each step for itself: what fails must not keep the rest from being tried."""
        deadline = time.monotonic() + GRACE_S
        kill(self._kill, deadline)
        for path in self._by_verb["remove"]:
            with contextlib.suppress(OSError):
                tree.remove(path, max(0.0, deadline - time.monotonic()))
        for path in self._by_verb["remove_if_empty"]:
            with contextlib.suppress(OSError):
                os.rmdir(path)
        for path in self._by_verb["unlink"]:
            with contextlib.suppress(OSError):
                unlink(path)


def kill(processes: dict[int, int], deadline: float) -> None:
    """SIGKILL to those that still are who they were, and wait for their end."""
    dying = select.poll()
    held = set()
    for pid, start in processes.items():
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(pid)  # first held, then identified: from here on the pid cannot pass to another
            if tree.start_time(pid) == start:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                dying.register(pidfd, select.POLLIN)
                held.add(pidfd)
            else:
                os.close(pidfd)
    while held and time.monotonic() < deadline:
        for pidfd, _ in dying.poll((deadline - time.monotonic()) * 1000):
            dying.unregister(pidfd)
            held.discard(pidfd)


def unlink(path: str) -> None:
    """Remove a directory with its contents. By descriptors: a link inside is removed, never followed."""
    for _, directories, files, inside in os.fwalk(path, topdown=False):
        for name in files:
            os.unlink(name, dir_fd=inside)
        for name in directories:
            try:
                os.rmdir(name, dir_fd=inside)
            except NotADirectoryError:
                os.unlink(name, dir_fd=inside)
    os.rmdir(path)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    orders = Orders()
    rest = b""
    while data := os.read(0, 65536):
        *messages, rest = (rest + data).split(b"\n")
        for message in messages:
            orders.take(message)
        if orders.done:
            return
    orders.carry_out()


if __name__ == "__main__":
    main()
