"""The head of a CGI answer, as a web server reads it (RFC 3875, section 6). No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from fulgate.errors import ProtocolError

__all__ = ["HasHead", "Head", "HeadReader", "parse_head"]

MAX_HEAD: Final = 65536
MAX_LENGTH_DIGITS: Final = 18  # of a Content-Length; more than any file has

_token = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch  # RFC 9110, section 5.6.2
_bad_value = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
_status = re.compile(rb"([1-5][0-9][0-9])(?:[ \t]+(.*))?").fullmatch

# Twice the same of these, and two readers may understand two things.
SINGLE: Final = frozenset({b"status", b"location", b"content-length", b"content-type"})


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers of an answer, without the `Status` field itself.

    `headers` are in their order, as they were written; `reason` may be "".
    """

    status: int
    reason: str
    headers: list[tuple[bytes, bytes]]

    @property
    def texts(self) -> list[tuple[str, str]]:
        """The headers as text, decoded as latin-1."""
        return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.headers]

    def get(self, name: str, default: str = "") -> str:
        """Give the first value of a header, whatever the case of its name."""
        wanted = name.lower().encode("latin-1")
        for key, value in self.headers:
            if key.lower() == wanted:
                return value.decode("latin-1")
        return default


class HasHead:
    """What an answer says of its head, however its body is read."""

    __slots__ = ()

    head: Head

    @property
    def status(self) -> int:
        return self.head.status

    @property
    def reason(self) -> str:
        return self.head.reason

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The headers in their order, without `Status`."""
        return self.head.texts

    def header(self, name: str, default: str = "") -> str:
        """Give the first value of a header, whatever the case of its name."""
        return self.head.get(name, default)


class HeadReader:
    """Takes the bytes of STDOUT until the head is whole.

    Lines end in LF or CR LF. Raises ProtocolError for what is no head, and beyond `limit` bytes.
    """

    def __init__(self, limit: int = MAX_HEAD) -> None:
        self._limit = limit
        self._data = bytearray()
        self._line = 0  # where the line begins that is not whole yet
        self._seen = 0  # what was searched of it already

    def feed(self, data: bytes) -> tuple[Head, bytes] | None:
        """Take bytes; give the head and what is behind it, or None until it is whole."""
        buffer = self._data
        buffer += data
        while (end := buffer.find(b"\n", self._seen)) >= 0:
            line = buffer[self._line : end]
            self._line = self._seen = end + 1
            if not line or line == b"\r":
                if end >= self._limit:
                    break
                return parse_head(bytes(buffer[:end])), bytes(buffer[end + 1 :])
        self._seen = len(buffer)
        if len(buffer) > self._limit:
            raise ProtocolError(f"the answer's head is longer than {self._limit} bytes")
        return None


def parse_head(data: bytes) -> Head:
    """Read a head; `data` ends before or with its empty line. Raises ProtocolError."""
    fields: list[tuple[bytes, bytes]] = []
    single: dict[bytes, bytes] = {}
    for line in data.split(b"\n"):
        line = line.removesuffix(b"\r")
        if not line:
            continue
        name, colon, value = line.partition(b":")
        if not colon or not _token(name):
            # A folded line ends here too; RFC 3875, section 6.3, has none.
            what = "HTTP, not CGI" if line.startswith(b"HTTP/") else "no header"
            raise ProtocolError(f"the answer's head is broken: {line[:80]!r} is {what}")
        value = value.strip(b" \t")
        if _bad_value(value):
            raise ProtocolError(f"the answer's head has a control character in {name!r}")
        lower = name.lower()
        if lower in SINGLE:
            if lower in single:
                raise ProtocolError(f"the answer's head has {name!r} twice")
            single[lower] = value
        if lower != b"status":
            fields.append((name, value))
    if not fields and not single:
        raise ProtocolError("the answer's head is empty")
    return _make_head(fields, single)


def _make_head(fields: list[tuple[bytes, bytes]], single: dict[bytes, bytes]) -> Head:
    length = single.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > MAX_LENGTH_DIGITS:
        raise ProtocolError(f"the answer's Content-Length is no number: {length[:80]!r}")
    if b"status" not in single:
        # RFC 3875, sections 6.2.2 to 6.2.4: Location alone is a redirect, nothing is 200.
        if b"location" in single:
            return Head(302, "Found", fields)
        return Head(200, "OK", fields)
    match = _status(single[b"status"])
    if match is None:
        raise ProtocolError(f"the answer's status is none: {single[b'status'][:80]!r}")
    return Head(int(match[1]), (match[2] or b"").decode("latin-1"), fields)
