"""The zygote: a warm CPython inside the outer wall that turns into sandboxes on request.

Theory of operation. The host starts one nsjail per template. Inside it, as pid 1 of the jail, this program imports
what the template asks for, runs the paths that every step takes so that their pages are warm, and waits on one packet
socket. It has a single thread, no secret, and never runs guest code. For each request it clones a child into seven new
namespaces, maps the child's ids, and sends the host a pidfd. The child becomes a warden (`enter.py`), the warden forks
an interpreter. Memory is shared copy-on-write all the way down.

Who watches whom: the host holds a pidfd of every warden, and killing it ends its pid namespace. When the host dies,
the packet socket closes, this program exits, and the kernel ends the whole jail with its pid 1. When this program
dies, so does every sandbox, and the host sees nsjail exit.

Every descriptor that is open here would be inherited by every sandbox, because nothing is executed anew: the list is
the packet socket and the standard streams.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import signal
import socket
import sys
from typing import Any, NoReturn

from sandbox.guest import frames
from sandbox.kernel import namespaces
from sandbox.zygote import warmup
from sandbox.zygote.enter import Passed, enter_sandbox
from sandbox.zygote.settings import GUEST, Settings

_MAX_DESCRIPTORS = 24


def main(control_descriptor: int) -> NoReturn:
    """Serve fork requests on the inherited packet socket until the host hangs up."""
    control = socket.socket(fileno=control_descriptor)
    settings = Settings.load(frames.load(control.recv(1 << 20)))
    missing = [name for name in settings.libraries if importlib.util.find_spec(name) is None]
    os.environ.clear()
    os.environ.update(settings.environment)
    for name in settings.preload:
        importlib.import_module(name)
    warmup.run(settings)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # wardens are reaped by the kernel; the host has their pidfds
    gc.collect()
    gc.disable()
    gc.freeze()
    control.send(frames.dump({"python": sys.version.split()[0], "missing": missing}))
    while True:
        packet, descriptors, _, _ = socket.recv_fds(control, 1 << 16, _MAX_DESCRIPTORS)
        if not packet:
            sys.exit(0)
        _fork_sandbox(control, settings, frames.load(packet), descriptors)


def _fork_sandbox(
    control: socket.socket, settings: Settings, request: dict[str, Any], descriptors: list[int]
) -> None:
    cgroup = descriptors.pop() if request["cgroup"] else None
    channel, warden_control, out, err, out_read, err_read, *tasks = descriptors
    passed = Passed(
        channel=channel,
        control=warden_control,
        outputs=(out, err),
        drains=(out_read, err_read),
        tasks=tuple(tasks),
    )
    gate, opener = os.pipe()
    try:
        pid, pidfd = namespaces.fork_into_new(namespaces.ALL, cgroup)
        if pid == 0:
            unneeded = [opener, *([cgroup] if cgroup is not None else [])]
            _in_child(control, settings, passed, request["processors"], gate, unneeded)
        try:
            outside = request["ids"]
            inside = (0, GUEST) if settings.two_ids else (GUEST,)
            namespaces.map_ids(pid, list(zip(inside, outside, strict=True)))
            os.write(opener, b"1")
            socket.send_fds(control, [frames.dump({"number": request["number"]})], [pidfd])
        finally:
            os.close(pidfd)
    except OSError as error:
        control.send(frames.dump({"number": request["number"], "error": str(error)}))
    finally:
        for descriptor in (gate, opener, *descriptors, *([cgroup] if cgroup is not None else [])):
            os.close(descriptor)


def _in_child(
    control: socket.socket,
    settings: Settings,
    passed: Passed,
    processors: list[int] | None,
    gate: int,
    unneeded: list[int],
) -> NoReturn:
    try:
        control.close()
        for descriptor in unneeded:
            os.close(descriptor)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        gc.enable()
        enter_sandbox(settings, passed, processors, gate)
    except BaseException as error:  # noqa: BLE001 - a process edge: nothing may return into the fork loop
        os.write(2, f"sandbox: entering failed: {error!r}\n".encode("utf-8", "replace"))
    finally:
        os._exit(125)


if __name__ == "__main__":
    main(int(sys.argv[1]))
