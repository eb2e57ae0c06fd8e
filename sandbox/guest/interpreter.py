"""The interpreter: runs guest code, step after step, in one namespace that lives as long as this process.

It is hostile from the first step on: guest code can read and change everything here. Nothing in this file is a
wall. What it owes is fidelity: code behaves as in `python`, and whatever it does to itself, the next step starts
with standard streams that work.
"""

from __future__ import annotations

import _ast
import _signal
import _thread
import gc
import linecache
import os
import random
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

from sandbox.guest import frames

_LARGE_SOURCE_CHARS = 1 << 20  # a syntax tree of Python objects costs about 100 times its source
_REMEMBERED_SOURCE_CHARS = 4 << 20
_SHOWN_FRAMES = 1000  # as many as `python` shows

# Guest code may replace any function of any module. What is needed to answer it is bound before it runs.
_dup2, _exit, _getpid, _write = os.dup2, os._exit, os.getpid, os.write
_pthread_sigmask, _thread_count = _signal.pthread_sigmask, _thread._count
_SIG_BLOCK, _SIG_SETMASK = int(_signal.SIG_BLOCK), int(_signal.SIG_SETMASK)
_EVERY_SIGNAL = _signal.valid_signals()


class HostFunctionError(RuntimeError):
    """A function of the host refused the call, failed, or ran out of time."""


HostFunctionError.__module__ = "builtins"  # this module cannot be imported by guest code, which should not see it


class Interpreter:
    """Runs the steps that arrive on `channel`; see `serve`."""

    def __init__(
        self,
        channel: int,
        *,
        saved_streams: tuple[int, int, int],
        value_bytes: int,
        flush_c_streams: Callable[[], None],
    ) -> None:
        self._stream = frames.Stream(channel)
        self._saved_streams = saved_streams
        self._value_bytes = value_bytes
        self._flush_c_streams = flush_c_streams
        self._main = types.ModuleType("__main__")
        self._main.__dict__["__builtins__"] = sys.modules["builtins"]
        self._pid = 0
        self._steps = 0
        self._calls = 0
        self._most_bytes = 0  # of a call
        self._lines = linecache.cache
        self._remembered: dict[str, int] = {}
        self._running = False
        self._call_lock = _thread.allocate_lock()
        self._standard = _standard_streams()

    def become_main(self) -> None:
        """Make this process look like `python` with nothing run yet. Once, before forking: it is shared then."""
        sys.modules["__main__"] = self._main
        for name in [name for name in sys.modules if name.partition(".")[0] == "sandbox"]:
            del sys.modules[name]
        sys.path[:] = ["", *(entry for entry in sys.path if entry and not entry.startswith("/proc"))]
        sys.argv[:] = [""]
        self._install_streams()

    def serve(self) -> None:
        """Answer frames until the host hangs up."""
        self._pid = _getpid()
        _signal.signal(_signal.SIGINT, self._on_interrupt)
        gc.enable()
        reseed_numpy(None)  # sandboxes must not share its global generator; `random` looks after itself
        self._stream.send(frames.READY, b"{}")
        while (frame := self._stream.receive()) is not None:
            kind, body = frame
            if kind == frames.RUN:
                self._answer(frames.load(body))
            elif kind == frames.CONFIGURE:
                self._configure(frames.load(body))

    def _configure(self, settings: dict[str, Any]) -> None:
        if settings.get("seed") is not None:
            seed_generators(settings["seed"])
        self._most_bytes = settings.get("most_bytes", 0)
        for name in settings.get("functions", ()):
            self._main.__dict__[name] = self._host_function(name)

    def _answer(self, request: dict[str, Any]) -> None:
        self._steps += 1
        self._restore_descriptors()
        if not all(map(_is_usable, self._standard)):
            self._standard = _standard_streams()
        self._install_streams()
        report = self._run(request["code"], f"<step {self._steps}>")
        report["number"] = request.get("number", 0)
        self._flush()
        if _getpid() != self._pid:  # guest code forked and the child came back here
            _exit(report["exit_code"])
        report["threads"] = _thread_count()
        with self._call_lock:  # a thread may still be waiting for the answer of a host function
            self._stream.send(frames.DONE, frames.dump(report))

    # Standard streams.

    def _restore_descriptors(self) -> None:
        for number, saved in enumerate(self._saved_streams):
            _dup2(saved, number)

    def _install_streams(self) -> None:
        sys.stdin, sys.stdout, sys.stderr = self._standard
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = self._standard  # type: ignore[misc]

    def _flush(self) -> None:
        """Write out what was printed and buffered, wherever guest code has sent it."""
        self._attempt(lambda: _flush_all(sys.stdout, sys.stderr))
        if self._attempt(lambda: _flush_all(*self._standard[1:]))[1] is not None:
            self._restore_descriptors()  # it closed them; what is in the buffers would come out in the next step
            self._attempt(lambda: _flush_all(*self._standard[1:]))
        self._flush_c_streams()

    # One step.

    def _run(self, source: str, name: str) -> dict[str, Any]:
        report: dict[str, Any] = {"outcome": "ok", "exit_code": 0}
        _, failure = self._attempt(lambda: self._execute(source, name, report))
        if failure is None:
            return report
        kind = type(failure)  # isinstance() would ask the object itself
        report.pop("value", None)
        if issubclass(kind, SystemExit):
            code, _ = self._attempt(lambda: _exit_code(failure))
            report |= {"outcome": "exited", "exit_code": 1 if code is None else code}
            return report
        report |= {"outcome": "memory" if issubclass(kind, MemoryError) else "error", "exit_code": 1}
        self._show(failure)
        return report

    def _attempt(self, work: Callable[[], Any]) -> tuple[Any, BaseException | None]:
        """Call something that runs guest code, which the host may interrupt: its result, or what it raised."""
        result, failure = None, None
        try:
            self._running = True
            result = work()
            self._running = False
        except BaseException as error:
            self._running = False
            failure = error
        for _ in range(2):  # a tracer that raises is removed by that
            try:
                sys.settrace(None)
                sys.setprofile(None)
            except BaseException:  # noqa: S112
                continue
        return result, failure

    def _execute(self, source: str, name: str, report: dict[str, Any]) -> None:
        namespace = self._main.__dict__
        self._remember(name, source)
        last: _ast.expr | None = None
        if len(source) <= _LARGE_SOURCE_CHARS:
            tree: Any = compile(source, name, "exec", _ast.PyCF_ONLY_AST, dont_inherit=True)
            if tree.body and isinstance(tree.body[-1], _ast.Expr):
                last = tree.body.pop().value
            body = compile(tree, name, "exec", dont_inherit=True) if tree.body else None
            del tree
        else:
            body = compile(source, name, "exec", dont_inherit=True)
        value_code = compile(_ast.Expression(last), name, "eval", dont_inherit=True) if last is not None else None
        if body is not None:
            exec(body, namespace)  # noqa: S102 - what this process is for
        if value_code is None:
            return
        value = eval(value_code, namespace)  # noqa: S307
        if value is not None:
            self._report_value(str.__str__(repr(value)), report)

    def _report_value(self, text: str, report: dict[str, Any]) -> None:
        """As much of it as may be kept, in whole characters."""
        raw = text if text.isascii() else text.encode("utf-8", "backslashreplace")
        kept = raw[: self._value_bytes]
        report["value"] = kept if isinstance(kept, str) else kept.decode("utf-8", "ignore")
        report["value_dropped"] = len(raw) - len(report["value"].encode())

    def _remember(self, name: str, source: str) -> None:
        """Let tracebacks show the lines of this step, also those of its functions that run in a later one."""
        if len(source) > _REMEMBERED_SOURCE_CHARS:
            return
        self._remembered[name] = len(source)
        self._lines[name] = (len(source), None, source.splitlines(keepends=True), name)
        while sum(self._remembered.values()) > _REMEMBERED_SOURCE_CHARS:
            oldest = next(iter(self._remembered))
            del self._remembered[oldest]
            self._lines.pop(oldest, None)

    def _show(self, failure: BaseException) -> None:
        """Print the traceback of guest code. Formatting runs guest code again (`__str__`), so it can be interrupted."""
        text, _ = self._attempt(lambda: _formatted(failure))
        if text is None:
            name, _ = self._attempt(lambda: type(failure).__name__)
            text = f"{name or 'an exception'}: (the traceback could not be formatted)\n"
        self._attempt(lambda: _flush_all(self._standard[2]))
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        try:
            while data:
                data = data[_write(2, data) :]
        except OSError:
            return  # guest code closed its standard error; the report says enough

    def _on_interrupt(self, signum: int, frame: object) -> None:
        if self._running:
            raise KeyboardInterrupt

    # Host functions.

    def _host_function(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            request: dict[str, Any] = {"name": name, "args": args, "kwargs": kwargs}
            with self._call_lock:
                if not self._running or _getpid() != self._pid:
                    raise HostFunctionError(f"{name}() can be called only by a step while it runs")
                self._calls += 1
                request["number"] = self._calls
                body = frames.dump(request)
                if len(body) > self._most_bytes:
                    raise HostFunctionError(f"{name}(): the arguments are larger than {self._most_bytes} bytes")
                answer = self._ask_host(self._calls, body)
            if answer is None:
                raise HostFunctionError(f"{name}(): the host hung up")
            if "error" in answer:
                raise HostFunctionError(f"{name}(): {answer['error']}")
            return answer["value"]

        call.__name__ = call.__qualname__ = name
        call.__module__ = "__main__"
        call.__doc__ = "Ask the host. Arguments and the result are JSON."
        return call

    def _ask_host(self, number: int, body: bytes) -> dict[str, Any] | None:
        """Send a call and wait for its own answer: that of an earlier call, which was interrupted, is passed over."""
        _whole(lambda: self._stream.send(frames.CALL, body))
        while True:
            self._stream.wait()
            frame = _whole(self._stream.receive)
            if frame is None:
                return None
            answer = frames.load(frame[1])
            if answer.get("number") == number:
                return answer


def _whole(work: Callable[[], Any]) -> Any:
    """Without a signal handler of the guest in between: a frame that is cut off by an exception ends the sandbox."""
    before = _pthread_sigmask(_SIG_BLOCK, _EVERY_SIGNAL)
    try:
        return work()
    finally:
        _pthread_sigmask(_SIG_SETMASK, before)


def _formatted(failure: BaseException) -> str:
    """The traceback, without the frames of this file in it or in what it was caused by."""
    kind = type(failure)
    whole = traceback.TracebackException(kind, failure, failure.__traceback__, limit=-_SHOWN_FRAMES, compact=True)
    todo = [whole]
    while todo:
        each = todo.pop()
        each.stack[:] = [frame for frame in each.stack if frame.filename != __file__]
        causes = (each.__cause__, each.__context__, *(getattr(each, "exceptions", None) or ()))
        todo += [cause for cause in causes if cause is not None]
    lines = list(whole.format())
    if not whole.stack and lines and lines[0].startswith("Traceback"):
        del lines[0]  # a syntax error: nothing has run
    return "".join(lines)


def seed_generators(seed: int) -> None:
    """Seed `random` now, and numpy's global generator now or as soon as it is imported."""
    random.seed(seed)
    if not reseed_numpy(seed):
        sys.meta_path.insert(0, _SeedOnImport(seed % 2**32))


def reseed_numpy(seed: int | None) -> bool:
    """Seed numpy's global generator, from the kernel's entropy for None. False if numpy is not there yet."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is None:
        return False
    numpy_random.seed(None if seed is None else seed % 2**32)
    return True


class _SeedOnImport:
    """Finds `numpy.random` as the others would, and seeds it once it is there. Importing numpy costs 70 ms."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "numpy.random":
            return None
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader.exec_module = self._seeding(spec.loader.exec_module)  # type: ignore[method-assign, assignment]
                return spec
        return None

    def _seeding(self, execute: Callable[[Any], None]) -> Callable[[Any], None]:
        def exec_module(module: Any) -> None:
            execute(module)
            module.seed(self._seed)

        return exec_module


def _standard_streams() -> tuple[Any, Any, Any]:
    """Text streams as `python` makes them where the locale is C.UTF-8, but written at every newline.

    What a killed step has printed is then not lost with it.
    """
    return (
        open(0, encoding="utf-8", errors="surrogateescape", closefd=False),
        open(1, "w", buffering=1, encoding="utf-8", errors="surrogateescape", closefd=False),
        open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False),
    )


def _is_usable(stream: Any) -> bool:
    try:
        return not stream.closed
    except ValueError:  # detached from its buffer
        return False


def _flush_all(*streams: Any) -> None:
    """Flush each, and then raise what the last of those that failed has raised."""
    failure: BaseException | None = None
    for stream in streams:
        try:
            stream.flush()
        except BaseException as error:  # guest code chose what this object is
            failure = error
    if failure is not None:
        raise failure


def _exit_code(error: Any) -> int:
    """What `python` would exit with; may run guest code."""
    code = error.code
    if code is None:
        return 0
    if issubclass(type(code), int):
        number = int.__index__(code)
        return number & 0xFF if -(2**63) <= number < 2**63 else 0xFF
    sys.stderr.write(f"{code}\n")
    return 1
