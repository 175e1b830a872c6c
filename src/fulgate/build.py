"""Which build this is: with its hot modules compiled (see setup.py), or pure Python."""

from __future__ import annotations

from typing import Final

from fulgate import exchange

__all__ = ["BUILD", "COMPILED"]

COMPILED: Final = not exchange.__file__.endswith(".py")
BUILD: Final = "compiled" if COMPILED else "pure Python"
