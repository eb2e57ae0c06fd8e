"""Running, before any fork, what every first step would run: its pages are then shared instead of copied.

What a step touches for the first time is copied or faulted in then, a page at a time, in every sandbox again.
"""

from __future__ import annotations

import _socket
import linecache
import os
import signal
import sys

from sandbox.guest import frames
from sandbox.guest.interpreter import Interpreter
from sandbox.kernel import libc
from sandbox.zygote.settings import Settings

_ROUNDS = 64  # until the adaptive interpreter has specialised what it will: it writes into the code it runs
# What programs import most, and what costs little to keep.
STANDARD_LIBRARY = (
    "bisect",
    "collections",
    "copy",
    "datetime",
    "functools",
    "heapq",
    "itertools",
    "json",
    "math",
    "operator",
    "random",
    "re",
    "string",
    "time",
    "typing",
)
_PROGRAM = """
import math, collections
def f(x):
    return [i * x for i in range(10)]
class C:
    def __init__(self):
        self.y = sum(f(2))
print(C().y, sorted({"a": 1}.items()))
f(3)
"""


def run(settings: Settings) -> None:
    """Take an interpreter in this process through two steps and an exception, with output to /dev/null."""
    ours, theirs = _socket.socketpair()
    null = os.open("/dev/null", os.O_RDWR)
    streams = sys.stdin, sys.stdout, sys.stderr
    modules, main, interrupt = dict(sys.modules), sys.modules["__main__"], signal.getsignal(signal.SIGINT)
    saved = [os.dup(number) for number in range(3)]
    path, argv = list(sys.path), list(sys.argv)
    try:
        _queue_steps(ours)
        interpreter = Interpreter(
            theirs.fileno(),
            saved_streams=(null, null, null),
            value_bytes=settings.value_bytes,
            flush_c_streams=libc.flush_streams,
        )
        interpreter.become_main()
        interpreter.serve()
    finally:
        for number, descriptor in enumerate(saved):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(null)
        ours.close()
        theirs.close()
        sys.modules.update(modules)
        sys.modules["__main__"] = main
        sys.path[:], sys.argv[:] = path, argv
        sys.stdin, sys.stdout, sys.stderr = streams
        linecache.clearcache()
        signal.signal(signal.SIGINT, interrupt)


def _queue_steps(host: _socket.socket) -> None:
    """All steps fit into the socket's buffer, so that no second thread is needed to feed them."""
    for source in (_PROGRAM, "print(1+1)", "1/0", *["print(1+1)"] * _ROUNDS):
        host.sendall(frames.HEADER.pack(frames.RUN, len(body := frames.dump({"code": source}))) + body)
    host.shutdown(_socket.SHUT_WR)
