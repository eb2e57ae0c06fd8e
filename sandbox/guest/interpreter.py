"""The interpreter: runs guest code, step after step, in one namespace that lives as long as this process.

It is hostile from the first step on: guest code can read and change everything here. Nothing in this file is a
wall. What it owes is fidelity: code behaves as in `python`, and whatever it does to itself, the next step starts
with standard streams that work.
"""

from __future__ import annotations

import _thread
import ast
import gc
import linecache
import os
import random
import signal
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

from sandbox.guest import frames

_LARGE_SOURCE_CHARS = 1 << 20  # a syntax tree of Python objects costs about 100 times its source
_REMEMBERED_SOURCE_CHARS = 4 << 20


class HostFunctionError(RuntimeError):
    """A function of the host refused the call, failed, or ran out of time."""


class Interpreter:
    """Runs the steps that arrive on `channel`; see `serve`."""

    def __init__(
        self, channel: int, *, saved_streams: tuple[int, int, int], value_bytes: int, flush_c_streams: Callable[[], None]
    ) -> None:
        self._stream = frames.Stream(channel)
        self._saved_streams = saved_streams
        self._value_bytes = value_bytes
        self._flush_c_streams = flush_c_streams
        self._main = types.ModuleType("__main__")
        self._main.__dict__["__builtins__"] = sys.modules["builtins"]
        self._pid = 0
        self._steps = 0
        self._remembered: dict[str, int] = {}
        self._running = False
        self._interrupted = False
        self._call_lock = _thread.allocate_lock()
        self._standard = (
            open(0, encoding="utf-8", closefd=False),  # noqa: SIM115
            _writer(1, "strict"),
            _writer(2, "backslashreplace"),
        )

    def become_main(self) -> None:
        """Make this process look like `python` with nothing run yet. Once, before forking: it is shared then."""
        sys.modules["__main__"] = self._main
        for name in [name for name in sys.modules if name.partition(".")[0] == "sandbox"]:
            del sys.modules[name]
        sys.path[:] = ["", *(entry for entry in sys.path if entry and not entry.startswith("/proc"))]
        sys.argv[:] = [""]
        sys.stdin, sys.stdout, sys.stderr = self._standard

    def serve(self) -> None:
        """Answer frames until the host hangs up."""
        self._pid = os.getpid()
        signal.signal(signal.SIGINT, self._on_interrupt)
        gc.enable()
        self._stream.send(frames.READY, b"{}")
        while (frame := self._stream.receive()) is not None:
            kind, body = frame
            if kind == frames.RUN:
                self._answer(frames.load(body)["code"])
            elif kind == frames.CONFIGURE:
                self._configure(frames.load(body))

    def _configure(self, settings: dict[str, Any]) -> None:
        if settings.get("seed") is not None:
            seed_generators(settings["seed"])
        for name in settings.get("functions", ()):
            self._main.__dict__[name] = self._host_function(name)

    def _answer(self, source: str) -> None:
        self._steps += 1
        self._interrupted = False
        self._restore_streams()
        report = self._run(source, f"<step {self._steps}>")
        for stream in (sys.stdout, sys.stderr, *self._standard[1:]):
            try:
                stream.flush()
            except BaseException:  # noqa: BLE001, S112 - guest code chose what this object is
                continue
        self._flush_c_streams()
        if os.getpid() != self._pid:  # guest code forked and the child came back here
            os._exit(report["exit_code"])
        report["threads"] = _thread._count()
        with self._call_lock:  # a thread may still be waiting for the answer of a host function
            self._stream.send(frames.DONE, frames.dump(report))

    def _restore_streams(self) -> None:
        for number, saved in enumerate(self._saved_streams):
            os.dup2(saved, number)
        if any(stream.closed for stream in self._standard):
            self._standard = (
                open(0, encoding="utf-8", closefd=False),  # noqa: SIM115
                _writer(1, "strict"),
                _writer(2, "backslashreplace"),
            )
        sys.stdin, sys.stdout, sys.stderr = self._standard

    def _run(self, source: str, name: str) -> dict[str, Any]:
        report: dict[str, Any] = {"outcome": "ok", "exit_code": 0}
        failure: BaseException | None = None
        try:
            self._running = True
            self._execute(source, name, report)
            self._running = False
        except BaseException as error:  # noqa: BLE001
            self._running = False
            failure = error
        if failure is None:
            return report
        if isinstance(failure, SystemExit):
            report |= {"outcome": "exited", "exit_code": _exit_code(failure)}
            return report
        report |= {"outcome": "memory" if isinstance(failure, MemoryError) else "error", "exit_code": 1}
        report["interrupted"] = self._interrupted and isinstance(failure, KeyboardInterrupt)
        self._show(failure)
        return report

    def _execute(self, source: str, name: str, report: dict[str, Any]) -> None:
        namespace = self._main.__dict__
        self._remember(name, source)
        last: ast.expr | None = None
        if len(source) <= _LARGE_SOURCE_CHARS:
            tree = compile(source, name, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
            if tree.body and isinstance(tree.body[-1], ast.Expr):
                last = tree.body.pop().value
            body = compile(tree, name, "exec", dont_inherit=True) if tree.body else None
            del tree
        else:
            body = compile(source, name, "exec", dont_inherit=True)
        value_code = compile(ast.Expression(last), name, "eval", dont_inherit=True) if last is not None else None
        if body is not None:
            exec(body, namespace)  # noqa: S102 - what this process is for
        if value_code is None:
            return
        value = eval(value_code, namespace)  # noqa: S307
        if value is not None:
            text = repr(value)
            if len(text) > self._value_bytes:
                report["value_dropped"] = len(text) - self._value_bytes
                text = text[: self._value_bytes]
            report["value"] = text

    def _remember(self, name: str, source: str) -> None:
        """Let tracebacks show the lines of this step, also those of its functions that run in a later one."""
        if len(source) > _REMEMBERED_SOURCE_CHARS:
            return
        self._remembered[name] = len(source)
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        while sum(self._remembered.values()) > _REMEMBERED_SOURCE_CHARS:
            oldest = next(iter(self._remembered))
            del self._remembered[oldest]
            linecache.cache.pop(oldest, None)

    def _show(self, failure: BaseException) -> None:
        """Print the traceback of guest code. Formatting runs guest code again (`__str__`), so it can be interrupted."""
        try:
            self._running = True
            shown = failure.__traceback__
            while shown is not None and shown.tb_frame.f_code.co_filename == __file__:
                shown = shown.tb_next
            lines = traceback.format_exception(type(failure), failure, shown)
            self._running = False
            text = "".join(lines)
        except BaseException:  # noqa: BLE001
            self._running = False
            text = f"{type(failure).__name__}: (the traceback could not be formatted)\n"
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        try:
            self._standard[2].flush()
            while data:
                data = data[os.write(2, data) :]
        except (OSError, ValueError):
            return  # guest code closed its standard error; the report says enough

    def _on_interrupt(self, signum: int, frame: object) -> None:
        if self._running:
            self._interrupted = True
            raise KeyboardInterrupt

    def _host_function(self, name: str) -> Callable[..., Any]:
        stream, lock = self._stream, self._call_lock

        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._running or os.getpid() != self._pid:
                raise HostFunctionError(f"{name}() can be called only by a step while it runs")
            request = frames.dump({"name": name, "args": args, "kwargs": kwargs})
            with lock:
                stream.send(frames.CALL, request)
                frame = stream.receive()
            if frame is None:
                raise HostFunctionError(f"{name}(): the host hung up")
            answer = frames.load(frame[1])
            if "error" in answer:
                raise HostFunctionError(f"{name}(): {answer['error']}")
            return answer["value"]

        call.__name__ = call.__qualname__ = name
        call.__doc__ = "Ask the host. Arguments and the result are JSON."
        return call


def seed_generators(seed: int) -> None:
    """Seed `random` now, and numpy's global generator now or as soon as it is imported."""
    random.seed(seed)
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed(seed % 2**32)
    else:
        sys.meta_path.insert(0, _SeedOnImport(seed % 2**32))


class _SeedOnImport:
    """Finds `numpy.random` as the others would, and seeds it once it is there. Importing numpy costs 70 ms."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "numpy.random":
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                execute = spec.loader.exec_module

                def exec_module(module: Any) -> None:
                    execute(module)
                    module.seed(self._seed)

                spec.loader.exec_module = exec_module  # type: ignore[method-assign]
                return spec
        return None


def _writer(descriptor: int, errors: str) -> Any:
    """A text stream that writes at every newline, so that what a killed step has printed is not lost with it."""
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    try:
        sys.stderr.write(f"{error.code}\n")
    except BaseException:  # noqa: BLE001
        return 1
    return 1
