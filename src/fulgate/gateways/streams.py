"""What a gateway puts into an environ to read from and to write to."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from fulgate.errors import Aborted
from fulgate.exchange import Carrier, Exchange
from fulgate.logs import request_line

__all__ = ["Errors", "FileWrapper", "Input", "printable", "to_stderr"]

logger = logging.getLogger("fulgate")
app_logger = logging.getLogger("fulgate.app")

# The application's unfinished line in wsgi.errors is kept up to this many characters.
LINE_LIMIT: Final = 65536


class SupportsRead(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Input:
    """`wsgi.input`: the body as it comes, with no more of it in memory than was asked for.

    It ends where STDIN ends, whatever CONTENT_LENGTH says ("wsgi.input_terminated"). All methods
    raise Aborted when the web server gives the request up.
    """

    _data = b""  # received, and read up to `_at`
    _at = 0
    _ended = False

    def __init__(self, exchange: Exchange, carrier: Carrier) -> None:
        self._exchange = exchange
        self._carrier = carrier

    def _receive(self) -> bytes:
        """Give the next piece, once all of `_data` was read; b"" at the end, again and again."""
        if self._ended:
            return b""
        data = self._carrier.receive(self._exchange)
        if not data:
            self._ended = True
        return data

    def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes, fewer only at the end; all that is left for a negative size."""
        if size is None or size < 0:
            size = sys.maxsize
        data = self._data
        at = self._at
        stop = at + size
        if stop < len(data):
            self._at = stop
            return data[at:stop]
        if at:
            data = data[at:]
        self._data = b""
        self._at = 0
        left = size - len(data)
        if not left or not (piece := self._receive()):
            return data
        parts = [data] if data else []
        try:
            while piece:
                if len(piece) > left:
                    parts.append(piece[:left])
                    self._data = piece
                    self._at = left
                    break
                parts.append(piece)
                left -= len(piece)
                if not left:
                    break
                piece = self._receive()
        except BaseException:
            self._data = b"".join(parts)  # what came is not lost with what does not
            raise
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readline(self, size: int | None = -1) -> bytes:
        """Read a line with its end, or at most `size` bytes of it when that is not negative."""
        if size is None or size < 0:
            size = sys.maxsize
        if not size:
            return b""
        data = self._data
        at = self._at
        found = data.find(b"\n", at, at + size)
        stop = found + 1 if found >= 0 else at + size
        if stop <= len(data):
            self._at = stop
            return data[at:stop]
        parts = [data[at:]]
        left = size - len(parts[0])
        self._data = b""
        self._at = 0
        try:
            while left and (piece := self._receive()):
                found = piece.find(b"\n", 0, left)
                stop = found + 1 if found >= 0 else left
                if stop <= len(piece):
                    parts.append(piece[:stop])
                    self._data = piece
                    self._at = stop
                    break
                parts.append(piece)
                left -= len(piece)
        except BaseException:
            self._data = b"".join(parts)
            raise
        return b"".join(parts)

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """Read lines to the end, or until they have at least `hint` bytes when that is above 0."""
        lines: list[bytes] = []
        total = 0
        while line := self.readline():
            lines.append(line)
            total += len(line)
            if hint is not None and 0 < hint <= total:
                break
        return lines

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = self.readline()
        if not line:
            raise StopIteration
        return line


class Errors:
    """`wsgi.errors`: text that goes to the log `fulgate.app`, line by line.

    Control characters are escaped. With `stderr` each line goes to the web server's log too.
    """

    unfinished = ""  # a line without its end

    def __init__(self, exchange: Exchange | None, carrier: Carrier) -> None:
        self._exchange = exchange  # None unless lines go to the web server too
        self._carrier = carrier

    def write(self, text: str) -> int:
        """Take text; complete lines are logged at once."""
        if not isinstance(text, str):
            raise TypeError(f"wsgi.errors takes str, not {type(text).__name__}")
        lines = (self.unfinished + text).split("\n")
        self.unfinished = lines.pop()
        for line in lines:
            self._log(line)
        if len(self.unfinished) > LINE_LIMIT:
            self.flush()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Take several texts; nothing is put between them."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Log an unfinished line as it is."""
        text = self.unfinished
        if text:
            self.unfinished = ""
            self._log(text)

    def _log(self, line: str) -> None:
        line = printable(line.rstrip("\r"))
        app_logger.error("%s", line)
        exchange = self._exchange
        if exchange is not None:
            to_stderr(exchange, self._carrier, line + "\n")


class FileWrapper:
    """`wsgi.file_wrapper`: give a file in blocks of `block_size` bytes, and close it."""

    def __init__(self, file: SupportsRead, block_size: int = 65536) -> None:
        self.file = file
        self.block_size = block_size

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        data = self.file.read(self.block_size)
        if not data:
            raise StopIteration
        return data

    def close(self) -> None:
        """Close the file, if it is one that can be closed."""
        close = getattr(self.file, "close", None)
        if close is not None:
            close()


def to_stderr(exchange: Exchange, carrier: Carrier, text: str) -> None:
    if not exchange.ended:
        try:
            carrier.log(exchange, text)
        except Aborted:
            logger.debug("%s: aborted by the web server", request_line(exchange))


def printable(text: str) -> str:
    r"""Escape control characters as \xNN, so that no text can forge a line of a log."""
    if text.isprintable():
        return text
    return "".join(
        [c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text]
    )
