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

import _socket
import importlib
import importlib.util
import os
import sys
from typing import NoReturn

from sandbox.guest import frames
from sandbox.zygote import loop, warmup
from sandbox.zygote.settings import HELLO, Settings

_CONTROL = 3
_ABOVE_ANY = 1 << 20


def main(control_descriptor: int) -> NoReturn:
    """Become what the first packet asks for, and serve fork requests until the host hangs up."""
    os.dup2(control_descriptor, _CONTROL, inheritable=False)
    os.closerange(_CONTROL + 1, _ABOVE_ANY)  # nsjail passed them under the host's numbers, which may be high
    control = _socket.socket(fileno=_CONTROL)
    settings = Settings.load(frames.load(control.recv(1 << 20)))
    missing = [name for name in settings.libraries if importlib.util.find_spec(name) is None]
    os.environ.clear()
    os.environ.update(settings.environment)
    for name in (*warmup.STANDARD_LIBRARY, *settings.preload):
        importlib.import_module(name)
    hello = HELLO + frames.dump({"python": sys.version.split()[0], "missing": missing})
    loop.serve(control, settings, hello)
