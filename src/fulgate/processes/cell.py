"""What a thread writes on the scoreboard for each request. Compiled, since every request does it.

scoreboard.py tells of the layout.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from time import monotonic
from typing import Any, Final

from fulgate.exchange import Exchange

try:
    from mypy_extensions import mypyc_attr
except ImportError:
    from fulgate.attributes import mypyc_attr

__all__ = ["Notes", "ThreadCell", "bucket", "line_and_id"]

WORD: Final = 8

# a thread's state
ABSENT: Final = 0
IDLE: Final = 1
BUSY: Final = 2
OPEN: Final = 3  # busy, with a WebSocket, which may last

LINE: Final = 160  # bytes of a request's line
ID: Final = 64  # bytes of its id
NUMBER: Final = 2  # the word of `now` in which a request's number is
ERRORS: Final = 5  # the word of a thread's counters; those that follow, as words behind it:
REQUESTS: Final = 1
ABORTED: Final = 2
BROKEN: Final = 3
RECEIVED: Final = 4
SENT: Final = 5
BUSY_FOR: Final = 6  # seconds

# 32 buckets to each doubling, so that a bucket is at most 1/32 wide: from 7.6 µs to 4096 s.
STEPS: Final = 32
LOWEST: Final = -17  # the power of two below which all is one bucket
HIGHEST: Final = 12
BUCKETS: Final = (HIGHEST - LOWEST) * STEPS

COUNTER_WORDS: Final = 12
NOW_WORDS: Final = 32

NOW: Final = struct.Struct(f"@QdQ{LINE}s{ID}s")
STATE: Final = struct.Struct("@Qd")
TEXT: Final = struct.Struct(f"@{LINE}s{ID}s")
WRITING: Final = (1 << 64) - 1  # stands for the number while the line is written


# A number of these has a bucket's six leading bits, from the lowest bucket on: 0.24 µs.
TICKS: Final = 2.0 ** (6 - 1 - LOWEST)  # a second


def bucket(seconds: float) -> int:
    """Give the number of the bucket for a duration."""
    if seconds >= 2.0**HIGHEST:
        return BUCKETS - 1
    ticks = int(seconds * TICKS)
    if ticks < STEPS:
        return 0
    shift = ticks.bit_length() - 6
    return shift * STEPS + (ticks >> shift) - STEPS


@mypyc_attr(allow_interpreted_subclasses=True)
class Notes:
    """Takes the requests that failed (0) and that were slow (1)."""

    slow_after = 0.0  # seconds

    def add(self, ring: int, exchange: Exchange, seconds: float) -> None:
        raise NotImplementedError


class ThreadCell:
    """Where a thread writes. To be used by that thread only, but for `tell` and `note`."""

    def __init__(self, memory: mmap.mmap, words: memoryview, first: int, notes: Notes) -> None:
        self._notes = notes
        self._slow_after = notes.slow_after
        self._lasting = False
        self._memory = memory
        self._words = words
        self._reals = memoryview(memory).cast("B").cast("d")
        self._counted = first + ERRORS
        self._state = first + COUNTER_WORDS
        self._at = self._state + 1  # since when it has that state
        self._answers = first - 1  # of 1xx is the first
        self._answered = [0] * 6
        self._now = (first + COUNTER_WORDS) * WORD
        self._state_end = self._now + STATE.size
        self._number = first + COUNTER_WORDS + NUMBER
        self._line = self._state_end + WORD
        self._line_end = self._line + TEXT.size
        self._latency = first + COUNTER_WORDS + NOW_WORDS
        self._errors = 0
        self._requests = 0
        self._aborted = 0
        self._broken = 0
        self._received = 0
        self._sent = 0
        self._busy = 0.0
        self._since = 0.0
        memory[self._now : self._state_end] = STATE.pack(IDLE, monotonic())

    def begin(self, now: float) -> None:
        """A request goes to the application."""
        self._since = now
        self._reals[self._at] = now
        self._words[self._state] = BUSY

    @property
    def number(self) -> int:
        """The number of the request that runs, or runs next; from 1."""
        return self._requests + 1

    def tell(self, exchange: Exchange, number: int) -> None:
        """Write down which request runs; by the control thread, of one that is not over at once.

        Most requests are, and nobody could have read their line.
        """
        line, id = line_and_id(exchange.params)
        words = self._words
        words[self._number] = WRITING
        self._memory[self._line : self._line_end] = TEXT.pack(
            line.encode("latin-1", "replace"), id.encode("latin-1", "replace")
        )
        words[self._number] = number

    def open(self, now: float) -> None:
        """A WebSocket goes to the application."""
        self._lasting = True
        self._since = now
        self._memory[self._now : self._state_end] = STATE.pack(OPEN, now)

    def end(self, exchange: Exchange, now: float) -> None:
        """It has left the application, and its answer has been written."""
        self._count(exchange, now)
        self._reals[self._at] = now
        self._words[self._state] = IDLE

    def add(self, exchange: Exchange, now: float, began: float) -> None:
        """Count a request that ran from `began` on and was not shown, as too many did."""
        self._since = began
        self._count(exchange, now)

    def _count(self, exchange: Exchange, now: float) -> None:
        words = self._words
        counted = self._counted
        self._requests += 1
        words[counted + REQUESTS] = self._requests
        if exchange.received:
            self._received += exchange.received
            words[counted + RECEIVED] = self._received
        self._sent += exchange.sent
        words[counted + SENT] = self._sent
        self._busy += now - self._since
        self._reals[counted + BUSY_FOR] = self._busy
        status = exchange.status
        kind = ord(status[0]) - ord("0") if status else 0
        if 1 <= kind <= 5:
            answered = self._answered
            answered[kind] += 1
            words[self._answers + kind] = answered[kind]
        lasted = now - (exchange.began or self._since)
        if exchange.aborted and not exchange.noted:
            self._aborted += 1
            words[counted + ABORTED] = self._aborted
        elif exchange.broken:
            self._broken += 1
            words[counted + BROKEN] = self._broken
            self._errors += 1
            words[counted] = self._errors
            self.note(exchange, lasted)
        elif kind == 5:
            self._errors += 1
            words[counted] = self._errors
            self.note(exchange, lasted)
        if lasted >= self._slow_after and not self._lasting:
            self._notes.add(1, exchange, lasted)
        self._lasting = False
        words[self._latency + bucket(lasted)] += 1

    def note(self, exchange: Exchange, lasted: float) -> None:
        """Note that a request has failed, once."""
        if not exchange.noted:
            exchange.noted = True
            self._notes.add(0, exchange, lasted)


def line_and_id(params: Mapping[str, Any]) -> tuple[str, str]:
    """Give "GET /a?b" of a request, and the id that the web server has given it, or ""."""
    uri = params.get("REQUEST_URI")
    line = f"{params.get('REQUEST_METHOD') or '-'} {uri}" if uri else _line(params)
    id: str = params.get("REQUEST_ID") or params.get("UNIQUE_ID") or ""
    return line, id


def _line(params: Mapping[str, object]) -> str:
    """The request's line, of params that lack what web servers send."""
    names = ("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO")
    method, script, path = (str(params.get(name, "")) for name in names)
    return f"{method or '-'} {script}{path}"
