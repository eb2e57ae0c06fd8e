"""The warden: pid 1 of a sandbox. Our code only; it never runs a line of the guest's.

It starts interpreters and commands, reports how they ended, interrupts and kills when the host says so, reaps what
was orphaned, and answers file calls with the guest's rights. The hot path does not pass through it.

The kernel discards every signal that the guest sends to pid 1 and for which pid 1 has no handler, SIGKILL included;
SIGCHLD, the only one handled here, does no more than a look at who has ended. pid_namespaces(7).
"""

from __future__ import annotations

import _signal
import contextlib
import errno
import fcntl
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from sandbox.guest import files, frames
from sandbox.guest.watchdog import Watchdog

_SPLICE_BYTES = 1 << 20
_ANCILLARY_BYTES = 64
_FIONREAD = 0x541B
_GENERATIONS, _SWEEP_S, _TRIES, _PAUSE_S = 50, 0.3, 100, 0.001
_CHILDREN = (_signal.SIGCHLD,)


class Programs:
    """How to start what runs beside the warden. Each call forks, enters the inner wall, and returns the pid."""

    def __init__(
        self, *, interpreter: Callable[[int], int], command: Callable[[dict[str, Any], int, int], int]
    ) -> None:
        self.interpreter = interpreter  # (channel)
        self.command = command  # (request, stdout, stderr)


class Warden:
    """Serves the host until it hangs up, which ends the sandbox. Made before forking, like all that can be shared."""

    def __init__(self, programs: Programs, *, guest_id: int | None, watchdog: Watchdog | None) -> None:
        self._programs = programs
        self._guest_id = guest_id  # None if there is a single id
        self._watchdog = watchdog
        self._control: Any = None
        self._poll = select.poll()
        self._interpreter = 0
        self._commands: dict[int, int] = {}  # pid to the host's number
        self._upload: int | None = None
        self._upload_error: OSError | None = None
        self._drained: dict[int, str] = {}  # read ends of what prints too much, and which stream each is
        self._dropped: dict[str, int] = {}  # bytes thrown away

    def run(self, control: Any, first_channel: int) -> NoReturn:
        """Start the first interpreter, then serve."""
        self._control = control
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _CHILDREN)
        _signal.signal(_signal.SIGCHLD, self._reap)
        self._spawn(first_channel)
        self._poll.register(self._control.fileno(), select.POLLIN)
        pause_ms = self._watchdog.interval_ms if self._watchdog else None
        while True:
            # The handler runs only between these two lines, so that it never meets a half-done call.
            _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _CHILDREN)
            ready = self._poll.poll(pause_ms)
            _signal.pthread_sigmask(_signal.SIG_BLOCK, _CHILDREN)
            for descriptor, _ in ready:
                if descriptor == self._control.fileno():
                    self._serve_one()
                elif descriptor in self._drained:
                    self._drain_one(descriptor)
            if self._watchdog is not None and (reason := self._watchdog.check()) is not None:
                self._send(frames.OVER_LIMIT, {"reason": reason})
                sweep(keep=0)  # until all are dead: what the dying still hold would be held against the next one

    def _serve_one(self) -> None:
        packet, ancillary, _, _ = self._control.recvmsg(frames.PACKET_BYTES, _ANCILLARY_BYTES)
        if not packet:
            os._exit(0)  # the host is gone; the kernel kills the rest of a pid namespace with its pid 1
        kind, body = packet[0], packet[1:]
        if kind == frames.FILE_DATA:
            self._write_chunk(body)
            return
        request = frames.load(body) if body else {}
        if kind in (frames.FILE_WRITE, frames.FILE_END, frames.FILE_READ, frames.FILE_LIST):
            self._file_call(kind, request)
        else:
            self._order(kind, request, _descriptors(ancillary))

    def _order(self, kind: int, request: dict[str, Any], passed: list[int]) -> None:
        match kind:
            case frames.SPAWN:
                self._spawn(passed[0])
            case frames.INTERRUPT if self._interpreter:  # pid 0 would be this process group
                os.kill(self._interpreter, _signal.SIGINT)
            case frames.SWEEP:
                if sweep(keep=self._interpreter):
                    self._send(frames.SWEPT, {})
            case frames.KILL_ALL:
                kill_all()
            case frames.COMMAND:
                self._command(request, passed)
            case frames.DRAIN:
                self._start_draining(request["stream"], passed[0])
            case frames.DRAIN_STOP:
                self._stop_draining()

    def _spawn(self, channel: int) -> None:
        self._wait_until_alone()
        self._interpreter = _patiently(lambda: self._programs.interpreter(channel))
        os.close(channel)

    def _wait_until_alone(self) -> None:
        """What the dying still hold, memory and pids, would be missing from the next interpreter."""
        while True:
            try:
                pid, status = os.waitpid(-1, 0)  # orphans become children of pid 1: none left means nobody left
            except ChildProcessError:
                return
            self._account(pid, status)

    def _command(self, request: dict[str, Any], passed: list[int]) -> None:
        stdout, stderr, *long_request = passed
        for descriptor in long_request:
            request = frames.load(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
            os.close(descriptor)
        try:
            pid = _patiently(lambda: self._programs.command(request, stdout, stderr))
            self._commands[pid] = request["number"]
        except OSError as error:  # the guest has taken all pids, or all memory
            os.write(stderr, f"{request['arguments'][0]}: {os.strerror(error.errno or 0)}\n".encode("utf-8", "replace"))
            self._send(frames.COMMAND_EXITED, {"number": request["number"], "exit_code": 126})
        os.close(stdout)
        os.close(stderr)

    def _reap(self, signum: int, frame: object) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._account(pid, status)

    def _account(self, pid: int, status: int) -> None:
        if pid == self._interpreter:
            self._interpreter = 0
            kill_all()  # an interpreter takes what it started with it
            self._send(frames.INTERPRETER_EXITED, _how(status))
        elif pid in self._commands:
            self._send(frames.COMMAND_EXITED, {"number": self._commands.pop(pid), **_how(status)})

    # Output beyond the limit is thrown away here, in the sandbox's own share of the processors.

    def _start_draining(self, stream: str, descriptor: int) -> None:
        if not self._drained:
            self._null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        self._drained[descriptor] = stream
        self._dropped[stream] = 0
        with contextlib.suppress(OSError):  # fewer turns; refused only where the user's pipes are many already
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _SPLICE_BYTES)
        self._poll.register(descriptor, select.POLLIN)

    def _drain_one(self, descriptor: int, most: int = _SPLICE_BYTES) -> None:
        try:
            moved = os.splice(descriptor, self._null, most, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return
        self._dropped[self._drained[descriptor]] += moved
        if not moved:
            self._poll.unregister(descriptor)  # every writer is gone

    def _stop_draining(self) -> None:
        """Throw away what is there now. Who goes on printing, prints into the next run."""
        for descriptor in self._drained:
            rest = int.from_bytes(fcntl.ioctl(descriptor, _FIONREAD, bytes(4)), sys.byteorder)
            if rest:
                self._drain_one(descriptor, rest)
            with contextlib.suppress(KeyError):
                self._poll.unregister(descriptor)
            os.close(descriptor)
        if self._drained:
            os.close(self._null)
        self._drained.clear()
        self._send(frames.DRAINED, self._dropped)
        self._dropped = {}

    # File calls.

    def _file_call(self, kind: int, request: dict[str, Any]) -> None:
        try:
            with self._as_guest():
                answer = self._file_answer(kind, request)
        except OSError as error:
            answer = {"errno": error.errno, "path": error.filename}
        except ValueError:  # a path that cannot be one: the host has checked, but this process must not die of it
            answer = {"errno": errno.EINVAL, "path": ""}
        if answer is not None:
            self._send(frames.FILE_ANSWER, answer)

    def _file_answer(self, kind: int, request: dict[str, Any]) -> dict[str, Any] | None:
        if kind == frames.FILE_WRITE:
            self._upload_error = None
            try:
                self._upload = files.open_for_writing(request["path"], request["mode"])
            except OSError as error:
                self._upload_error = error  # answered when all of it has arrived
            return None
        if kind == frames.FILE_END:
            if self._upload is not None:
                os.close(self._upload)
            self._upload = None
            if self._upload_error is not None:
                raise self._upload_error
            return {}
        if kind == frames.FILE_READ:
            self._send_file(request["path"], request["limit_bytes"])
            return None
        for entry in files.entries(request["path"]):
            self._send(frames.FILE_ANSWER, {"entry": entry})
        return {}

    def _write_chunk(self, data: bytes) -> None:
        if self._upload is None or self._upload_error is not None:
            return
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._upload, rest) :]
        except OSError as error:
            self._upload_error = error

    def _send_file(self, path: str, limit_bytes: int) -> None:
        descriptor, size = files.open_for_reading(path)
        try:
            if size > limit_bytes:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
            sent = 0
            while sent <= limit_bytes and (data := os.read(descriptor, frames.FILE_CHUNK_BYTES)):
                sent += len(data)
                self._control.send(bytes([frames.FILE_DATA]) + data)
        finally:
            os.close(descriptor)
        self._send(frames.FILE_ANSWER, {})

    @contextlib.contextmanager
    def _as_guest(self) -> Iterator[None]:
        """Touch files as the guest's user: what the guest cannot open, the warden cannot open for it."""
        if self._guest_id is None:
            yield
            return
        os.setegid(self._guest_id)
        os.seteuid(self._guest_id)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)

    def _send(self, kind: int, body: dict[str, Any]) -> None:
        try:
            self._control.send(bytes([kind]) + frames.dump(body))
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    data = ancillary[0][2] if ancillary else b""
    return [int.from_bytes(data[start : start + 4], sys.byteorder) for start in range(0, len(data), 4)]


def kill_all() -> None:
    """Kill every process of this pid namespace but the warden. kill(2), pid -1."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, _signal.SIGKILL)


def sweep(*, keep: int) -> bool:
    """Kill every process but the warden and `keep`, and wait for their end.

    Who multiplies faster than a list can be read takes `keep` with it: then the answer is no.
    """
    killed: set[int] = set()
    generations = 0
    give_up_s = time.monotonic() + _SWEEP_S
    while generations < _GENERATIONS and time.monotonic() < give_up_s:
        found = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        doomed = {pid for pid in found if pid not in (1, keep) and not _is_zombie(pid)}
        if not doomed:
            return True
        generations += not doomed <= killed
        killed |= doomed
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, _signal.SIGKILL)
        time.sleep(_PAUSE_S)
    kill_all()
    return False


def _patiently(fork: Callable[[], int]) -> int:
    """Fork, and while the dead still count against the limit of processes, try again."""
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            return fork()
        time.sleep(_PAUSE_S)
    return fork()


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True


def _how(status: int) -> dict[str, Any]:
    if os.WIFSIGNALED(status):
        return {"signal": os.WTERMSIG(status)}
    return {"exit_code": os.WEXITSTATUS(status)}
