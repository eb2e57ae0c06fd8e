"""A coding server in a process of its own, for as long as a block lasts.

The server lives no longer than the one that wants it: it ends when its standard input does, however that
happens. It is in a session of its own, so that Ctrl-C reaches only the one that then stops it.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import httpx

__all__ = ["lean_policy", "running_server"]

_START_S = 60.0
_STOP_S = 15.0


@contextlib.contextmanager
def lean_policy(**pool: object) -> Iterator[str]:
    """The path of the shipped policy without its libraries, for the length of the block.

    Nothing that is measured here imports them, and they are a large download. Libraries that are only
    installed, not preloaded, change no figure. `pool` replaces settings of that section.
    """
    from envs.coding_env.server.settings import DEFAULT_POLICY
    from sandbox import Policy

    policy = Policy.load(DEFAULT_POLICY).replace(template={"libraries": ()}, pool=pool)
    descriptor = os.memfd_create("policy.toml")  # a file that cannot be left behind
    try:
        os.write(descriptor, policy.describe().encode())
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def running_server(policy_path: str) -> Iterator[str]:
    """The base URL of a server under this policy."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.server", str(listener.fileno())],
            env={**os.environ, "CODING_ENV_POLICY": policy_path},
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
    try:
        _wait_until_healthy(process, url)
        yield url
    finally:
        _stop(process)


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server did not start (exit status {process.returncode}); see above")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=1.0).is_success:
                return
        time.sleep(0.05)
    raise SystemExit(f"the server did not answer within {_START_S:g} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _serve(descriptor: int) -> None:
    import uvicorn

    from envs.coding_env.server.app import app
    from openenv.core.env_server.run import uvicorn_options

    def end_with_parent() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, daemon=True).start()
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", **uvicorn_options()))
    server.run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
