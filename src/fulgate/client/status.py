"""Asks the HTTP socket of a server's setting status_bind, or for its setting status_path."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fulgate.client.connection import call
from fulgate.errors import BindError, ConfigError, FulgateError

__all__ = ["Source", "ask", "document"]

PATIENCE = 10.0  # seconds


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._path)


@dataclass(frozen=True)
class Source:
    """Where a status is: at an address over HTTP; with a path, at an endpoint, as a request there.

    The methods raise ConfigError, and BindError if nobody answers.
    """

    address: str
    path: str = ""

    def text(self, query: str) -> str:
        """Give the status as text, or what `query` names."""
        return self._get(query)[1]

    def document(self) -> dict[str, Any]:
        """Give it all, as `fulgate.processes.status.Status.document` does."""
        status, text = self._get("json&full")
        try:
            found: dict[str, Any] = json.loads(text)
        except ValueError:
            raise BindError(
                f"no status from {self.address}: it answers {status}, and no JSON"
            ) from None
        return found

    def _get(self, query: str) -> tuple[int, str]:
        if not self.path:
            return ask(self.address, "/status?" + query)
        params = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": self.path,
            "PATH_INFO": "",
            "QUERY_STRING": query,
            "REQUEST_URI": f"{self.path}?{query}",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
        }
        try:
            answer = call(self.address, params, timeout=PATIENCE)
        except ConfigError:
            raise
        except (OSError, FulgateError) as error:
            raise BindError(f"no status from {self.address}: {error}") from error
        return answer.status, answer.text


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
    """Give the whole status of an address. Raises as `Source` does."""
    return Source(address).document()
