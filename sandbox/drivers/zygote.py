"""The default driver: sandboxes are forked from a warm CPython that sits in an nsjail.

Covers: two walls. Outer: nsjail, with users that exist nowhere else, its own pid, mount, network, ipc, uts and cgroup
namespaces, a read-only root of an interpreter, its libraries and a few commands, no new privileges. Inner, for each
sandbox: the same seven namespaces again, two users of its own, no capability, an allow-list of system calls, resource
limits, and a cgroup for memory, processes and processor time. No network.

Does not cover: faults of the kernel in the system calls that are allowed; timing and cache side channels; the address
layout and hash seed, which sandboxes of one zygote share. An ordinary user has one id, which warden and guest share,
and, without delegated cgroups, limits by process and by a watchdog instead of by cgroup.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sandbox.drivers.box import ZygoteBox
from sandbox.drivers.jail import IdRange, find_nsjail, guest_environment, jail_config
from sandbox.drivers.output import open_pipe
from sandbox.drivers.program import open_program
from sandbox.drivers.template import Mount, default_python, find_interpreter, find_libraries, root_mounts
from sandbox.errors import SandboxDied, UnsupportedError
from sandbox.guest import frames
from sandbox.janitor import Janitor
from sandbox.kernel.cgroups import CgroupLimits, Cgroups, Slot, open_cgroups, remove_stale
from sandbox.kernel.filter import compile_filter
from sandbox.policy import Policy
from sandbox.wire import PacketChannel, decode
from sandbox.zygote.settings import HELLO, REPLY, REQUEST, protected_descriptors

_log = logging.getLogger(__name__)
_SWEEP_S = 0.1
_EXIT_PATIENCE_S = 0.5
_START_PATIENCE_S = 60.0
_HEADROOM_BYTES = 32 * 1024 * 1024  # so that Python raises MemoryError before the kernel kills
_UNACCOUNTED_CALLS = ("memfd_create", "shmget", "mq_open")  # memory that the watchdog would not see


@dataclass(kw_only=True, slots=True)
class _Zygote:
    """A running nsjail and the socket to the zygote inside."""

    process: subprocess.Popen[bytes]
    log: int
    channel: PacketChannel | None = None
    hello: asyncio.Future[dict[str, Any]]
    pidfds: dict[int, asyncio.Future[int]]
    lost: bool = False  # the socket is closed; nsjail may take a moment longer to end


class ZygoteDriver:
    """Makes boxes by asking a zygote to fork. See the module for what it covers."""

    name = "zygote"

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._cgroups: Cgroups | None = None
        self._janitor: Janitor | None = None
        self._directory: str | None = None
        self._zygote: _Zygote | None = None
        self._restarting: asyncio.Task[None] | None = None
        self._boxes: set[ZygoteBox] = set()
        self._free_indices: list[int] = []
        self._next_index = 0
        self._numbers = 0
        self._ids = IdRange.for_this_process()
        self._processors = sorted(number for number in os.sched_getaffinity(0) if number < 64)
        self._closed = False
        self._sweeping: asyncio.TimerHandle | None = None
        self.config_text = ""
        self.python_version = ""

    async def start(self) -> None:
        """Probe, start nsjail, and wait until the zygote is warm. Raises `UnsupportedError`."""
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise

    async def _start(self) -> None:
        self._janitor = Janitor.start()
        self._directory = tempfile.mkdtemp(prefix="openenv-sandbox-", dir=_passable_directory())
        self._janitor.unlink_later(self._directory)
        os.chmod(self._directory, 0o711)  # noqa: S103 - the jail's users pass through to the staged sources
        os.mkdir(self._staging)
        self._cgroups = self._open_cgroups()
        await self._start_zygote()

    @property
    def two_ids(self) -> bool:
        """Whether warden and guest can be different users."""
        return self._ids.count > 1

    @property
    def cgroups(self) -> Cgroups | None:
        """The accounts of the sandboxes, if this machine and user can have them."""
        return self._cgroups

    def _open_cgroups(self) -> Cgroups | None:
        try:
            remove_stale()
            cgroups = open_cgroups(zygote_uid=self._ids.first if self.two_ids else None)
        except (UnsupportedError, OSError) as error:
            if self._policy.cgroups == "require":
                raise UnsupportedError(f"the policy requires cgroups: {error}") from error
            self._check_replacements(str(error))
            _log.warning("no cgroups, limits are kept by rlimits and a watchdog instead: %s", error)
            return None
        if self._janitor is not None:
            self._janitor.remove_later(*cgroups.directories)
            self._janitor.remove_if_empty_later(*map(os.path.dirname, cgroups.directories))
        return cgroups

    def _check_replacements(self, reason: str) -> None:
        """Without cgroups, refuse what neither an rlimit nor the watchdog nor an affinity can keep."""
        limits = self._policy.limits
        if limits.cpu_cores != int(limits.cpu_cores) or limits.cpu_cores > len(self._processors):
            raise UnsupportedError(
                f"limits.cpu_cores = {limits.cpu_cores:g} needs a cpu cgroup ({reason}); "
                f"without one it must be a whole number up to {len(self._processors)}"
            )
        if limits.cpu_s < limits.wall_s * limits.cpu_cores:
            raise UnsupportedError(
                f"limits.cpu_s below wall_s * cpu_cores needs a cpu cgroup ({reason}); "
                f"without one it must be at least {limits.wall_s * limits.cpu_cores:g}"
            )

    # The zygote.

    async def _start_zygote(self) -> None:
        policy = self._policy
        interpreter = await asyncio.to_thread(find_interpreter, policy)
        libraries = find_libraries(policy, interpreter)
        self.python_version = interpreter.version
        mounts = list(root_mounts(policy, interpreter, libraries))
        sources = [mount.source for mount in mounts if mount.source is not None]
        if self.two_ids:
            mounts = [self._staged(mount, sources) for mount in mounts]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = open_program()
        path = f"/proc/self/fd/{program}"
        try:
            self.config_text = jail_config(
                mounts=mounts,
                ids=self._ids,
                environment=guest_environment(policy),
                program=[interpreter.guest_executable, "-s", path, "serve", str(theirs.fileno())],
                descriptors=[program, theirs.fileno()],
                own_cgroup_namespace=self._cgroups is None or self._cgroups.kind == "v1",
            )
            command = [find_nsjail(policy), "--config", self._write_config()]
            if self.two_ids:
                plan = {"directory": self._staging, "sources": sources, "command": command}
                command = [default_python(), "-I", "-S", path, "stage", json.dumps(plan)]
            zygote = self._spawn(command, [program, theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(program)
            theirs.close()
        self._zygote = zygote
        zygote.channel = PacketChannel(
            ours,
            on_packet=lambda packet, passed: self._on_packet(zygote, packet, passed),
            on_lost=lambda error: self._on_zygote_lost(zygote, error),
            most_bytes=1 << 16,
        )
        zygote.channel.send(frames.dump(self._settings(guest_environment(policy))))
        hello = await self._hello(zygote)
        if missing := hello.get("missing"):
            raise UnsupportedError(
                f"the template's libraries {', '.join(missing)} cannot be imported inside: "
                "run `python -m sandbox install`, or change template.libraries"
            )

    @property
    def _staging(self) -> str:
        assert self._directory is not None
        return os.path.join(self._directory, "sources")

    def _staged(self, mount: Mount, sources: list[str]) -> Mount:
        if mount.source is None:
            return mount
        number = sources.index(mount.source)
        return replace(mount, source=f"{self._staging}/{number}", origin=mount.source)

    def _write_config(self) -> str:
        assert self._directory is not None
        path = os.path.join(self._directory, "nsjail.cfg")
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.config_text)
        return path

    def _spawn(self, command: list[str], descriptors: list[int]) -> _Zygote:
        log = os.memfd_create("nsjail-log", os.MFD_CLOEXEC)  # appended to by a process that outlives no start
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=descriptors,
            env={},
            cwd="/",
            start_new_session=True,
        )
        with contextlib.suppress(ProcessLookupError):  # dead already: the lost socket tells why
            if self._janitor is not None:
                self._janitor.watch_process(process.pid)
            if self._cgroups is not None:
                self._cgroups.adopt(process.pid)
        loop = asyncio.get_running_loop()
        return _Zygote(process=process, log=log, hello=loop.create_future(), pidfds={})

    async def _hello(self, zygote: _Zygote) -> dict[str, Any]:
        done, _ = await asyncio.wait([zygote.hello], timeout=_START_PATIENCE_S)
        if not done:
            raise UnsupportedError(f"the zygote was not ready within {_START_PATIENCE_S:g} s: {_tail(zygote.log)}")
        return zygote.hello.result()

    def _settings(self, environment: dict[str, str]) -> dict[str, Any]:
        limits, policy = self._policy.limits, self._policy
        replaced = self._cgroups is None
        program = compile_filter(
            policy.seccomp,
            protected_fds_from=protected_descriptors(limits.open_files)[0],
            deny=_UNACCOUNTED_CALLS if replaced else (),
        )
        return {
            "workspace_bytes": limits.workspace_bytes,
            "workspace_files": limits.workspace_files,
            "rlimits": {
                "core_bytes": 0,
                "data_bytes": max(limits.memory_bytes - _HEADROOM_BYTES, limits.memory_bytes // 2),
                "file_size_bytes": limits.file_size_bytes,
                "locked_bytes": 64 * 1024,
                "message_queue_bytes": 0,
                "open_files": limits.open_files,
                "processes": limits.processes,
                "queued_signals": 512,
                "stack_bytes": 8 * 1024 * 1024,
            },
            "open_files": limits.open_files,
            "value_bytes": limits.value_bytes,
            "environment": environment,
            "filter_hex": program.hex(),
            "libraries": list(policy.template.libraries),
            "preload": list(policy.template.preload),
            "memory_watchdog_bytes": limits.memory_bytes if replaced else None,
            "two_ids": self.two_ids,
        }

    def _on_packet(self, zygote: _Zygote, packet: bytes, passed: list[int]) -> None:
        if packet.startswith(HELLO) and not zygote.hello.done():
            zygote.hello.set_result(decode(packet[len(HELLO) :]))
            return
        (number,) = REPLY.unpack_from(packet)
        waiting = zygote.pidfds.pop(number, None)
        if waiting is None or waiting.done() or not passed:
            for descriptor in passed:
                os.close(descriptor)
            if waiting is not None and not waiting.done():
                reason = packet[REPLY.size :].decode("utf-8", "replace")
                waiting.set_exception(SandboxDied(f"the zygote could not fork: {reason}"))
            return
        waiting.set_result(passed[0])

    def _on_zygote_lost(self, zygote: _Zygote, error: Exception | None) -> None:
        """Every sandbox of it is dead or dying: the kernel ends the jail with its pid 1."""
        zygote.lost = True
        zygote.process.kill()
        if self._zygote is zygote:
            for box in self._boxes:  # so that none of the dying is handed out
                box.kill("its zygote died")
        reason = _tail(zygote.log) or error or "it exited"
        if not zygote.hello.done():
            zygote.hello.set_exception(UnsupportedError(f"the zygote did not start: {reason}"))
        for waiting in zygote.pidfds.values():
            if not waiting.done():
                waiting.set_exception(SandboxDied(f"the zygote died: {reason}"))
        zygote.pidfds.clear()
        if self._zygote is zygote and not self._closed and zygote.hello.done() and not zygote.hello.exception():
            _log.error("the zygote died and is being replaced: %s", reason)

    async def _stop_zygote(self, zygote: _Zygote) -> None:
        if zygote.channel is not None:
            zygote.channel.close()
        for waiting in zygote.pidfds.values():
            if not waiting.done():
                waiting.set_exception(SandboxDied("the driver was closed"))
        # The zygote exits when its socket closes, and nsjail reaps it. Killed first, nsjail would leave it to init.
        await asyncio.to_thread(_wait_or_kill, zygote.process)
        if self._janitor is not None:
            self._janitor.forget(zygote.process.pid)
        os.close(zygote.log)
        if zygote.hello.done() and not zygote.hello.cancelled():
            zygote.hello.exception()

    async def _living_zygote(self) -> _Zygote:
        """The zygote, after replacing it if it died."""
        if self._closed or self._zygote is None:
            raise SandboxDied("the driver is closed")
        if self._restarting is None and (self._zygote.lost or self._zygote.process.poll() is not None):
            self._restarting = asyncio.create_task(self._restart(self._zygote))
        if self._restarting is not None:
            await asyncio.shield(self._restarting)
        return self._zygote

    async def _restart(self, dead: _Zygote) -> None:
        try:
            await self._stop_zygote(dead)
            await self._start_zygote()
        finally:
            self._restarting = None

    # Boxes.

    async def create(self) -> ZygoteBox:
        """Fork a fresh sandbox. Raises `SandboxDied` with what the kernel said."""
        zygote = await self._living_zygote()
        limits = self._policy.limits
        slot = None
        if self._cgroups is not None:
            slot = self._cgroups.acquire(
                CgroupLimits(memory_bytes=limits.memory_bytes, tasks=limits.processes + 1, cpu_cores=limits.cpu_cores)
            )
        index = self._free_indices.pop() if self._free_indices else self._next_index
        self._next_index = max(self._next_index, index + 1)
        box, passed = self._open_box(slot, index)
        self._boxes.add(box)
        request = asyncio.ensure_future(self._request(zygote, box, passed))
        try:
            await box.started(await asyncio.shield(request))
        except BaseException:
            await asyncio.shield(self._give_up(box, request))
            raise
        return box

    async def _give_up(self, box: ZygoteBox, request: asyncio.Future[int]) -> None:
        """End a box whose making was cut short.

        A fork that was asked for happens. Until its warden is seen to end, it may still join the cgroup, and use the
        ids, that the next box would get.
        """
        await asyncio.wait([request])
        if request.exception() is None:
            box.adopt(request.result())
        await self._discard(box)

    def _open_box(self, slot: Slot | None, index: int) -> tuple[ZygoteBox, list[int]]:
        channel, channel_inside = socket.socketpair()
        control, control_inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        out_read, out_write = open_pipe()
        err_read, err_write = open_pipe()
        box = ZygoteBox(
            self._policy,
            channel=channel,
            control=control,
            outputs=(out_read, err_read),
            slot=slot,
            index=index,
            on_close=self._discard,
        )
        return box, [channel_inside.detach(), control_inside.detach(), out_write, err_write]

    async def _request(self, zygote: _Zygote, box: ZygoteBox, passed: list[int]) -> int:
        """Ask for the fork; the pidfd of the new warden. `passed` are closed here."""
        assert zygote.channel is not None
        self._numbers += 1
        number = self._numbers
        waiting: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        zygote.pidfds[number] = waiting
        slot = box.slot
        attach = slot.attach_fds if slot is not None else ()
        into = (slot.clone_fd,) if slot is not None and slot.clone_fd is not None else ()
        warden, guest = (1 + 2 * box.index, 2 + 2 * box.index) if self.two_ids else (0, 0)
        processors = self._share_of_processors(box.index) if slot is None else 0
        request = REQUEST.pack(number, warden, guest, bool(into), processors)
        try:
            zygote.channel.send(request, [*passed, *attach, *into])
        finally:
            for descriptor in passed:
                os.close(descriptor)
        return await waiting

    def _share_of_processors(self, index: int) -> int:
        """A mask: without a cpu cgroup, each sandbox is pinned to as many processors as it may use."""
        count, known = int(self._policy.limits.cpu_cores), self._processors
        return sum(1 << known[(index * count + offset) % len(known)] for offset in range(count))

    async def _discard(self, box: ZygoteBox) -> None:
        """End a box and give back its cgroup and its users."""
        await box.end()
        if box in self._boxes:
            self._boxes.discard(box)
            self._free_indices.append(box.index)
            if box.slot is not None and self._cgroups is not None:
                self._release(self._cgroups, box.slot)

    def _release(self, cgroups: Cgroups, slot: Slot) -> None:
        if not cgroups.release(slot) and self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep, cgroups)

    def _sweep(self, cgroups: Cgroups) -> None:
        """Look again at groups that still held a dying process, or memory, when they were given back."""
        self._sweeping = None
        if cgroups.sweep() and not self._closed:
            self._sweeping = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep, cgroups)

    async def close(self) -> None:
        """End every box, the jail, the cgroups and the janitor. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        for box in list(self._boxes):
            box.kill()
        for box in list(self._boxes):
            await self._discard(box)
        if self._zygote is not None:
            await self._stop_zygote(self._zygote)
        if self._cgroups is not None:
            await asyncio.to_thread(self._cgroups.close)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        if self._janitor is not None:
            await asyncio.to_thread(self._janitor.close)


def _passable_directory() -> str | None:
    """A temporary directory whose parents anybody may search, as the jail's users must; None: the usual one."""
    for candidate in (tempfile.gettempdir(), "/tmp", "/run"):  # noqa: S108
        path = Path(os.path.realpath(candidate))
        if os.access(path, os.W_OK) and all(each.stat().st_mode & 0o001 for each in (path, *path.parents)):
            return str(path)
    return None


def _wait_or_kill(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_EXIT_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: int) -> str:
    size = os.fstat(log).st_size
    return os.pread(log, 2000, max(0, size - 2000)).decode("utf-8", "replace").strip()
