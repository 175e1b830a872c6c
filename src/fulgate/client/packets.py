"""Packets of AJP as they pass on a connection, put into words. No I/O."""

from __future__ import annotations

from typing import Final

from fulgate.client.records import printable
from fulgate.errors import ProtocolError
from fulgate.protocols.ajp_packets import (
    CPING,
    CPONG,
    END_RESPONSE,
    FORWARD_REQUEST,
    GET_BODY_CHUNK,
    SECRET,
    SEND_BODY_CHUNK,
    SEND_HEADERS,
    TO_APPLICATION,
    TO_SERVER,
    PacketReader,
    decode_forward,
    decode_head,
)

__all__ = ["PacketDescriber"]

ATTRIBUTES: Final = (
    "context", "servlet_path", "remote_user", "auth_type", "query_string", "route", "ssl_cert",
    "ssl_cipher", "ssl_session", "req_attribute", "ssl_key_size", "secret", "stored_method",
)  # fmt: skip


class PacketDescriber:
    """Puts the packets of a connection into lines of text: those that went, and that came."""

    def __init__(self) -> None:
        self._sent = PacketReader(TO_APPLICATION)
        self._received = PacketReader(TO_SERVER)
        self._of_body = False  # a request runs: what goes is its body

    def sent(self, data: bytes) -> list[str]:
        """Give the lines for bytes of the web server's. Raises ProtocolError."""
        return [line for content in self._sent.feed(data) for line in self._request(content)]

    def received(self, data: bytes) -> list[str]:
        """Give the lines for bytes of the application's. Raises ProtocolError."""
        return [line for content in self._received.feed(data) for line in self._answer(content)]

    def _request(self, content: bytes) -> list[str]:
        if self._of_body:
            size = max(0, len(content) - 2)
            return [f"body: {size:,} bytes" if size else "body: end"]
        if content[:1] == bytes((CPING,)):
            return ["CPING"]
        if content[:1] != bytes((FORWARD_REQUEST,)):
            return [f"type {content[0] if content else 'none'}: {len(content):,} bytes"]
        self._of_body = True
        try:
            forward = decode_forward(content)
        except ProtocolError as error:
            return [f"FORWARD_REQUEST: {len(content):,} bytes", f"  ({error})"]
        lines = [f"{forward.method} {forward.uri} {forward.protocol}"]
        lines += [f"{name}: {value}" for name, value in forward.headers]
        for code, value in forward.attributes.items():
            shown = "..." if code == SECRET else value
            lines.append(f"{ATTRIBUTES[code - 1]}={shown}")
        lines += [f"{name}={value}" for name, value in forward.named]
        return [f"FORWARD_REQUEST: {len(content):,} bytes", *_indented(lines)]

    def _answer(self, content: bytes) -> list[str]:
        kind = content[0] if content else 0
        if kind == SEND_HEADERS:
            try:
                head = decode_head(content)
            except ProtocolError as error:
                return [f"SEND_HEADERS: {len(content):,} bytes", f"  ({error})"]
            lines = [f"{name}: {value}" for name, value in head.headers]
            return [printable(f"SEND_HEADERS: {head.status}".encode()), *_indented(lines)]
        if kind == SEND_BODY_CHUNK:
            size = max(0, len(content) - 4)
            return [f"SEND_BODY_CHUNK: {size:,} bytes" if size else "SEND_BODY_CHUNK: flush"]
        if kind == GET_BODY_CHUNK:
            return [f"GET_BODY_CHUNK: up to {int.from_bytes(content[1:3], 'big'):,} bytes"]
        if kind == END_RESPONSE:
            self._of_body = False
            return ["END_RESPONSE: " + ("reuse" if content[1:2] == b"\1" else "close")]
        if kind == CPONG:
            return ["CPONG"]
        return [f"type {kind}: {len(content):,} bytes"]


def _indented(lines: list[str]) -> list[str]:
    return ["  " + printable(line.encode("latin-1")) for line in lines]
