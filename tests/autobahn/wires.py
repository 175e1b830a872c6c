"""Ways to a server that echoes: over FastCGI as lighttpd passes a WebSocket on, and over HTTP."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any

from tests.model import STDIN
from tests.raw import PATIENCE, Raw, head, record

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455, section 1.3
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


class Wire:
    """A WebSocket that is open, as bytes. `extensions` are what the server agreed to."""

    extensions = ""

    def send(self, data: bytes) -> None:
        raise NotImplementedError

    def receive(self) -> bytes:
        """Give what comes next; b"" once the server has ended. Raises TimeoutError."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def opened(self, text: bytes, status: bytes) -> None:
        """Check the answer to the handshake. `text` ends before the empty line."""
        lines = text.split(b"\r\n")
        assert lines[0] == status, text
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, _, value = line.decode("ascii").partition(":")
            assert name.lower() not in headers, text
            headers[name.lower()] = value.strip()
        assert headers["sec-websocket-accept"] == ACCEPT.decode()
        self.extensions = headers.get("sec-websocket-extensions", "")


class FastCGIWire(Wire):
    """`address` is that of a FastCGI server: what lighttpd would send, and nothing between."""

    def __init__(self, address: Any, offers: str = "") -> None:
        self.raw = Raw(address)
        self.answer = self.raw.expect()
        params = {
            "HTTP_UPGRADE": "websocket",
            "HTTP_CONNECTION": "upgrade",
            "HTTP_SEC_WEBSOCKET_KEY": KEY,
            "HTTP_SEC_WEBSOCKET_VERSION": "13",
            "CONTENT_LENGTH": "0",
            "SERVER_SOFTWARE": "lighttpd/1.4.79",
        }
        if offers:
            params["HTTP_SEC_WEBSOCKET_EXTENSIONS"] = offers
        self.raw.send(head("/", keep=False, **params))
        self.raw.until(1, b"\r\n\r\n")
        text, _, self.answer.stdout = self.answer.stdout.partition(b"\r\n\r\n")
        self.opened(text, b"Status: 101 Switching Protocols")

    def send(self, data: bytes) -> None:
        for at in range(0, len(data), 60_000):
            self.raw.send(record(STDIN, 1, data[at : at + 60_000]))

    def receive(self) -> bytes:
        until = time.monotonic() + PATIENCE
        while not self.answer.stdout and not self.answer.ended:
            assert self.raw.receive(until), "closed without END_REQUEST"
        data, self.answer.stdout = self.answer.stdout, b""
        return data

    def close(self) -> None:
        self.raw.socket.close()


class HTTPWire(Wire):
    """A web server on a port of loopback."""

    def __init__(self, port: int, offers: str = "") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lines = [
            "GET / HTTP/1.1",
            "Host: localhost",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {KEY}",
            "Sec-WebSocket-Version: 13",
        ]
        if offers:
            lines.append(f"Sec-WebSocket-Extensions: {offers}")
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self.rest = b""
        while b"\r\n\r\n" not in self.rest:
            data = self.socket.recv(65536)
            assert data, f"closed after {self.rest!r}"
            self.rest += data
        text, _, self.rest = self.rest.partition(b"\r\n\r\n")
        first = text.partition(b"\r\n")[0]
        assert first.startswith(b"HTTP/1.1 101 "), text
        self.opened(text, first)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self) -> bytes:
        data, self.rest = self.rest, b""
        if not data:
            # By one that had not read all of what was wrong.
            with contextlib.suppress(ConnectionResetError):
                data = self.socket.recv(1 << 18)
        return data

    def close(self) -> None:
        self.socket.close()
