"""The host's side of one sandbox of the zygote driver: its sockets, its deadlines, and how its runs ended.

The interpreter answers directly. The warden is asked only when something has to be stopped, replaced or fetched. If
it does not answer within `_WARDEN_PATIENCE_S`, the pidfd does: the kernel then ends everything at once.

Longer than most files here, because how a run ends is one state machine: deadline, report, exit and kill race, and
whoever changes one of them has to see the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from sandbox.drivers.base import Setup
from sandbox.drivers.calls import HostCalls
from sandbox.drivers.file_calls import FileCalls
from sandbox.drivers.output import Output, Stream, open_pipe
from sandbox.errors import ProtocolError, SandboxDied
from sandbox.guest import frames
from sandbox.kernel.cgroups import Slot
from sandbox.policy import Policy
from sandbox.result import FileEntry, Outcome, Result, Truncated, Usage
from sandbox.wire import PacketChannel, StreamChannel, decode, whole

_log = logging.getLogger(__name__)
_WARDEN_PATIENCE_S = 1.0  # it shares its processors with the guest, but nothing of the guest can stop it
_START_PATIENCE_S = 10.0
_CPU_LOOK_S = 0.1
_COMMAND_OUTCOMES = {True: Outcome.OK, False: Outcome.ERROR}


@dataclass(kw_only=True, slots=True)
class _End:
    """How a run ended, as far as one report says."""

    outcome: Outcome
    exit_code: int = 0
    signal: int | None = None
    value: str | None = None
    value_dropped: int = 0
    threads: int = 0
    interpreter_gone: bool = False


@dataclass(kw_only=True, slots=True)
class _Run:
    """The run that is going on."""

    end: asyncio.Future[_End]
    started_s: float
    cpu_before_s: float | None
    oom_before: int
    number: int  # of all runs of this box, so that an answer cannot be taken for that of another run
    is_command: bool = False
    calls: HostCalls | None = None
    stopped: Outcome | None = None  # why we stopped it, if we did
    killed: bool = False  # the interpreter too, whatever it may still have said
    interpreter_exited: asyncio.Future[None]
    interpreter_lost: bool = False


class ZygoteBox:
    """One warden and its interpreter. Made by `ZygoteDriver`, which has already sent the request to fork."""

    def __init__(
        self,
        policy: Policy,
        *,
        channel: socket.socket,
        control: socket.socket,
        outputs: tuple[int, int],
        slot: Slot | None,
        index: int,
        on_close: Callable[[ZygoteBox], Awaitable[None]],
    ) -> None:
        self._policy = policy
        self._limits = policy.limits
        self.slot = slot
        self._slot_limits = slot.limits if slot is not None else None
        self.index = index  # of the users that are its own
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._output = Output(*outputs, limit_bytes=policy.limits.output_bytes)
        self._channel = self._open_channel(channel)
        self._control = PacketChannel(
            control, on_packet=self._on_packet, on_lost=self._on_control_lost, most_bytes=frames.PACKET_BYTES
        )
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._run: _Run | None = None
        self._interpreter_exited: asyncio.Future[None] = self._loop.create_future()
        self._setup = Setup()
        self._files = FileCalls(self._control, self.kill)
        self._drained: asyncio.Future[dict[str, Any]] | None = None
        self._swept: asyncio.Future[None] | None = None
        self._pidfd = -1
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._fault: str | None = None
        self._runs = 0
        self._interpreter_lost = False  # between two runs; the next one says so
        self._protocol_broken = False
        self._braked = False
        self._processors: Set[int] = frozenset()  # that the warden is pinned to, once it has been moved
        self._forgotten = False
        self.ended_by_guest = False  # the box is dead, and it is no fault of ours

    # Life.

    @property
    def alive(self) -> bool:
        """Whether calls can still succeed."""
        return not self._forgotten and not self._gone.done()

    def adopt(self, pidfd: int) -> None:
        """Watch over the warden from here on. Idempotent."""
        if self._pidfd < 0 and not self._gone.done():
            self._pidfd = pidfd
            self._loop.add_reader(pidfd, self._on_gone)
            if self._forgotten:
                self.kill()

    async def started(self, pidfd: int) -> None:
        """Take over the warden, and wait until its first interpreter is ready."""
        self.adopt(pidfd)
        await self._wait_until_ready()

    def setup(self, setup: Setup) -> None:
        """Prepare the interpreter; at most once, before the first run."""
        self._setup = setup
        self._configure()

    def kill(self, reason: str = "it was closed") -> None:
        """End every process of the box, now. Idempotent; does not wait."""
        self._forgotten = True
        self._fault = self._fault or reason
        if self._pidfd >= 0 and not self._gone.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def close(self) -> None:
        """Kill, wait until nothing is left, and give back what the box held. Idempotent."""
        await self._on_close(self)

    async def end(self) -> None:
        """Kill, wait until nothing is left, and close every descriptor. Idempotent; for the driver."""
        self.kill()
        if self._pidfd >= 0:
            await asyncio.shield(self._gone)
        self._fail_run()
        self._release_brakes()
        self._channel.close()
        self._control.close()
        self._output.close()
        if not self._ready.done():
            self._ready.cancel()
        elif not self._ready.cancelled():
            self._ready.exception()

    def _on_gone(self) -> None:
        """The warden has ended, and with it, the kernel says, every process of its pid namespace."""
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        if not self._gone.done():
            self._gone.set_result(None)
        self._output.finish()
        if not self._ready.done():
            reason = self._output.stderr.take()[0].strip() or "no reason was given"
            self._ready.set_exception(SandboxDied(f"the sandbox could not be entered: {reason}"))
        self._channel.close()
        self._files.on_gone()
        for waiting in (self._drained, self._swept, self._interpreter_exited):
            if waiting is not None and not waiting.done():
                waiting.cancel()
        self._fail_run()

    def _fail_run(self) -> None:
        """The warden is gone. If that is the guest's doing, it is an outcome, else our fault."""
        run = self._run
        if run is None or run.end.done():
            return
        self.ended_by_guest = run.stopped is not None or self._ran_out_of_memory(run)
        if self.ended_by_guest:
            self._fault = "the run before had to be ended together with its warden"
            self._end_run(_End(outcome=Outcome.KILLED, signal=signal.SIGKILL, interpreter_gone=True))
        else:
            run.end.set_exception(SandboxDied(f"the sandbox ended: {self._fault or 'its warden is gone'}"))

    # The interpreter.

    async def run_code(self, source: str, timeout_s: float) -> Result:
        """Run one step."""
        await self._wait_until_ready()
        run = self._begin()
        self._channel.send(frames.RUN, frames.dump({"number": run.number, "code": source}))
        return await self._finish(run, timeout_s)

    async def run_command(
        self, arguments: Sequence[str], *, directory: str, environment: Mapping[str, str], timeout_s: float
    ) -> Result:
        """Run a program to its end, beside the interpreter."""
        await self._wait_until_ready()
        out_read, out_write = open_pipe()
        err_read, err_write = open_pipe()
        kept = self._output
        self._output = Output(out_read, err_read, limit_bytes=self._limits.output_bytes)
        try:
            run = self._begin(is_command=True)
            request = {
                "number": run.number,
                "arguments": list(arguments),
                "directory": directory,
                "environment": dict(environment),
            }
            self._send_command(frames.dump(request), out_write, err_write)
            os.close(out_write)
            os.close(err_write)
            out_write = err_write = -1
            return await self._finish(run, timeout_s)
        finally:
            for descriptor in (out_write, err_write):
                if descriptor >= 0:
                    os.close(descriptor)
            self._output.close()
            self._output = kept

    def _send_command(self, request: bytes, stdout: int, stderr: int) -> None:
        if len(request) < frames.PACKET_BYTES:
            self._control.send(bytes([frames.COMMAND]) + request, [stdout, stderr])
            return
        with open(os.memfd_create("command"), "wb") as file:
            file.write(request)
            file.flush()
            self._control.send(bytes([frames.COMMAND]), [stdout, stderr, file.fileno()])

    def _begin(self, *, is_command: bool = False) -> _Run:
        self._check_alive()
        self._runs += 1
        run = _Run(
            number=self._runs,
            is_command=is_command,
            interpreter_exited=self._interpreter_exited,
            interpreter_lost=self._interpreter_lost,
            end=self._loop.create_future(),
            started_s=time.monotonic(),
            cpu_before_s=self.slot.cpu_s() if self.slot else None,
            oom_before=self.slot.oom_kills() if self.slot else 0,
        )
        self._interpreter_lost = False
        if not is_command:
            rules, functions = self._policy.host_functions, self._setup.functions
            run.calls = HostCalls(rules, functions, self._return)
        self._run = run
        self._output.start(self._on_flood)
        return run

    async def _finish(self, run: _Run, timeout_s: float) -> Result:
        deadline = self._loop.call_later(timeout_s, self._stop, run, Outcome.TIMEOUT)
        look = self._loop.call_later(_CPU_LOOK_S, self._look_at_cpu, run)
        try:
            end = await run.end
            if run.calls is not None:
                run.calls.stop()
            wall_s = time.monotonic() - run.started_s
            if run.stopped is not None and self.alive:
                await self._leave_nothing_running(run, end)
            if self._drained is not None:
                await self._stop_draining()
            self._output.finish()
            return self._result(run, end, wall_s)
        except BaseException:
            self.kill("the call was given up")  # what was started must not go on behind the back of the caller
            raise
        finally:
            deadline.cancel()
            look.cancel()
            if run.calls is not None:
                run.calls.stop()
            self._run = None
            if run.is_command and not self._channel.is_open:
                self._tell(frames.KILL_ALL)  # the interpreter hung up meanwhile
            self._output.pause()
            if self.alive:
                self._release_brakes()

    def _result(self, run: _Run, end: _End, wall_s: float) -> Result:
        outcome = end.outcome
        if run.stopped is not None:
            outcome = run.stopped
        elif end.signal == signal.SIGKILL and self._ran_out_of_memory(run):
            outcome = Outcome.MEMORY
        exit_code = 128 + end.signal if end.signal is not None else end.exit_code
        if run.stopped is not None:
            exit_code = exit_code or 1
        stdout, stdout_dropped = self._output.stdout.take()
        stderr, stderr_dropped = self._output.stderr.take()
        cpu_s = self.slot.cpu_s() if self.slot else None
        return Result(
            outcome=outcome,
            stdout=stdout,
            stderr=stderr,
            exit_code=exit_code,
            signal=end.signal,
            value=end.value,
            state_lost=end.interpreter_gone or run.interpreter_lost,
            workspace_lost=not self.alive,
            truncated=Truncated(
                stdout_bytes=stdout_dropped, stderr_bytes=stderr_dropped, value_bytes=end.value_dropped
            ),
            usage=Usage(
                wall_s=wall_s,
                cpu_s=cpu_s - run.cpu_before_s if cpu_s is not None and run.cpu_before_s is not None else None,
                memory_peak_bytes=self.slot.memory_peak_bytes() if self.slot else None,
            ),
        )

    def _ran_out_of_memory(self, run: _Run) -> bool:
        return self.slot is not None and self.slot.oom_kills() > run.oom_before

    # Stopping a run: interrupt, then kill, then end the sandbox; each step only if the one before was not enough.

    def _stop(self, run: _Run, why: Outcome) -> None:
        if run.end.done() or run.stopped is not None:
            return
        run.stopped = why
        self._brake()
        if run.is_command:
            self._tell(frames.SWEEP)  # the interpreter is not part of a command
            self._loop.call_later(_WARDEN_PATIENCE_S, self._kill_outside, run)
        elif why is Outcome.TIMEOUT:
            self._tell(frames.INTERRUPT)
            self._loop.call_later(self._limits.grace_s, self._kill_inside, run)
        else:
            self._kill_inside(run)

    def _kill_inside(self, run: _Run) -> None:
        if not run.end.done():
            run.killed = True
            self._tell(frames.KILL_ALL)
            self._loop.call_later(_WARDEN_PATIENCE_S, self._kill_outside, run)

    def _kill_outside(self, run: _Run) -> None:
        if not run.end.done():
            self.kill("its warden did not answer")

    def _brake(self) -> None:
        """Nothing new can start, and nobody waits for a share of the processors: not the warden, not the dying."""
        if self._braked:
            return
        self._braked = True
        if self.slot is not None and self._slot_limits is not None:
            self.slot.apply(replace(self._slot_limits, tasks=1, cpu_cores=None))
        elif self.slot is None:
            self._move_warden(os.sched_getaffinity(0))

    def _release_brakes(self) -> None:
        if not self._braked:
            return
        self._braked = False
        if self.slot is not None and self._slot_limits is not None:
            self.slot.apply(self._slot_limits)
        elif self.slot is None:
            self._move_warden(self._processors)

    def _move_warden(self, processors: Set[int]) -> None:
        """Without a cgroup the warden is pinned together with its guest, which may be many."""
        if not self.alive:
            return
        with open(f"/proc/self/fdinfo/{self._pidfd}", encoding="ascii") as file:
            pid = next(int(line.split()[1]) for line in file if line.startswith("Pid:"))
        if pid > 0:  # else it has just died
            with contextlib.suppress(OSError):
                self._processors = self._processors or os.sched_getaffinity(pid)
                os.sched_setaffinity(pid, processors)

    async def _leave_nothing_running(self, run: _Run, end: _End) -> None:
        """A run that was stopped leaves no process but an interpreter that yielded, and no thread in it."""
        if end.interpreter_gone:
            return
        if not end.threads and not run.killed:
            self._swept = self._loop.create_future()
            self._tell(frames.SWEEP)
            either = (self._swept, run.interpreter_exited)
            await asyncio.wait(either, timeout=_WARDEN_PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
            swept, self._swept = self._swept.done() and not self._swept.cancelled(), None
            if swept and not run.interpreter_exited.done():
                return
        end.interpreter_gone = True
        if not run.interpreter_exited.done() and not run.killed:
            self._tell(frames.KILL_ALL)
        if not await _within(run.interpreter_exited, _WARDEN_PATIENCE_S):
            self.ended_by_guest = True
            self.kill("its warden did not answer")

    def _look_at_cpu(self, run: _Run) -> None:
        if run.end.done() or self.slot is None or run.cpu_before_s is None:
            return
        cpu_s = self.slot.cpu_s()
        if cpu_s is not None and cpu_s - run.cpu_before_s > self._limits.cpu_s:
            self._stop(run, Outcome.TIMEOUT)
        else:
            self._loop.call_later(_CPU_LOOK_S, self._look_at_cpu, run)

    def _on_flood(self, stream: Stream) -> None:
        run = self._run
        if run is None or run.end.done():
            return
        if self._policy.output.on_limit == "end":
            self._stop(run, Outcome.OUTPUT_LIMIT)
            return
        if self._drained is None:
            self._drained = self._loop.create_future()
        self._tell(frames.DRAIN, {"stream": stream.name}, [stream.descriptor])

    async def _stop_draining(self) -> None:
        waiting = self._drained
        if waiting is None or not self.alive:
            return
        self._tell(frames.DRAIN_STOP)
        try:
            if not await _within(waiting, _WARDEN_PATIENCE_S):
                self.ended_by_guest = True
                self.kill("its warden did not answer")
            elif not waiting.cancelled():
                counts = waiting.result()
                self._output.stdout.dropped_bytes += whole(counts, "stdout")
                self._output.stderr.dropped_bytes += whole(counts, "stderr")
        finally:
            self._drained = None

    def _tell(self, kind: int, body: dict[str, Any] | None = None, descriptors: Sequence[int] = ()) -> None:
        self._control.send(bytes([kind]) + (frames.dump(body) if body else b""), descriptors)

    def _end_run(self, end: _End) -> None:
        if self._run is not None and not self._run.end.done():
            self._run.end.set_result(end)

    # What arrives from the interpreter.

    def _open_channel(self, end: socket.socket) -> StreamChannel:
        most = 6 * self._limits.value_bytes
        if self._policy.host_functions.names:
            most = max(most, self._policy.host_functions.max_bytes)
        return StreamChannel(end, most_bytes=most, on_frame=self._on_frame, on_lost=self._on_channel_lost)

    def _configure(self) -> None:
        settings = {
            "seed": self._setup.seed,
            "functions": list(self._setup.functions),
            "most_bytes": self._policy.host_functions.max_bytes,
        }
        if self._setup.seed is not None or self._setup.functions:
            self._channel.send(frames.CONFIGURE, frames.dump(settings))

    def _on_frame(self, kind: int, body: bytes) -> None:
        calls = self._run.calls if self._run is not None else None
        if kind == frames.READY and not self._ready.done():
            self._ready.set_result(None)
        elif kind == frames.DONE and calls is not None:
            self._on_report(decode(body))
        elif kind == frames.CALL and calls is not None and self._policy.host_functions.names:
            if self._channel.unsent_bytes > 2 * self._policy.host_functions.max_bytes:
                raise ProtocolError("an interpreter calls the host without reading its answers")
            calls.start(decode(body), len(body))
        else:
            raise ProtocolError(f"a frame of kind {kind} came out of turn")

    def _on_report(self, report: dict[str, Any]) -> None:
        if self._run is None or whole(report, "number") != self._run.number:
            raise ProtocolError("a report of another run than the one that is going on")
        self._end_run(self._checked_report(report))

    def _return(self, body: bytes) -> None:
        self._channel.send(frames.RETURN, body)

    def _checked_report(self, report: dict[str, Any]) -> _End:
        value = report.get("value")
        if value is not None and (type(value) is not str or len(value) > self._limits.value_bytes):
            raise ProtocolError("'value' in a frame from inside is not a short string")
        if report.get("outcome") not in ("ok", "error", "exited", "memory"):
            raise ProtocolError("'outcome' in a frame from inside is none that an interpreter can claim")
        return _End(
            outcome=Outcome(report["outcome"]),
            exit_code=whole(report, "exit_code", most=255),
            value=value,
            value_dropped=whole(report, "value_dropped"),
            threads=whole(report, "threads"),
        )

    def _on_channel_lost(self, error: Exception | None) -> None:
        """The interpreter hung up. In a run, it is ending or has become another program, whose end is the run's."""
        if error is not None:
            self._protocol_broken = True
            _log.warning("a sandbox broke the protocol, its interpreter is replaced: %s", error)
        if self.alive and (error is not None or self._run is None):
            self._tell(frames.KILL_ALL)

    # What arrives from the warden.

    def _on_packet(self, packet: bytes, descriptors: list[int]) -> None:
        for descriptor in descriptors:
            os.close(descriptor)
        kind, body = packet[0], packet[1:]
        if kind == frames.INTERPRETER_EXITED:
            self._on_interpreter_exited(decode(body))
        elif kind == frames.COMMAND_EXITED:
            self._on_command_exited(decode(body))
        elif kind in (frames.FILE_ANSWER, frames.FILE_DATA):
            self._files.on_answer(kind, body)
        elif kind == frames.SWEPT and self._swept is not None and not self._swept.done():
            self._swept.set_result(None)
        elif kind == frames.DRAINED and self._drained is not None and not self._drained.done():
            self._drained.set_result(decode(body))
        elif kind == frames.OVER_LIMIT and self._run is not None:
            self._run.stopped = self._run.stopped or Outcome.MEMORY

    def _on_interpreter_exited(self, how: dict[str, Any]) -> None:
        """Replace it, in the same workspace. The run that it was in, if any, has ended."""
        code, number = whole(how, "exit_code", most=255), whole(how, "signal", most=64)
        if not self._ready.done():
            reason = self._output.stderr
            reason.read_rest()
            self._ready.set_exception(SandboxDied(f"no interpreter could be started: {reason.take()[0].strip()}"))
            self.kill("no interpreter could be started")
            return
        self._interpreter_exited.set_result(None)
        if self._protocol_broken:  # whether our kill came first or it saw its channel closed: it was we who ended it
            self._protocol_broken, number = False, signal.SIGKILL
        self._replace_interpreter()
        if self._run is None:
            self._interpreter_lost = True
        elif self._run.is_command:
            self._run.interpreter_lost = True
        elif number:
            self._end_run(_End(outcome=Outcome.KILLED, signal=number, interpreter_gone=True))
        else:
            self._end_run(_End(outcome=Outcome.EXITED, exit_code=code, interpreter_gone=True))

    def _replace_interpreter(self) -> None:
        self._channel.close()
        self._release_brakes()
        self._ready = self._loop.create_future()
        self._interpreter_exited = self._loop.create_future()
        ours, theirs = socket.socketpair()
        self._channel = self._open_channel(ours)
        self._tell(frames.SPAWN, {}, [theirs.fileno()])
        theirs.close()
        self._configure()

    def _on_command_exited(self, how: dict[str, Any]) -> None:
        code, number = whole(how, "exit_code", most=255), whole(how, "signal", most=64)
        if self._run is None or not self._run.is_command or self._run.number != whole(how, "number"):
            return
        if number:
            self._end_run(_End(outcome=Outcome.KILLED, signal=number))
        else:
            self._end_run(_End(outcome=_COMMAND_OUTCOMES[code == 0], exit_code=code))

    def _on_control_lost(self, error: Exception | None) -> None:
        self.kill(str(error or "its warden hung up"))

    # Files.

    async def write_file(self, path: str, data: bytes, mode: int) -> None:
        """Make or replace a regular file."""
        await self._wait_until_ready()
        await self._files.write(path, data, mode)

    async def read_file(self, path: str, limit_bytes: int) -> bytes:
        """The content of a regular file."""
        await self._wait_until_ready()
        return await self._files.read(path, limit_bytes)

    async def list_files(self, path: str) -> list[FileEntry]:
        """What a directory holds."""
        await self._wait_until_ready()
        return await self._files.entries(path)

    # Waiting.

    async def _wait_until_ready(self) -> None:
        self._check_alive()
        if not self._channel.is_open:  # an interpreter that has just ended must not be given the next step
            await _within(self._interpreter_exited, _WARDEN_PATIENCE_S)
            self._check_alive()
        if not self._ready.done() and not await _within(self._ready, _START_PATIENCE_S):
            self.kill("no interpreter was ready in time")
            raise SandboxDied(f"no interpreter was ready within {_START_PATIENCE_S:g} s")
        self._ready.result()

    def _check_alive(self) -> None:
        if not self.alive:
            raise SandboxDied(f"the sandbox has ended: {self._fault or 'its warden is gone'}")


async def _within(future: asyncio.Future[Any], patience_s: float) -> bool:
    done, _ = await asyncio.wait([future], timeout=patience_s)
    return bool(done)
