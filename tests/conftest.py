"""Fixtures that several folders of tests share."""

from __future__ import annotations

from .boxes import box, nothing_is_left, shared_pool

__all__ = ["box", "nothing_is_left", "shared_pool"]
