"""Files of FastCGI conversations: what passed between a web server and an application, and when.

A file is lines of JSON. The first says what it is:

    {"fulgate": "recording", "version": 1, "endpoint": "unix:/run/app.sock", "began": "2026-..."}

Each other is something that happened on a connection, in the order of time:

    {"at": 0.001243, "connection": 1, "what": "opened"}
    {"at": 0.001310, "connection": 1, "what": "to-application", "data": "AQEAAQ..."}
    {"at": 0.002871, "connection": 1, "what": "to-web-server", "data": "AQYAAQ..."}
    {"at": 0.002902, "connection": 1, "what": "closed-by-application"}

`at` is in seconds from the beginning; `data` is base64, as it was received, so a record may be cut
anywhere. A side is "closed" once, when it sends no more.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fulgate.client.records import Record, RecordReader
from fulgate.errors import ConfigError, ProtocolError
from fulgate.protocols.fastcgi_records import (
    BEGIN_REQUEST,
    END_REQUEST,
    KEEP_CONN,
    PARAMS,
    decode_pairs,
)

__all__ = [
    "CLOSED_BY_APP",
    "CLOSED_BY_WEB",
    "OPENED",
    "TO_APP",
    "TO_WEB",
    "Conversation",
    "Event",
    "Exchanged",
    "Recording",
    "Writer",
    "answers",
]

VERSION: Final = 1
OPENED: Final = "opened"
TO_APP: Final = "to-application"
TO_WEB: Final = "to-web-server"
CLOSED_BY_WEB: Final = "closed-by-web-server"
CLOSED_BY_APP: Final = "closed-by-application"
WHAT: Final = frozenset({OPENED, TO_APP, TO_WEB, CLOSED_BY_WEB, CLOSED_BY_APP})


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened on a connection, `at` seconds after the beginning."""

    at: float
    connection: int
    what: str
    data: bytes = b""


class Writer:
    """Writes a file while it happens: each line is on its way to the disk when a call returns.

    The file is its owner's to read: it holds what people sent, with their cookies. Raises OSError.
    """

    def __init__(self, path: str, endpoint: str) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._file = os.fdopen(fd, "w", encoding="ascii")
        self._began = time.monotonic()
        began = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._line(
            {"fulgate": "recording", "version": VERSION, "endpoint": endpoint, "began": began}
        )

    def add(self, connection: int, what: str, data: bytes = b"") -> None:
        """Write down an event that happened just now."""
        at = round(time.monotonic() - self._began, 6)
        event: dict[str, Any] = {"at": at, "connection": connection, "what": what}
        if data:
            event["data"] = base64.b64encode(data).decode()
        self._line(event)

    def _line(self, value: dict[str, Any]) -> None:
        self._file.write(json.dumps(value) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


@dataclass
class Recording:
    """A file that was read."""

    endpoint: str
    began: str
    events: list[Event]

    @classmethod
    def read(cls, path: str) -> Recording:
        """Read a file; a last line that was cut is passed over. Raises ConfigError."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no recording"
            raise ConfigError(f"{path}: {reason}") from None
        lines = text.split("\n")
        whole = lines[:-1] if not text.endswith("\n") else lines
        try:
            head = json.loads(whole[0]) if whole else {}
            if head["fulgate"] != "recording" or head["version"] != VERSION:
                raise ValueError
            events = [_event(json.loads(line)) for line in whole[1:] if line.strip()]
            return cls(str(head["endpoint"]), str(head["began"]), events)
        except (ValueError, KeyError, TypeError, binascii.Error):
            raise ConfigError(
                f"{path}: it is no recording of version {VERSION}, or is broken"
            ) from None

    def conversations(self) -> list[Conversation]:
        """Give the connections, in the order in which they were opened."""
        found: dict[int, Conversation] = {}
        for event in self.events:
            one = found.setdefault(event.connection, Conversation(event.connection))
            one.events.append(event)
        return list(found.values())


def _event(found: dict[str, Any]) -> Event:
    if found["what"] not in WHAT:
        raise ValueError
    data = base64.b64decode(found.get("data", ""), validate=True)
    return Event(float(found["at"]), int(found["connection"]), found["what"], data)


@dataclass
class Conversation:
    """What happened on one connection."""

    number: int
    events: list[Event] = field(default_factory=list)

    def bytes_of(self, what: str) -> list[bytes]:
        """Give the pieces that went one way."""
        return [event.data for event in self.events if event.what == what]

    def asked(self) -> list[Exchanged]:
        """Give the requests, in the order in which they were begun, with what was answered."""
        made: list[Exchanged] = []
        active: dict[int, Exchanged] = {}
        for record in _records(self.bytes_of(TO_APP)):
            if record.kind == BEGIN_REQUEST:
                keep = len(record.content) == 8 and bool(record.content[2] & KEEP_CONN)
                active[record.id] = Exchanged(record.id, keep)
                made.append(active[record.id])
            elif record.kind == PARAMS and record.id in active:
                active[record.id].params += record.content
        for exchanged, answer in zip(made, answers(self.bytes_of(TO_WEB), made), strict=True):
            exchanged.answer = answer
        return made


@dataclass
class Exchanged:
    """One request, and the records of its answer."""

    id: int
    keep: bool = False  # did the web server ask to keep the connection?
    params: bytes = b""
    answer: list[Record] = field(default_factory=list)

    @property
    def variables(self) -> dict[str, str]:
        """The CGI variables, the last of each name; {} where they are malformed."""
        try:
            return dict(decode_pairs(self.params))
        except ProtocolError:
            return {}

    @property
    def name(self) -> str:
        """Give its method and target."""
        found = self.variables
        path = found.get("REQUEST_URI") or found.get("SCRIPT_NAME", "") + found.get("PATH_INFO", "")
        return f"{found.get('REQUEST_METHOD', 'a request')} {path}".strip()


def answers(pieces: list[bytes], asked: list[Exchanged]) -> list[list[Record]]:
    """Give the records that answered each of the requests.

    An id belongs to the first request with it that has had no END_REQUEST.
    """
    waiting: dict[int, list[list[Record]]] = {}
    found: list[list[Record]] = []
    for exchanged in asked:
        found.append([])
        waiting.setdefault(exchanged.id, []).append(found[-1])
    for record in _records(pieces):
        queue = waiting.get(record.id)
        if queue:
            queue[0].append(record)
            if record.kind == END_REQUEST:
                del queue[0]
    return found


def _records(pieces: list[bytes]) -> Iterator[Record]:
    reader = RecordReader()
    for piece in pieces:
        try:
            yield from reader.feed(piece)
        except ProtocolError:
            return  # what follows is no FastCGI
