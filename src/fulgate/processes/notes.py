"""The last requests that failed, and the last that were slow: rings in a scoreboard's memory.

A ring is a word that counts what was ever written, and room for the last KEPT notes. A note's
number is WRITING while it is written, so what was read between two looks at one number is whole.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from mmap import mmap
from typing import Final

from fulgate.exchange import Exchange
from fulgate.processes import cell
from fulgate.processes.cell import ID, LINE, WORD, WRITING, line_and_id

__all__ = ["ERROR", "KEPT", "NOTES_WORDS", "SLOW", "Note", "Notes"]

ERROR: Final = 0  # which ring
SLOW: Final = 1
KEPT: Final = 16
WHAT: Final = 64  # bytes of an error's name

_note = struct.Struct(f"@QddQ{LINE}s{ID}s{WHAT}s")
_NOTE_WORDS: Final = _note.size // WORD
_RING_WORDS: Final = 1 + KEPT * _NOTE_WORDS
NOTES_WORDS: Final = 2 * _RING_WORDS


@dataclass(frozen=True, slots=True)
class Note:
    """A request that failed or was slow. Texts are not escaped."""

    time: float  # of time.time(), when it ended or was given up
    seconds: float  # how long it ran
    pid: int
    line: str  # "GET /a?b", cut short; "" where it is not known
    id: str
    what: str  # the exception's type, or the status: "LookupError", "503 Service Unavailable"


class Notes(cell.Notes):
    """The two rings of one worker, or of the workers that have gone."""

    def __init__(self, memory: mmap, first: int) -> None:
        self.slow_after = float("inf")  # seconds
        self._memory = memory
        self._words = memoryview(memory).cast("B").cast("Q")
        self._first = first
        self._lock = threading.Lock()  # of the threads of the one process that writes

    def add(self, ring: int, exchange: Exchange, seconds: float) -> None:
        """Note a request that ends now; it lasted so many seconds."""
        line, id = line_and_id(exchange.params)
        what = exchange.error or exchange.status or "no answer"
        self.put(ring, Note(time.time(), seconds, os.getpid(), line, id, what))

    def put(self, ring: int, note: Note) -> None:
        """Write a note in the place of the oldest one."""
        first = self._first + ring * _RING_WORDS
        with self._lock:
            count = self._words[first]
            at = first + 1 + count % KEPT * _NOTE_WORDS
            *numbers, line, id, what = astuple(note)
            texts = [text.encode("latin-1", "replace") for text in (line, id, what)]
            self._words[at] = WRITING
            packed = _note.pack(WRITING, *numbers, *texts)
            self._memory[at * WORD : at * WORD + len(packed)] = packed
            self._words[at] = count + 1
            self._words[first] = count + 1

    def read(self, ring: int) -> Iterator[Note]:
        """Give the notes, the oldest first."""
        first = self._first + ring * _RING_WORDS
        count = self._words[first]
        for number in range(max(0, count - KEPT), count):
            at = first + 1 + number % KEPT * _NOTE_WORDS
            known, at_time, seconds, pid, *texts = _note.unpack_from(self._memory, at * WORD)
            if known == number + 1 == self._words[at]:  # else it was overwritten just now
                line, id, what = (text.rstrip(b"\0").decode("latin-1") for text in texts)
                yield Note(at_time, seconds, pid, line, id, what)

    def take(self, other: Notes) -> None:
        """Have those of a worker that has gone, too."""
        for ring in (ERROR, SLOW):
            for note in other.read(ring):
                self.put(ring, note)

    def clear(self) -> None:
        """Forget all."""
        for ring in (ERROR, SLOW):
            self._words[self._first + ring * _RING_WORDS] = 0
