"""`fulgate dump`: show a recording."""

from __future__ import annotations

import click

from fulgate.client.recording import (
    CLOSED_BY_APP,
    CLOSED_BY_WEB,
    OPENED,
    TO_APP,
    TO_WEB,
    Event,
    Recording,
)
from fulgate.client.records import Describer, Record, RecordReader, printable
from fulgate.errors import ProtocolError

__all__ = ["command"]

COLUMNS = 16  # bytes in a line
MARKS = {TO_APP: ">", TO_WEB: "<"}
WORDS = {
    OPENED: "* opened",
    CLOSED_BY_WEB: "> closed by the web server",
    CLOSED_BY_APP: "< closed by the application",
}


@click.command("dump", short_help="Show a recording, record by record.")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--connection", type=click.IntRange(1), help="Show only this one.")
@click.option("--bytes", "with_bytes", is_flag=True, help="Show the content of streams, too.")
def command(file: str, connection: int | None, with_bytes: bool) -> int:
    """Show a recording, record by record: milliseconds, the connection, and what passed.

    ">" goes to the application, "<" to the web server.
    """
    recording = Recording.read(file)
    click.echo(f"{recording.endpoint}, {recording.began}")
    directions: dict[tuple[int, str], _Direction] = {}
    for event in recording.events:
        if connection not in (None, event.connection):
            continue
        key = event.connection, event.what
        if event.what not in MARKS:
            lines = [WORDS[event.what]]
        else:
            lines = directions.setdefault(key, _Direction(MARKS[event.what])).lines(
                event, with_bytes
            )
        when = f"{event.at * 1000:10.3f} {event.connection:3} "
        for line in lines:
            click.echo(when + line)
            when = " " * len(when)
    for (number, _), direction in directions.items():
        if direction.reader.rest:
            click.echo(f"connection {number} ends with {len(direction.reader.rest)} bytes of a"
                       f" record that is not whole ({direction.mark})")  # fmt: skip
    return 0


class _Direction:
    """What goes one way on one connection."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.reader = RecordReader()
        self._describer = Describer()
        self._broken = False

    def lines(self, event: Event, with_bytes: bool) -> list[str]:
        if self._broken:
            return [f"{self.mark} {line}" for line in _hex(event.data)]
        try:
            records = self.reader.feed(event.data)
        except ProtocolError as error:
            self._broken = True
            self.reader.rest = b""
            return [f"{self.mark} {error}"]
        if not records:
            return [f"{self.mark} ({len(event.data)} bytes of a record)"]
        return [line for record in records for line in self._of(record, with_bytes)]

    def _of(self, record: Record, with_bytes: bool) -> list[str]:
        lines = self._describer.lines(record)
        if with_bytes:
            lines += ["  | " + line for line in _hex(record.content)]
        return [f"{self.mark} {line}" for line in lines]


def _hex(data: bytes) -> list[str]:
    lines: list[str] = []
    for at in range(0, len(data), COLUMNS):
        part = data[at : at + COLUMNS]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{at:06x}  {part.hex(' '):{COLUMNS * 3}} {printable(text.encode())}")
    return lines
