"""Frames of RFC 6455 in plain sight: a client's, right or wrong, and a reader of a server's.

It shares no code with wsproto, which is what reads and writes them in the server.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MASK = b"\x5a\x01\xfe\x80"


@dataclass(frozen=True)
class Frame:
    opcode: int
    payload: bytes = b""

    def __repr__(self) -> str:
        shown = self.payload if len(self.payload) < 40 else f"{len(self.payload)} bytes"
        return f"<{self.opcode}: {shown!r}>"


def length(size: int) -> tuple[int, bytes]:
    """Give the seven bits of a payload's length, and what follows them (section 5.2)."""
    if size < 126:
        return size, b""
    if size < 65536:
        return 126, struct.pack(">H", size)
    return 127, struct.pack(">Q", size)


def frame(opcode: int, payload: bytes = b"", fin: bool = True, rsv: int = 0) -> bytes:
    """Give a frame as a client sends it: masked. Nothing is checked."""
    short, long = length(len(payload))
    mask = (MASK * (len(payload) // 4 + 1))[: len(payload)]
    masked = int.from_bytes(payload) ^ int.from_bytes(mask)
    head = bytes([fin << 7 | rsv << 4 | opcode, 0x80 | short]) + long
    return head + MASK + masked.to_bytes(len(payload))


def close(code: int | None = 1000, reason: bytes = b"") -> bytes:
    return frame(CLOSE, b"" if code is None else struct.pack(">H", code) + reason)


class Reader:
    """Reads what a server sends without an extension: whole frames, neither masked nor reserved."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> list[Frame]:
        self.rest += data
        found: list[Frame] = []
        while (one := self._one()) is not None:
            found.append(one)
        return found

    def _one(self) -> Frame | None:
        data = self.rest
        if len(data) < 2:
            return None
        assert data[0] & 0x70 == 0, "a reserved bit is set"
        assert data[0] & 0x80, "a message in fragments, which nothing asks for"
        assert data[1] < 128, "a server masks nothing"
        size, start = data[1], 2
        if size > 125:
            format = ">H" if size == 126 else ">Q"
            start = 2 + struct.calcsize(format)
            if len(data) < start:
                return None
            (size,) = struct.unpack(format, data[2:start])
        if len(data) < start + size:
            return None
        self.rest = data[start + size :]
        return Frame(data[0] & 15, data[start : start + size])
