"""Fork hooks of the standard library (`random` reseeds itself, `threading` forgets threads), put off.

They would run in every warden and again in every interpreter. Imported before anything that registers some, this module
records them; an interpreter then runs them once, and registers them for the forks that guest code makes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

_register = os.register_at_fork
_recorded: list[dict[str, Callable[[], Any]]] = []


def record() -> None:
    """From here on, keep hooks instead of registering them."""

    def keep(**hooks: Callable[[], Any]) -> None:
        _recorded.append(hooks)

    os.register_at_fork = keep  # type: ignore[assignment]


def catch_up() -> None:
    """In the child: do what the hooks would have done, and register them."""
    os.register_at_fork = _register
    for hooks in _recorded:
        if "after_in_child" in hooks:
            hooks["after_in_child"]()
        _register(**hooks)
