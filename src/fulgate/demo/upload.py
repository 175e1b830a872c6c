"""What arrived in a request's body, counted and hashed while it comes, in bounded memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from email.message import Message
from typing import Any

__all__ = ["BadBody", "Digest", "Part", "body_reader", "boundary_of", "digest_parts"]

CHUNK = 65536
MAX_PART_HEAD = 8192
MAX_PARTS = 100


class BadBody(ValueError):
    """The body is not what its Content-Type says, or ended early."""


class Digest:
    """Length and SHA-256 of what was put in."""

    def __init__(self) -> None:
        self.size = 0
        self._hash = hashlib.sha256()

    def update(self, data: bytes) -> None:
        self.size += len(data)
        self._hash.update(data)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


class Part(Digest):
    """One part of a multipart/form-data body (RFC 7578)."""

    def __init__(self, name: str, filename: str | None, content_type: str) -> None:
        super().__init__()
        self.name = name
        self.filename = filename
        self.content_type = content_type


def body_reader(environ: dict[str, Any], total: Digest) -> Callable[[], bytes]:
    """Give a function that reads the next piece of the body, b"" at its end, and counts it.

    Where the server does not end `wsgi.input` itself, CONTENT_LENGTH does.
    """
    read = environ["wsgi.input"].read
    length = environ.get("CONTENT_LENGTH") or "0"
    ended = bool(environ.get("wsgi.input_terminated"))
    left = int(length) if length.isdecimal() else 0

    def next_piece() -> bytes:
        nonlocal left
        piece: bytes = read(CHUNK if ended else min(CHUNK, left))
        left -= len(piece)
        total.update(piece)
        return piece

    return next_piece


def boundary_of(content_type: str) -> bytes | None:
    """Give the boundary of a multipart/form-data body, or None for any other type."""
    message = Message()
    message["Content-Type"] = content_type
    if message.get_content_type() != "multipart/form-data":
        return None
    boundary = message.get_boundary() or ""
    if not re.fullmatch(r"[\x20-\x7e]{0,69}[\x21-\x7e]", boundary):
        raise BadBody("the multipart body has no usable boundary")
    return boundary.encode("ascii")


def digest_parts(next_piece: Callable[[], bytes], boundary: bytes) -> Iterator[Part]:
    """Give each part of a multipart body once it was read to its end (RFC 2046, section 5.1).

    Raises BadBody for a body that is malformed or ends early.
    """
    reader = _Reader(next_piece)
    delimiter = b"\r\n--" + boundary
    for _ in reader.until(delimiter):
        pass  # what is before the first part counts for nothing
    for _ in range(MAX_PARTS):
        if reader.peek(2) == b"--":
            while next_piece():
                pass  # nor does what is behind the last one
            return
        if reader.line().strip(b" \t"):
            raise BadBody("a boundary has something behind it")
        part = _make_part(reader.head())
        for piece in reader.until(delimiter):
            part.update(piece)
        yield part
    raise BadBody(f"more than {MAX_PARTS} parts")


class _Reader:
    """A body, read up to marks. Each method raises BadBody when the body ends before."""

    def __init__(self, next_piece: Callable[[], bytes]) -> None:
        self._next_piece = next_piece
        self._buffer = b"\r\n"  # the first boundary may have nothing before it

    def _more(self) -> None:
        piece = self._next_piece()
        if not piece:
            raise BadBody("the body ended before its last boundary")
        self._buffer += piece

    def until(self, mark: bytes) -> Iterator[bytes]:
        """Give what comes before `mark`, piece by piece, and pass over it."""
        while (at := self._buffer.find(mark)) < 0:
            sure = len(self._buffer) - len(mark) + 1  # the rest may begin a mark
            if sure > 0:
                yield self._buffer[:sure]
                self._buffer = self._buffer[sure:]
            self._more()
        if at:
            yield self._buffer[:at]
        self._buffer = self._buffer[at + len(mark) :]

    def peek(self, n: int) -> bytes:
        while len(self._buffer) < n:
            self._more()
        return self._buffer[:n]

    def line(self) -> bytes:
        """Give a line without its end, and pass over it."""
        while (at := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > MAX_PART_HEAD:
                raise BadBody("the head of a part is too long")
            self._more()
        line, self._buffer = self._buffer[:at], self._buffer[at + 2 :]
        return line

    def head(self) -> dict[str, str]:
        """Give the headers of a part, their names in lower case, and pass over them."""
        headers: dict[str, str] = {}
        size = 0
        while line := self.line():
            size += len(line)
            if size > MAX_PART_HEAD:
                raise BadBody("the head of a part is too long")
            name, _, value = line.decode("utf-8", "replace").partition(":")
            headers[name.strip().lower()] = value.strip()
        return headers


def _make_part(headers: dict[str, str]) -> Part:
    disposition = headers.get("content-disposition", "")
    name = re.search(r';\s*name="([^"]*)"', disposition, re.IGNORECASE)
    filename = re.search(r';\s*filename="([^"]*)"', disposition, re.IGNORECASE)
    return Part(
        _unescape(name[1]) if name else "",
        _unescape(filename[1]) if filename else None,
        headers.get("content-type", ""),
    )


def _unescape(text: str) -> str:
    # What browsers escape in a name (HTML, multipart/form-data encoding algorithm).
    return text.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")
