"""An HTTP client that says and shows exactly what is on the wire."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Protocol

PATIENCE = 30.0  # seconds


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Message[str, str]
    body: bytes


def request(
    port: int,
    target: str,
    method: str = "GET",
    body: bytes | Iterable[bytes] | None = None,
    headers: dict[str, str] | None = None,
    chunked: bool = False,
) -> Answer:
    """Make one request on a connection of its own; `target` goes out as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.putrequest(method, target, skip_accept_encoding=True)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        if chunked:
            connection.putheader("Transfer-Encoding", "chunked")
        elif isinstance(body, bytes):
            connection.putheader("Content-Length", str(len(body)))
        # A server may answer, and close, before all of a body has been sent.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.endheaders(body, encode_chunked=chunked)
        with connection.getresponse() as response:
            return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def eventually(holds: Callable[[], object], what: str) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"never: {what}")
        time.sleep(0.005)


def appears(path: Path) -> str:
    """Wait until a file is there and not empty; give its text."""
    eventually(lambda: path.exists() and path.stat().st_size, f"{path} comes")
    return path.read_text()


class Logs(Protocol):
    def log(self) -> str: ...


def logs(server: Logs, text: str) -> None:
    """Wait until a server's log has a text: it may be there only after the answer."""
    eventually(lambda: text in server.log(), f"{text!r} is logged")
