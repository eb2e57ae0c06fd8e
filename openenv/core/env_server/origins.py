"""Which web pages may talk to the server.

A browser names the page's origin; other clients do not. A page of another host could otherwise drive a
server that runs on its visitor's own machine, because WebSocket upgrades and plain form posts are not
subject to CORS.
"""

from collections.abc import Iterable
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}

RawHeaders = Iterable[tuple[bytes, bytes]]


class OriginPolicy:
    """Lets pass: no origin, the server's own origin, and those on the list (`*`: any)."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._allowed = frozenset(origin.rstrip("/").lower() for origin in allowed)

    def allows(self, headers: RawHeaders) -> bool:
        """Whether a request with these ASGI headers may proceed."""
        values = {b"origin": "", b"host": ""}
        for name, value in headers:
            if name in values:
                values[name] = value.decode("latin-1").strip().lower()
        origin = values[b"origin"]
        if not origin or "*" in self._allowed or origin in self._allowed:
            return True
        return _same_host(origin, values[b"host"])


def _same_host(origin: str, host: str) -> bool:
    try:
        page, server = urlsplit(origin), urlsplit(f"//{host}")
        default = _DEFAULT_PORTS.get(page.scheme)
        return (
            bool(page.hostname)
            and page.hostname == server.hostname
            and (page.port or default) == (server.port or default)
        )
    except ValueError:  # not an origin at all, such as "null" or a broken port
        return False
