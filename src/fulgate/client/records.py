"""Records as they pass on a connection, told apart and put into words. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fulgate.errors import ProtocolError, Refused
from fulgate.exchange import Role
from fulgate.protocols.fastcgi_records import (
    ABORT_REQUEST,
    BEGIN_REQUEST,
    DATA,
    END_REQUEST,
    GET_VALUES,
    GET_VALUES_RESULT,
    HEADER_LEN,
    KEEP_CONN,
    PARAMS,
    STDERR,
    STDIN,
    STDOUT,
    UNKNOWN_TYPE,
    VERSION_1,
    decode_pairs,
    read_header,
)

__all__ = ["Describer", "PlainDescriber", "Record", "RecordReader", "printable"]

NAMES: Final = {
    BEGIN_REQUEST: "BEGIN_REQUEST",
    ABORT_REQUEST: "ABORT_REQUEST",
    END_REQUEST: "END_REQUEST",
    PARAMS: "PARAMS",
    STDIN: "STDIN",
    STDOUT: "STDOUT",
    STDERR: "STDERR",
    DATA: "DATA",
    GET_VALUES: "GET_VALUES",
    GET_VALUES_RESULT: "GET_VALUES_RESULT",
    UNKNOWN_TYPE: "UNKNOWN_TYPE",
}
STREAMS: Final = frozenset({PARAMS, STDIN, STDOUT, STDERR, DATA})


@dataclass(frozen=True, slots=True)
class Record:
    """One record (FastCGI 1.0, section 3.3)."""

    kind: int
    id: int
    content: bytes
    padding: int = 0

    @property
    def name(self) -> str:
        return NAMES.get(self.kind, f"type {self.kind}")


class RecordReader:
    """Cuts the bytes of one direction into records, whatever their types and ids."""

    def __init__(self) -> None:
        self.rest = b""  # the beginning of a record that is not whole

    def feed(self, data: bytes) -> list[Record]:
        """Take bytes, and give the records that end in them. Raises ProtocolError."""
        data = self.rest + data
        found: list[Record] = []
        pos = 0
        while len(data) - pos >= HEADER_LEN:
            version, kind, id, length, padding = read_header(data, pos)
            if version != VERSION_1:
                self.rest = data[pos:]
                raise ProtocolError(f"no record of FastCGI: {data[pos : pos + 32]!r}")
            start = pos + HEADER_LEN
            if start + length + padding > len(data):
                break
            found.append(Record(kind, id, data[start : start + length], padding))
            pos = start + length + padding
        self.rest = data[pos:]
        return found


class Describer:
    """Puts the records of one direction into lines of text.

    A stream of PARAMS is shown as its pairs once it has ended; of other streams only their sizes
    are shown, of FCGI_STDERR also the text, and of FCGI_STDOUT the head.
    """

    def __init__(self) -> None:
        self._params: dict[int, bytes] = {}
        self._past_head: set[int] = set()  # the requests whose answers' heads have ended

    def lines(self, record: Record) -> list[str]:
        """Give the lines for a record; those after the first are indented."""
        first = record.name + (f" {record.id}" if record.id else "")
        kind, content = record.kind, record.content
        more: list[str] = []
        if kind == BEGIN_REQUEST and len(content) == 8:
            role = int.from_bytes(content[:2], "big")
            first += f": {Role(role).name if role in list(Role) else f'role {role}'}"
            first += ", KEEP_CONN" if content[2] & KEEP_CONN else ""
        elif kind == END_REQUEST and len(content) == 8:
            app_status, status = int.from_bytes(content[:4], "big"), content[4]
            name = Refused.NAMES[status] if status < len(Refused.NAMES) else str(status)
            first += f": {name}, appStatus {app_status}"
        elif kind in (GET_VALUES, GET_VALUES_RESULT):
            more = _pairs(content)
        elif kind == UNKNOWN_TYPE and len(content) == 8:
            first += f": {content[0]}"
        elif kind in STREAMS and not content:
            first += ": end"
        elif kind != ABORT_REQUEST or content:
            first += f": {len(content):,} bytes"
        if kind == PARAMS:
            more = self._of_params(record)
        elif kind == STDERR:
            more = [printable(line) for line in content.splitlines()]
        elif kind == STDOUT:
            more = self._of_head(record)
        elif kind == END_REQUEST:
            self._past_head.discard(record.id)
        if record.padding:
            first += f", padding {record.padding}"
        return [first, *("  " + line for line in more)]

    def _of_params(self, record: Record) -> list[str]:
        if record.content:
            self._params[record.id] = self._params.get(record.id, b"") + record.content
            return []
        return _pairs(self._params.pop(record.id, b""))

    def _of_head(self, record: Record) -> list[str]:
        if record.id in self._past_head:
            return []
        lines: list[str] = []
        for line in record.content.split(b"\n"):
            line = line.removesuffix(b"\r")
            if not line:
                self._past_head.add(record.id)
                break
            lines.append(printable(line))
        return lines


class PlainDescriber:
    """Puts the bytes of an SCGI connection into lines of text: those that went, and that came."""

    def __init__(self) -> None:
        self._head = b""  # of the request, as far as it went
        self._body = False
        self._of_answer = Describer()

    def sent(self, data: bytes) -> list[str]:
        """Give the lines for bytes of the request."""
        if self._body:
            return [f"body: {len(data):,} bytes"]
        self._head += data
        digits, _, rest = self._head.partition(b":")
        size = int(digits) if digits.isdigit() else 0
        if len(rest) <= size:
            return []
        self._body = True
        fields = rest[:size].split(b"\0")
        pairs = zip(fields[0:-1:2], fields[1::2], strict=False)
        lines = [f"headers: {size:,} bytes"]
        lines += ["  " + printable(name + b"=" + value) for name, value in pairs]
        return lines + (self.sent(rest[size + 1 :]) if len(rest) > size + 1 else [])

    def received(self, data: bytes) -> list[str]:
        """Give the lines for bytes of the answer."""
        lines = self._of_answer.lines(Record(STDOUT, 0, data))
        return [f"answer: {len(data):,} bytes", *lines[1:]]


def _pairs(content: bytes) -> list[str]:
    try:
        pairs = decode_pairs(content)
    except ProtocolError as error:
        return [f"({error})"]
    return [printable(f"{name}={value}".encode("latin-1")) for name, value in pairs]


def printable(data: bytes) -> str:
    """Give bytes as text that a terminal shows and does not obey."""
    text = data.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
