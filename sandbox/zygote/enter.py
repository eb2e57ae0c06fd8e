"""Entering the inner wall: two lists of system calls, and their order is the argument.

A sandbox begins as a child of the zygote in seven new namespaces, with every capability over them and over nothing
else. It waits until the zygote has mapped its ids, for before that no file can be its own, and joins the cgroups, so
that everything from here on is accounted and limited. Then `sandbox_entry` uses the capabilities once, for what only
they can do, and gives them up:

  1. take the user 0, which exists only in this namespace
  2. mount the private /proc and the sized workspace; the rest of the root is read-only, and locked by the kernel,
     because it was mounted by a more privileged user namespace
  3. let no execve give a capability, and keep the three that a warden needs to start, stop and impersonate the guest
  4. let nobody look into it, and serve the host; it never runs guest code

An interpreter, or a command, is a child of the warden. It closes every descriptor but its own, makes itself the first
to die when memory runs out (a dead warden would take the workspace with it), and `guest_entry` takes it from harmless
to irreversible:

  1. a session of its own
  2. resource limits, while raising them again still needs a privilege
  3. another user than the warden's, by which the kernel clears every capability; then the sets again, by hand, for
     where there is only one user
  4. the system-call filter last, because the calls above are not in it
"""

from __future__ import annotations

import _signal
import _socket
import os
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from sandbox.guest.interpreter import Interpreter
from sandbox.guest.warden import Programs, Warden
from sandbox.guest.watchdog import Watchdog
from sandbox.kernel import libc, mounts, namespaces, privileges, rlimits, seccomp
from sandbox.zygote import hooks
from sandbox.zygote.settings import GUEST, Settings, protected_descriptors

_STAGING = "/mnt"


class Passed:
    """The descriptors that came with a request for a sandbox, in this order."""

    __slots__ = ("channel", "control", "outputs", "tasks")

    def __init__(self, descriptors: tuple[int, ...]) -> None:
        self.channel = descriptors[0]  # stream socket of the first interpreter
        self.control = descriptors[1]  # packet socket of the warden
        self.outputs = descriptors[2:4]  # write ends of stdout and stderr
        self.tasks = descriptors[4:]  # `tasks` files of the cgroups to join; none where clone3 did it


class InnerWall:
    """Both lists, and what runs behind them: made once in the zygote, shared by every sandbox."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.two_ids = settings.two_ids
        self.sandbox_entry = (
            *(privileges.become(0) if settings.two_ids else ()),
            mounts.proc("/proc"),
            *_workspace(settings),
            namespaces.hostname("sandbox"),
            *privileges.empty_bounding_set(),
            privileges.keep_capabilities(privileges.CAP_KILL, privileges.CAP_SETGID, privileges.CAP_SETUID),
            privileges.dumpable(False),
            mounts.enter("/workspace"),
        )
        self.guest_entry = (
            privileges.new_session(),
            *rlimits.limit(settings.rlimits),
            *(privileges.become(GUEST) if settings.two_ids else ()),
            privileges.keep_capabilities(),
            privileges.dumpable(True),
            seccomp.install(bytes.fromhex(settings.filter_hex)),
        )
        self.cgroup_roots = (namespaces.new_cgroup_namespace(),)
        self.dumpable = (privileges.dumpable(True),)
        self.protected = protected_descriptors(settings.open_files)
        self.outputs: tuple[int, ...] = ()  # of the sandbox that this process is part of
        self.processor_mask = 0  # of that sandbox
        self.interpreter = self._make_interpreter()
        self.warden = self._make_warden()

    def _make_interpreter(self) -> Interpreter:
        *saved, channel = self.protected
        return Interpreter(
            channel,
            saved_streams=(saved[0], saved[1], saved[2]),
            value_bytes=self.settings.value_bytes,
            flush_c_streams=libc.flush_streams,
        )

    def _make_warden(self) -> Warden:
        memory_bytes = self.settings.memory_watchdog_bytes
        return Warden(
            Programs(
                interpreter=lambda channel: _fork(_run_interpreter, self, channel),
                command=lambda request, out, err: _fork(_run_command, self, request, out, err),
            ),
            guest_id=GUEST if self.two_ids else None,
            watchdog=Watchdog(memory_bytes=memory_bytes) if memory_bytes is not None else None,
        )

    def id_map(self, warden: int, guest: int) -> bytes:
        """What the sandbox's users are to the zygote: see `namespaces.map_ids`."""
        return b"0 %d 1\n1000 %d 1\n" % (warden, guest) if self.two_ids else b"1000 %d 1\n" % guest


def _workspace(settings: Settings) -> Iterator[libc.Call]:
    """One tmpfs, and so one limit, under the three places that can be written."""
    yield mounts.tmpfs(_STAGING, size_bytes=settings.workspace_bytes, inodes=settings.workspace_files + 4, mode=0o755)
    for name, target, mode in (
        ("workspace", "/workspace", 0o755),
        ("tmp", "/tmp", 0o1777),  # noqa: S108
        ("shm", "/dev/shm", 0o1777),  # noqa: S108
    ):
        yield from mounts.directory(f"{_STAGING}/{name}", mode=mode, owner=GUEST)
        yield mounts.bind(f"{_STAGING}/{name}", target)
    yield mounts.detach(_STAGING)


def enter_sandbox(wall: InnerWall, passed: Passed, processor_mask: int, gate: int) -> NoReturn:
    """Turn this fresh child of the zygote into a warden with its first interpreter."""
    _wait_for_ids(gate)
    _join_cgroups(wall, passed.tasks)
    _stay_on(processor_mask)
    wall.processor_mask = processor_mask
    libc.run(wall.sandbox_entry)
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    wall.outputs = passed.outputs
    wall.warden.run(_socket.socket(fileno=passed.control), passed.channel)


def _wait_for_ids(gate: int) -> None:
    if os.read(gate, 1) != b"1":
        os._exit(1)  # the zygote could not map them, and has told the host
    os.close(gate)


def _join_cgroups(wall: InnerWall, tasks: tuple[int, ...]) -> None:
    # Writing one's own "0" is quick. Another process's pid would wait for a grace period of the kernel, 7 to 19 ms.
    for descriptor in tasks:
        os.write(descriptor, b"0")
        os.close(descriptor)
    if tasks:  # the namespace of the clone has the zygote's groups as its roots, beside which ours would have a name
        libc.run(wall.cgroup_roots)


def _stay_on(processor_mask: int) -> None:
    # In place of a cpu cgroup. The filter keeps guest code from changing it.
    if processor_mask:
        os.sched_setaffinity(0, [bit for bit in range(64) if processor_mask >> bit & 1])


def _fork(run: Callable[..., NoReturn], *arguments: Any) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        run(*arguments)
    except BaseException as error:
        os.write(2, f"sandbox: {error}\n".encode("utf-8", "replace"))
    finally:
        os._exit(125)


def _run_interpreter(wall: InnerWall, channel: int) -> NoReturn:
    sources = os.open("/dev/null", os.O_RDONLY), *wall.outputs, channel
    for number, source in zip(wall.protected, sources, strict=True):
        os.dup2(source, number, inheritable=False)
    for number, source in enumerate(wall.protected[:3]):
        os.dup2(source, number)
    os.closerange(3, wall.protected[0])
    hooks.catch_up()
    _become_guest(wall)
    wall.interpreter.serve()
    os._exit(0)


def _run_command(wall: InnerWall, request: dict[str, Any], stdout: int, stderr: int) -> NoReturn:
    for number, source in enumerate((os.open("/dev/null", os.O_RDONLY), stdout, stderr)):
        os.dup2(source, number)
    os.closerange(3, wall.settings.open_files)
    _become_guest(wall)
    arguments = request["arguments"]
    try:
        os.chdir(request["directory"])
        os.execvpe(arguments[0], arguments, wall.settings.environment | request["environment"])
    except OSError as error:
        subject = error.filename if error.filename is not None else arguments[0]
        os.write(2, f"{subject}: {os.strerror(error.errno or 0)}\n".encode("utf-8", "surrogateescape"))
        os._exit(127 if error.errno == 2 else 126)


def _become_guest(wall: InnerWall) -> None:
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    _die_first_when_memory_runs_out(wall)
    _stay_on(wall.processor_mask)  # again: while a run is being stopped, the host gives the warden more
    libc.run(wall.guest_entry)


def _die_first_when_memory_runs_out(wall: InnerWall) -> None:
    libc.run(wall.dumpable)  # the warden is not, and /proc/self of such a process belongs to nobody
    descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    os.write(descriptor, b"1000")
    os.close(descriptor)
