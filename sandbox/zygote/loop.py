"""The fork loop, and nothing that it does not need.

Writing is what costs: a page that this loop writes to between two forks is a page that the older child no longer
shares, and counting references is writing. Hence the C functions under `signal` and `socket`, whose wrappers touch
enums, and packed structures.
"""

from __future__ import annotations

import _signal
import _socket
import gc
import os
import struct
import sys
from typing import Any, NoReturn

from sandbox.kernel import libc, namespaces
from sandbox.zygote import warmup
from sandbox.zygote.enter import InnerWall, Passed, enter_sandbox
from sandbox.zygote.settings import REPLY, REQUEST, Settings

_ANCILLARY_BYTES = 256
_DESCRIPTORS = [struct.Struct(f"={count}i") for count in range(32)]
_PIDFD = struct.Struct("=i")


def serve(control: Any, settings: Settings, hello: bytes) -> NoReturn:
    """Get warm, say hello, and turn every request into a sandbox until the host hangs up."""
    wall = InnerWall(settings)
    warmup.run(settings)
    wall.interpreter.become_main()
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)  # wardens are reaped by the kernel; the host has their pidfds
    gc.collect()
    libc.give_back_free_memory()
    gc.disable()
    gc.freeze()
    control.send(hello)
    while True:
        _serve_one(control, wall)


def _serve_one(control: Any, wall: InnerWall) -> None:
    packet, ancillary, _, _ = control.recvmsg(REQUEST.size, _ANCILLARY_BYTES)
    if not packet:
        sys.exit(0)
    number, warden_id, guest_id, into_cgroup, processor_mask = REQUEST.unpack(packet)
    data = ancillary[0][2]
    descriptors = _DESCRIPTORS[len(data) // 4].unpack(data)
    passed, cgroup = (descriptors[:-1], descriptors[-1:]) if into_cgroup else (descriptors, ())
    gate, opener = os.pipe()
    try:
        pid, pidfd = namespaces.fork_into_new(namespaces.ALL, cgroup[0] if cgroup else None)
        if pid == 0:
            _in_child(wall, Passed(passed), processor_mask, gate, (control.fileno(), opener, *cgroup))
        try:
            namespaces.map_ids(pid, wall.id_map(warden_id, guest_id))
            os.write(opener, b"1")
            control.sendmsg((REPLY.pack(number),), ((_socket.SOL_SOCKET, _socket.SCM_RIGHTS, _PIDFD.pack(pidfd)),))
        finally:
            os.close(pidfd)
    except OSError as error:
        control.send(REPLY.pack(number) + str(error).encode())
    finally:
        os.close(gate)
        os.close(opener)
        for descriptor in descriptors:
            os.close(descriptor)


def _in_child(wall: InnerWall, passed: Passed, processor_mask: int, gate: int, unneeded: tuple[int, ...]) -> NoReturn:
    try:
        for descriptor in unneeded:
            os.close(descriptor)
        enter_sandbox(wall, passed, processor_mask, gate)
    except BaseException as error:
        os.write(2, f"sandbox: entering failed: {error!r}\n".encode("utf-8", "replace"))
    finally:
        os._exit(125)
