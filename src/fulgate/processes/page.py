"""The status page: one file of HTML that asks for the JSON beside it, each second."""

from __future__ import annotations

from importlib.resources import files

__all__ = ["PAGE"]

PAGE = files("fulgate.processes").joinpath("status.html").read_bytes()
