"""Asks the HTTP socket of a server's setting status_bind."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any
from urllib.parse import urlsplit

from fulgate.errors import BindError, ConfigError

__all__ = ["ask", "document"]

PATIENCE = 10.0  # seconds


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._path)


def _connection(address: str) -> http.client.HTTPConnection:
    if address.startswith("unix:"):
        return _Unix(address.removeprefix("unix:").partition("?")[0])
    if address.startswith("/"):
        return _Unix(address)
    url = address.removeprefix("http://").removeprefix("tcp:").rstrip("/")
    try:
        parts = urlsplit("http://" + url)
        if not parts.hostname or parts.path or "://" in url:
            raise ValueError
        return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=PATIENCE)
    except ValueError:
        raise ConfigError(f"{address!r}: write http://HOST:PORT or unix:PATH") from None


def ask(address: str, target: str) -> tuple[int, str]:
    """Give status and text of the answer. Raises ConfigError, and BindError if nobody answers."""
    connection = _connection(address)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise BindError(f"no status from {address}: {error}") from error
    finally:
        connection.close()


def document(address: str) -> dict[str, Any]:
    """Give the whole status, as `fulgate.processes.status.Status.document` does. Raises as ask."""
    status, text = ask(address, "/status?json&full")
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError:
        raise BindError(f"no status from {address}: it answers {status}, and no JSON") from None
    return found
