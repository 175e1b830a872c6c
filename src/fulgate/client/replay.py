"""Replays a recorded conversation against an application, and compares what it answers."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fulgate.client.head import Head, HeadReader
from fulgate.client.recording import (
    CLOSED_BY_APP,
    CLOSED_BY_WEB,
    TO_APP,
    TO_WEB,
    Conversation,
    answers,
)
from fulgate.client.records import Record, RecordReader, printable
from fulgate.endpoint import Endpoint
from fulgate.errors import ProtocolError, Refused, TimedOut
from fulgate.protocols.fastcgi_records import END_REQUEST, GET_VALUES_RESULT, STDOUT, UNKNOWN_TYPE

__all__ = ["Outcome", "replay"]

# What ends something that the web server waits for.
ENDS: Final = frozenset({END_REQUEST, GET_VALUES_RESULT, UNKNOWN_TYPE})


@dataclass(frozen=True)
class Outcome:
    """What became of one request, compared with the recording."""

    connection: int
    name: str
    differences: list[str]


class _Counter:
    """Counts the ends in what an application sends."""

    def __init__(self) -> None:
        self.count = 0
        self._reader = RecordReader()

    def feed(self, data: bytes) -> None:
        try:
            self.count += sum(record.kind in ENDS for record in self._reader.feed(data))
        except ProtocolError:
            self.count += 1  # no FastCGI: nothing better will come


def replay(
    conversation: Conversation,
    endpoint: Endpoint,
    *,
    timeout: float,
    pace: bool,
    ignored: frozenset[str],
) -> Iterator[Outcome]:
    """Send one connection's bytes again, and give an outcome for each of its requests.

    What followed an answer in the recording follows one here; with `pace` also the times between
    are kept. `ignored` names headers, in small letters, that may differ. Raises OSError when nobody
    listens.
    """
    wire = _Wire(endpoint, timeout)
    try:
        problems = list(_converse(conversation, wire, pace))
    finally:
        wire.close()
    asked = conversation.asked()
    for exchanged, answer in zip(asked, answers(wire.got, asked), strict=True):
        differences = _differences(exchanged.answer, answer, ignored)
        yield Outcome(conversation.number, exchanged.name, differences)
    if problems:
        yield Outcome(conversation.number, "the connection", problems)


class _Wire:
    """A connection that carries bytes as they are, and keeps what came."""

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        self.got: list[bytes] = []
        self.ends = _Counter()
        self.ended = False
        self._timeout = timeout
        self._socket = endpoint.connect(timeout)
        self._socket.setblocking(False)

    def send(self, data: bytes) -> None:
        """Send, and take what comes meanwhile; the rest is dropped where the application closed.

        Raises TimedOut.
        """
        unsent = memoryview(data)
        while unsent and not self.ended:
            _, writable = self._wait(True)
            if writable:
                try:
                    unsent = unsent[self._socket.send(unsent) :]
                except BlockingIOError:
                    continue
                except OSError:
                    return

    def receive(self) -> None:
        """Wait for something. Raises TimedOut."""
        self._wait(False)

    def _wait(self, write: bool) -> tuple[bool, bool]:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if write else 0))
        found = poll.poll(self._timeout * 1000)
        if not found:
            raise TimedOut(f"nothing came or was taken for {self._timeout:g} s")
        event = found[0][1]
        if event & ~select.POLLOUT:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                return False, False
            except OSError:
                data = b""
            if data:
                self.got.append(data)
                self.ends.feed(data)
            else:
                self.ended = True
        return bool(event & select.POLLIN), bool(event & select.POLLOUT)

    def close(self) -> None:
        self._socket.close()


def _converse(conversation: Conversation, wire: _Wire, pace: bool) -> Iterator[str]:
    """Do again what the web server did; give what went wrong."""
    ends = _Counter()
    began = time.monotonic()
    first = conversation.events[0].at
    try:
        for event in conversation.events:
            if pace and (wait := event.at - first - (time.monotonic() - began)) > 0:
                time.sleep(wait)
            if event.what == TO_WEB:
                ends.feed(event.data)
                continue
            while wire.ends.count < ends.count and not wire.ended:
                wire.receive()
            if event.what == TO_APP:
                wire.send(event.data)
            elif event.what == CLOSED_BY_WEB:
                return
            elif event.what == CLOSED_BY_APP:
                try:
                    while not wire.ended:
                        wire.receive()
                except TimedOut:
                    yield "the application closed the connection, and now does not"
                return
    except TimedOut as error:
        yield str(error)


def _differences(before: list[Record], now: list[Record], ignored: frozenset[str]) -> list[str]:
    """Say in what way an answer is another one."""
    if not before or before[-1].kind != END_REQUEST:
        return []  # it was given up, or cut; there is nothing to hold this one to
    if not now:
        return ["no answer"]
    if now[-1].kind != END_REQUEST:
        return ["the answer was cut"]
    found: list[str] = []
    for name, was, became in zip(
        ("appStatus", "protocolStatus"), _end(before[-1]), _end(now[-1]), strict=True
    ):
        if was != became:
            found.append(f"{name} was {was}, is {became}")
    return found + _contents(_stdout(before), _stdout(now), ignored)


def _contents(before: bytes, now: bytes, ignored: frozenset[str]) -> list[str]:
    heads: list[tuple[Head, bytes]] = []
    for data in (before, now):
        try:
            read = HeadReader().feed(data)
        except ProtocolError:
            read = None
        if read is not None:
            heads.append(read)
    if len(heads) < 2:
        return [] if before == now else ["STDOUT differs, and one has no head that can be read"]
    (head, body), (other, other_body) = heads
    found: list[str] = []
    if head.status != other.status:
        found.append(f"status was {head.status}, is {other.status}")
    found += _headers(head, other, ignored)
    if body != other_body:
        at = next(
            (n for n, (a, b) in enumerate(zip(body, other_body, strict=False)) if a != b),
            min(len(body), len(other_body)),
        )
        was, became = printable(body[at : at + 20]), printable(other_body[at : at + 20])
        found.append(
            f"body was {len(body)} bytes, is {len(other_body)}; at {at}: {was!r}, {became!r}"
        )
    return found


def _headers(head: Head, other: Head, ignored: frozenset[str]) -> list[str]:
    values: list[dict[str, list[str]]] = [{}, {}]
    for one, into in zip((head, other), values, strict=True):
        for name, value in one.texts:
            into.setdefault(name.lower(), []).append(value)
    found: list[str] = []
    for name in sorted(values[0].keys() | values[1].keys()):
        was, became = (", ".join(into[name]) if name in into else None for into in values)
        if was == became or name in ignored:
            continue
        if became is None:
            found.append(f"header {name} was {was!r}, is not there")
        elif was is None:
            found.append(f"header {name} was not there, is {became!r}")
        else:
            found.append(f"header {name} was {was!r}, is {became!r}")
    return found


def _stdout(records: list[Record]) -> bytes:
    return b"".join(record.content for record in records if record.kind == STDOUT)


def _end(record: Record) -> tuple[str, str]:
    content = record.content.ljust(8, b"\0")
    status = content[4]
    name = Refused.NAMES[status] if status < len(Refused.NAMES) else str(status)
    return str(int.from_bytes(content[:4], "big")), name
