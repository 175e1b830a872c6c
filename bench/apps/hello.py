"""The applications that every peer serves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

StartResponse = Callable[[str, list[tuple[str, str]]], object]

BODY = b"hello world\n"
HEADERS = [("Content-Type", "text/plain"), ("Content-Length", "12")]


def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Answer with 12 bytes."""
    start_response("200 OK", HEADERS.copy())
    return [BODY]
