"""flup.server: one module for each way of serving."""

from __future__ import annotations

__all__ = ["NoDefault"]


class NoDefault:
    """What an argument has that was not given."""
