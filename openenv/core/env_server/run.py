"""Runs an application in uvicorn with the options that sessions need."""

from collections.abc import Sequence
from typing import Any

from openenv.core._limits import MAX_MESSAGE_BYTES, PING_INTERVAL_S, PING_TIMEOUT_S

GRACEFUL_SHUTDOWN_S = 10


def uvicorn_options() -> dict[str, Any]:
    """Keyword arguments of `uvicorn.Config` for an environment server.

    Pings find clients that vanished without a word; frames as large as a client accepts may also be sent;
    frames are not compressed, which costs more time than it saves on the way to a trainer.
    """
    return {
        "ws": "websockets-sansio",
        "ws_max_size": MAX_MESSAGE_BYTES,
        "ws_ping_interval": PING_INTERVAL_S,
        "ws_ping_timeout": PING_TIMEOUT_S,
        "ws_per_message_deflate": False,
        "timeout_graceful_shutdown": GRACEFUL_SHUTDOWN_S,
        "access_log": False,
    }


def run_server(
    app: Any,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    reload: bool = False,
    reload_dirs: Sequence[str] | None = None,
    log_level: str = "warning",
) -> None:
    """Serve `app` (an application or its import string) until a signal ends it.

    Sessions live in this one process: more worker processes would each have their own. At log level `info`
    every connection writes a line or two, which a trainer that opens hundreds per second pays for.

    Raises:
        SystemExit: it could not start, for example because the port is taken.
    """
    import uvicorn

    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level=log_level,
        reload=reload,
        reload_dirs=list(reload_dirs) if reload and reload_dirs else None,
        **uvicorn_options(),
    )
