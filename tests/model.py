"""FastCGI 1.0 read slowly and plainly, from the text of the specification alone.

Fast code is held to what is here, and raw clients read by it. The numbers in brackets are sections
of the specification, or statements of the conformance list.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

(BEGIN_REQUEST, ABORT_REQUEST, END_REQUEST, PARAMS, STDIN, STDOUT, STDERR, DATA) = range(1, 9)
(GET_VALUES, GET_VALUES_RESULT, UNKNOWN_TYPE) = range(9, 12)
(REQUEST_COMPLETE, CANT_MPX_CONN, OVERLOADED, UNKNOWN_ROLE) = range(4)


class Broken(Exception):
    """The other side broke the rules."""


class Record(NamedTuple):
    kind: int
    id: int
    content: bytes


def need(rule: bool, why: str) -> None:
    if not rule:
        raise Broken(why)


class Reader:
    """Takes bytes and gives records [3.3]."""

    def __init__(self) -> None:
        self.data = b""

    def records(self, data: bytes) -> Iterator[Record]:
        self.data += data
        while len(self.data) >= 8:
            version, kind, id, length, padding = struct.unpack(">BBHHBx", self.data[:8])
            need(version == 1, f"version {version}")
            if len(self.data) < 8 + length + padding:
                return
            content = self.data[8 : 8 + length]
            self.data = self.data[8 + length + padding :]
            yield Record(kind, id, content)


def read_pairs(data: bytes) -> list[tuple[bytes, bytes]]:
    """Read name-value pairs [3.4]."""
    pairs = []
    while data:
        lengths = []
        for _ in range(2):
            size = 4 if data[:1] >= b"\x80" else 1
            need(len(data) >= size, "a length is cut short")
            lengths.append(int.from_bytes(data[:size], "big") & 0x7FFFFFFF)
            data = data[size:]
        name, value = lengths
        need(len(data) >= name + value, "a pair is cut short")
        pairs.append((data[:name], data[name : name + value]))
        data = data[name + value :]
    return pairs


def end_request(id: int, protocol_status: int, app_status: int = 0) -> Record:
    return Record(END_REQUEST, id, struct.pack(">IB3x", app_status, protocol_status))


# What an application reads


@dataclass
class Request:
    id: int
    keep: bool
    block: bytes = b""  # the value of PARAMS, as far as it came
    params_ended: bool = False
    stdin: bytes = b""
    stdin_ended: bool = False
    aborted: bool = False

    @property
    def complete(self) -> bool:
        return self.params_ended and self.stdin_ended


class Application(Reader):
    """Reads what a web server sends to an application that serves Responders only."""

    def __init__(
        self, values: Mapping[bytes, bytes], multiplex: bool, max_requests: int = 65535
    ) -> None:
        super().__init__()
        self.max_requests = max_requests
        self.values = values
        self.multiplex = multiplex
        self.active: dict[int, Request] = {}
        self.begun: list[Request] = []
        self.owed: list[Record] = []
        self.closing = False

    def read(self, data: bytes) -> None:
        for record in self.records(data):
            if record.id == 0:
                self.management(record)
            elif record.id not in self.active:
                if record.kind == BEGIN_REQUEST:  # all else is ignored [3.3]
                    self.begin(record)
            else:
                self.application(self.active[record.id], record)

    def management(self, record: Record) -> None:
        content = bytes([record.kind]) + bytes(7)
        kind = UNKNOWN_TYPE  # [4.2]
        if record.kind == GET_VALUES:  # [4.1]
            asked = dict(read_pairs(record.content))
            known = [(name, self.values[name]) for name in asked if name in self.values]
            content = b"".join(bytes([len(n), len(v)]) + n + v for n, v in known)
            kind = GET_VALUES_RESULT
        self.owed.append(Record(kind, 0, content))

    def begin(self, record: Record) -> None:
        need(len(record.content) == 8, "BEGIN_REQUEST of a wrong length [R1]")
        role, flags = struct.unpack(">HB5x", record.content)
        keep = bool(flags & 1)  # [5.1]
        if role != 1:  # [5.5]
            self.owed.append(end_request(record.id, UNKNOWN_ROLE))
            self.closing |= not keep and not self.active
        elif self.active and not self.multiplex:
            self.owed.append(end_request(record.id, CANT_MPX_CONN))
        elif self.active and (self.closing or len(self.active) >= self.max_requests):
            self.owed.append(end_request(record.id, OVERLOADED))
        else:
            self.active[record.id] = Request(record.id, keep)
            self.begun.append(self.active[record.id])

    def application(self, request: Request, record: Record) -> None:
        need(record.kind != BEGIN_REQUEST, "BEGIN_REQUEST of an active id [R4]")
        if record.kind == ABORT_REQUEST:  # [5.4]
            request.aborted = True
            self.owed.append(end_request(request.id, REQUEST_COMPLETE))
            self.ended(request.id)
        elif record.kind == PARAMS:  # [5.2]
            need(not request.params_ended, "PARAMS after their end")
            request.block += record.content
            if not record.content:
                read_pairs(request.block)
                request.params_ended = True
        elif record.kind == STDIN:  # [5.3, 6.2]
            need(request.params_ended, "STDIN before the end of PARAMS")
            need(not request.stdin_ended, "STDIN after its end")
            request.stdin += record.content
            request.stdin_ended = not record.content

    def ended(self, id: int) -> None:
        """Take note that END_REQUEST was sent."""
        self.closing |= not self.active.pop(id).keep


# What a web server reads


@dataclass
class Answer:
    id: int
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_ended: bool = False
    stderr_ended: bool = False
    ended: bool = False
    app_status: int = -1
    protocol_status: int = -1
    records: list[Record] = field(default_factory=list)

    @property
    def head(self) -> list[bytes]:
        """The lines of the CGI head (RFC 3875, section 6.2)."""
        return self.stdout.partition(b"\r\n\r\n")[0].split(b"\r\n")

    @property
    def body(self) -> bytes:
        return self.stdout.partition(b"\r\n\r\n")[2]

    @property
    def status(self) -> str:
        """The status, such as "200 OK"; "" before it came."""
        for line in self.head:
            name, _, value = line.partition(b": ")
            if name == b"Status":
                return value.decode("latin-1")
        return ""


class WebServer(Reader):
    """Reads what an application sends; `expect` an id before its answer may come."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[int, Answer] = {}  # by their ids, those that have ended included
        self.management: list[Record] = []
        self.order: list[Record] = []  # all, as they came

    def expect(self, id: int) -> Answer:
        assert id not in self.answers or self.answers[id].ended, "the id is still in use"
        self.answers[id] = answer = Answer(id)
        return answer

    def read(self, data: bytes) -> None:
        for record in self.records(data):
            self.order.append(record)
            if record.id == 0:
                need(record.kind in (GET_VALUES_RESULT, UNKNOWN_TYPE), f"{record} to id 0")
                self.management.append(record)
            else:
                need(record.id in self.answers, f"{record} for an id that is not in use")
                self.application(self.answers[record.id], record)

    def application(self, answer: Answer, record: Record) -> None:
        need(not answer.ended, f"{record} after END_REQUEST")
        answer.records.append(record)
        if record.kind == STDOUT:
            need(not answer.stdout_ended, "STDOUT after its end")
            answer.stdout += record.content
            answer.stdout_ended = not record.content
        elif record.kind == STDERR:
            need(not answer.stderr_ended, "STDERR after its end")
            answer.stderr += record.content
            answer.stderr_ended = not record.content
        else:
            need(record.kind == END_REQUEST, f"a record of type {record.kind}")
            need(len(record.content) == 8, "END_REQUEST of a wrong length")
            answer.app_status, answer.protocol_status = struct.unpack(">IB3x", record.content)
            need(answer.protocol_status <= UNKNOWN_ROLE, "an unknown protocolStatus")
            answer.ended = True
