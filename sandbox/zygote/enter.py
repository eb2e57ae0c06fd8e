"""Entering the inner wall: two lists of calls, and their order is the argument.

A sandbox begins as a child of the zygote in seven new namespaces, with every capability over them and over nothing
else. `enter_sandbox` uses those capabilities once, for what only they can do, and gives them up:

  1. wait until the zygote has mapped the ids; before that, no file can be owned by us
  2. join the cgroups, so that everything from here on is accounted and limited
  3. take the user 0 that exists only in this namespace
  4. mount the private /proc and the sized workspace; the rest of the root is read-only and locked by the kernel,
     because it was mounted by a more privileged user namespace
  5. keep of all capabilities the three that a warden needs to start, stop and impersonate the guest
  6. serve the host, and never run guest code

An interpreter, or a command, is a child of the warden. `_become_guest` takes it, from harmless to irreversible:

  1. a session of its own, standard streams, and no other descriptor
  2. it dies first when memory runs out: a dead warden would take the workspace with it
  3. resource limits, while raising them again still needs a privilege
  4. another user than the warden's, by which the kernel clears every capability
  5. the system-call filter last, because the calls above are not in it
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from sandbox.guest.interpreter import Interpreter
from sandbox.guest.warden import Programs, Warden
from sandbox.guest.watchdog import Watchdog
from sandbox.kernel import libc, mounts, namespaces, privileges, rlimits, seccomp
from sandbox.zygote.settings import GUEST, Settings, protected_descriptors

_STAGING = "/mnt"


@dataclass(frozen=True, kw_only=True)
class Passed:
    """The descriptors that came with a request for a sandbox."""

    channel: int  # stream socket of the first interpreter
    control: int  # packet socket of the warden
    outputs: tuple[int, int]  # write ends of stdout and stderr
    drains: tuple[int, int]  # their read ends
    tasks: tuple[int, ...]  # `tasks` files of the cgroups to join; none where clone3 did it

    def all(self) -> list[int]:
        """Every descriptor, for closing."""
        return [self.channel, self.control, *self.outputs, *self.drains, *self.tasks]


def enter_sandbox(settings: Settings, passed: Passed, processors: list[int] | None, gate: int) -> NoReturn:
    """Turn this fresh child of the zygote into a warden with its first interpreter."""
    _wait_for_ids(gate)
    _join_cgroups(passed.tasks)
    _stay_on(processors)
    _take_namespace_root(settings)
    _mount_private_filesystems(settings)
    namespaces.set_hostname("sandbox")
    privileges.empty_bounding_set()
    privileges.keep_capabilities(privileges.CAP_KILL, privileges.CAP_SETGID, privileges.CAP_SETUID)
    privileges.set_dumpable(False)
    os.chdir("/workspace")
    _serve_as_warden(settings, passed)


def _wait_for_ids(gate: int) -> None:
    if os.read(gate, 1) != b"1":
        os._exit(1)  # the zygote could not map them, and has told the host
    os.close(gate)


def _join_cgroups(tasks: tuple[int, ...]) -> None:
    # Writing one's own "0" is quick. Another process's pid would wait for a grace period of the kernel, 7 to 19 ms.
    for descriptor in tasks:
        os.write(descriptor, b"0")
        os.close(descriptor)


def _stay_on(processors: list[int] | None) -> None:
    # In place of a cpu cgroup. The filter keeps guest code from changing it.
    if processors is not None:
        os.sched_setaffinity(0, processors)


def _take_namespace_root(settings: Settings) -> None:
    if settings.two_ids:
        privileges.become(0)


def _mount_private_filesystems(settings: Settings) -> None:
    """One tmpfs, and so one limit, under the three places that can be written."""
    mounts.mount_proc("/proc")
    mounts.mount_tmpfs(
        _STAGING, size_bytes=settings.workspace_bytes, inodes=settings.workspace_files + 4, mode=0o755
    )
    for name, target, mode in (
        ("workspace", "/workspace", 0o755),
        ("tmp", "/tmp", 0o1777),  # noqa: S108
        ("shm", "/dev/shm", 0o1777),  # noqa: S108
    ):
        mounts.make_directory(f"{_STAGING}/{name}", mode=mode, owner=GUEST)
        mounts.bind(f"{_STAGING}/{name}", target)
    mounts.detach(_STAGING)


def _serve_as_warden(settings: Settings, passed: Passed) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    control = socket.socket(fileno=passed.control)
    watchdog = (
        Watchdog(memory_bytes=settings.memory_watchdog_bytes)
        if settings.memory_watchdog_bytes is not None
        else None
    )
    warden = Warden(
        control,
        programs=Programs(
            interpreter=lambda channel: _fork(lambda: _run_interpreter(settings, passed, channel)),
            command=lambda request, stdout, stderr: _fork(
                lambda: _run_command(settings, request, stdout, stderr)
            ),
        ),
        outputs=passed.drains,
        guest_id=GUEST if settings.two_ids else None,
        watchdog=watchdog,
    )
    warden.run(passed.channel)


def _fork(run: Callable[[], NoReturn]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        run()
    except BaseException as error:  # noqa: BLE001 - a process edge: nothing may return into the warden's loop
        os.write(2, f"sandbox: {error}\n".encode("utf-8", "replace"))
    finally:
        os._exit(125)


def _run_interpreter(settings: Settings, passed: Passed, channel: int) -> NoReturn:
    first_protected = settings.protected_from
    for offset, source in enumerate((os.open("/dev/null", os.O_RDONLY), *passed.outputs, channel)):
        os.dup2(source, first_protected + offset, inheritable=False)
    for number in range(3):
        os.dup2(first_protected + number, number)
    os.closerange(3, first_protected)
    os.environ.clear()
    os.environ.update(settings.environment)
    _become_guest(settings)
    *saved, kept_channel = protected_descriptors(settings.open_files)
    Interpreter(
        kept_channel,
        saved_streams=(saved[0], saved[1], saved[2]),
        value_bytes=settings.value_bytes,
        flush_c_streams=libc.flush_streams,
    ).serve()
    os._exit(0)


def _run_command(settings: Settings, request: dict[str, Any], stdout: int, stderr: int) -> NoReturn:
    for number, source in enumerate((os.open("/dev/null", os.O_RDONLY), stdout, stderr)):
        os.dup2(source, number)
    os.closerange(3, settings.open_files)
    _become_guest(settings)
    environment = settings.environment | request["environment"]
    arguments = request["arguments"]
    try:
        os.chdir(request["directory"])
        os.execvpe(arguments[0], arguments, environment)
    except OSError as error:
        subject = error.filename if error.filename is not None else arguments[0]
        os.write(2, f"{subject}: {os.strerror(error.errno or 0)}\n".encode("utf-8", "surrogateescape"))
        os._exit(127 if error.errno == 2 else 126)
    sys.exit(126)


def _become_guest(settings: Settings) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    _die_first_when_memory_runs_out()
    rlimits.set_limits(settings.rlimits)
    if settings.two_ids:
        privileges.become(GUEST)
    privileges.keep_capabilities()
    privileges.set_dumpable(True)
    seccomp.install(bytes.fromhex(settings.filter_hex))


def _die_first_when_memory_runs_out() -> None:
    privileges.set_dumpable(True)  # the warden is not, and /proc/self of such a process belongs to nobody
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
