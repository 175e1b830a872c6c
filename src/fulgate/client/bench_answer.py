"""Reads the answers that the load generator gets, and says what is wrong with one. No I/O."""

from __future__ import annotations

from typing import Final

from fulgate.client.head import MAX_HEAD, parse_head
from fulgate.errors import ProtocolError
from fulgate.protocols.fastcgi_records import (
    END_REQUEST,
    HEADER_LEN,
    REQUEST_COMPLETE,
    STDERR,
    STDOUT,
    VERSION_1,
    read_header,
)

__all__ = ["AnswerReader", "Wrong"]

KNOWN_HEADS: Final = 256  # heads of answers that are remembered
RAW_LIMIT: Final = 4 << 20  # bytes of an answer, up to which it is kept as it came
PROTOCOL_STATUSES: Final = {1: "CANT_MPX_CONN", 2: "OVERLOADED", 3: "UNKNOWN_ROLE"}

_heads: dict[bytes, tuple[int, int]] = {}  # head: its status and Content-Length, -1 for none


class Wrong(ProtocolError):
    """An answer is not what a web server could pass on. `kind` says in one word what it is."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class AnswerReader:
    """One answer to request 1, from its first byte to END_REQUEST; `bare`: it answers a HEAD."""

    def __init__(self, bare: bool = False) -> None:
        self.status = 0
        self.length = 0  # bytes of the body
        self.app_status = 0
        self._bare = bare
        self._content_length = -1
        self._head = b""
        self._rest = b""  # a record that is not whole yet
        self._raw: list[bytes] = []
        self._raw_size = 0

    @property
    def raw(self) -> bytes:
        """The answer's bytes as they came; b"" where there were too many to keep them."""
        return b"".join(self._raw) if self._raw_size <= RAW_LIMIT else b""

    @property
    def raw_size(self) -> int:
        return self._raw_size

    def feed(self, data: bytes) -> bool:
        """Take bytes; True once the answer is whole. Raises Wrong."""
        self._raw_size += len(data)
        if self._raw_size <= RAW_LIMIT:
            self._raw.append(data)
        else:
            self._raw = []
        if self._rest:
            data = self._rest + data
        pos = 0
        end = len(data)
        while end - pos >= HEADER_LEN:
            version, kind, id, length, padding = read_header(data, pos)
            if version != VERSION_1 or id != 1 or kind not in (STDOUT, STDERR, END_REQUEST):
                raise Wrong("protocol", f"no record of an answer: {data[pos : pos + 16]!r}")
            start = pos + HEADER_LEN
            stop = start + length
            if stop + padding > end:
                break
            pos = stop + padding
            if kind == STDOUT:
                self._stdout(data[start:stop])
            elif kind == END_REQUEST:
                if pos != end:
                    raise Wrong("protocol", f"{end - pos} bytes after END_REQUEST")
                self._end(data[start:stop])
                return True
        self._rest = data[pos:]
        return False

    def _stdout(self, content: bytes) -> None:
        if self.status:
            self.length += len(content)
            return
        self._head += content
        # The line that ends the head; whichever comes first.
        ends = [(at, size) for size, at in ((4, self._head.find(b"\r\n\r\n")),
                                            (2, self._head.find(b"\n\n"))) if at >= 0]  # fmt: skip
        if not ends:
            if len(self._head) > MAX_HEAD:
                raise Wrong("protocol", f"the answer's head is longer than {MAX_HEAD} bytes")
            return
        at, size = min(ends)
        head = self._head[:at]
        found = _heads.get(head)
        if found is None:
            found = _read_head(head)
        self.status, self._content_length = found
        self.length = len(self._head) - at - size
        self._head = b""

    def _end(self, content: bytes) -> None:
        if len(content) != 8:
            raise Wrong("protocol", f"END_REQUEST of {len(content)} bytes")
        self.app_status = int.from_bytes(content[:4], "big")
        if content[4] != REQUEST_COMPLETE:
            name = PROTOCOL_STATUSES.get(content[4], str(content[4]))
            raise Wrong("refused", f"the request was refused: protocolStatus {name}")
        if not self.status:
            raise Wrong("protocol", "the answer ended without a head")
        if self._content_length >= 0 and self.length != self._content_length and not self._bodyless:
            raise Wrong(
                "length",
                f"a body of {self.length} bytes with Content-Length {self._content_length}",
            )

    @property
    def _bodyless(self) -> bool:
        return self._bare or self.status in (204, 304)


def _read_head(head: bytes) -> tuple[int, int]:
    try:
        read = parse_head(head)
    except ProtocolError as error:
        raise Wrong("protocol", str(error)) from None
    found = read.status, int(read.get("Content-Length", "-1"))
    if len(_heads) < KNOWN_HEADS:
        _heads[head] = found
    return found
