"""What each worker and thread does and has done, in memory that processes share by fork.

Everything is 8-byte words of the machine's own kind, so that none is ever seen half written::

    header   16 words: a number that is odd while the master moves sums; PoolScore (8 words); what
             was last reported to statsd (7 words), by whoever does that
    slot     one for each worker, and one more for the sums of workers that have gone:
      worker   18 words: pid, generation, started, by the master; state, heard, rss, cpu,
               connections, queued, accepted, refused, dropped, the most that were queued, how many
               found the queue full, how many threads there are below, capacity, connections held at
               the moment, and one more than the queue's limit, or 0, by the worker
      thread   one for each thread, written by that thread:
        counters  12 words: answers 1xx to 5xx, errors, requests, aborted, broken, received,
                  sent, busy seconds
        now       32 words: state, since, number, line (20 words), id (8 words)
        latency   BUCKETS words: how many requests took about that long
      notes    NOTES_WORDS words: the last requests that failed, and that were slow; see notes.py

Where one thread runs many requests (asyncio), each request that runs has one of these "threads".

Each cell has one writer. Before a fork, and after the worker's end, a slot is the master's. Who
reads takes no lock: a request's number is WRITING while its line is written, so what was read
between two looks at one number is whole. The line is the control thread's, which writes it when a
request has run for a tick. Nothing is written by `pack_into`, which begins with zeros.

All times are of time.monotonic(), which processes of one machine share.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from time import monotonic, process_time
from typing import Final

from fulgate.processes.cell import (
    ABSENT,
    BUCKETS,
    BUSY,
    COUNTER_WORDS,
    ERRORS,
    IDLE,
    NOW,
    NOW_WORDS,
    NUMBER,
    OPEN,
    STATE,
    WORD,
    WRITING,
    ThreadCell,
)
from fulgate.processes.latency import percentile
from fulgate.processes.notes import KEPT, NOTES_WORDS, Note, Notes

__all__ = [
    "BUCKETS",
    "BUSY",
    "EMPTY",
    "IDLE",
    "OPEN",
    "READY",
    "STARTING",
    "STOPPING",
    "Glance",
    "PoolScore",
    "Scoreboard",
    "Slot",
    "ThreadCell",
    "ThreadScore",
    "Totals",
    "WorkerScore",
    "own_slot",
    "percentile",
]

# a worker's state
EMPTY: Final = 0
STARTING: Final = 1  # forked, its application is not loaded yet
READY: Final = 2
STOPPING: Final = 3  # finishes its requests

HEADER_WORDS: Final = 16
TAKEN: Final = 14  # the word of a worker's cell with the number of threads; then its capacity
HELD: Final = 16  # the word that says how many connections it has at the moment
LIMIT: Final = 17  # the word with one more than how many may be queued; 0 where there is no limit
WORKER_WORDS: Final = 18
THREAD_WORDS: Final = COUNTER_WORDS + NOW_WORDS + BUCKETS

_pool = struct.Struct("@d7Q")
_reported = struct.Struct("@7Q")
_hired = struct.Struct("@QQd")  # the master's part of a worker's cell
_worker = struct.Struct("@QdQdQQQQQQQQQ")
_told = struct.Struct("@QdQdQQQQQQQ")  # what of it `tell` writes
_counters = struct.Struct("@11Qd")
_buckets = struct.Struct(f"@{BUCKETS}Q")


@dataclass(frozen=True, slots=True)
class Totals:
    """What was counted. `latency` has a count for each bucket; see `percentile`."""

    requests: int = 0  # that the application has answered, or that ended in it otherwise
    aborted: int = 0  # given up by the web server, while they ran
    broken: int = 0  # answers that began and could not be ended
    received: int = 0  # bytes of bodies
    sent: int = 0  # bytes of answers' bodies
    answers: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)  # 1xx, 2xx, 3xx, 4xx, 5xx
    errors: int = 0  # 5xx and broken ones
    busy: float = 0.0  # seconds in the application, of all threads
    latency: tuple[int, ...] = (0,) * BUCKETS
    accepted: int = 0  # connections
    refused: int = 0  # requests that the server answered itself: 413, 431, 503
    dropped: int = 0  # given up by the web server, before they ran
    cpu: float = 0.0  # seconds of CPU time, of the processes
    queue_full: int = 0  # requests, of the refused ones, that found no room in the queue
    queue_most: int = 0  # the most that were in the queue of one worker

    def __add__(self, other: Totals) -> Totals:
        a, b = self.answers, other.answers
        return Totals(
            self.requests + other.requests,
            self.aborted + other.aborted,
            self.broken + other.broken,
            self.received + other.received,
            self.sent + other.sent,
            (a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3], a[4] + b[4]),
            self.errors + other.errors,
            self.busy + other.busy,
            tuple(map(int.__add__, self.latency, other.latency)),
            self.accepted + other.accepted,
            self.refused + other.refused,
            self.dropped + other.dropped,
            self.cpu + other.cpu,
            self.queue_full + other.queue_full,
            max(self.queue_most, other.queue_most),
        )


@dataclass(frozen=True, slots=True)
class ThreadScore:
    """A thread, as it was when it was looked at."""

    number: int
    state: int  # IDLE, BUSY or OPEN
    since: float  # when that began
    line: str  # of a request that took more than a moment: the one that runs, or, in an idle
    # thread, the last such: "GET /a?b", cut short; not escaped
    id: str  # that request's id, where the web server has given one
    served: int  # the number of that request in this thread, from 1; 0 when there is none
    totals: Totals


@dataclass(frozen=True, slots=True)
class WorkerScore:
    """A worker, as it was when it was looked at."""

    slot: int
    pid: int
    generation: int  # grows with each reload
    started: float
    state: int  # STARTING, READY or STOPPING
    heard: float  # when its control thread last told the following
    rss: int  # bytes
    cpu: float  # seconds
    connections: int
    queued: int  # requests that wait for a thread; those beyond `capacity`, where they run at once
    queue_limit: int | None  # how many these may be; None for any number, or before it is known
    capacity: int  # how many requests make it busy; 0: as many as it has threads
    threads: tuple[ThreadScore, ...]
    totals: Totals

    @property
    def busy(self) -> int:
        """How many threads run a request?"""
        return sum(1 for thread in self.threads if thread.state >= BUSY)

    @property
    def idle(self) -> int:
        """How many more requests could it run?"""
        return max(0, (self.capacity or len(self.threads)) - self.busy)


@dataclass(frozen=True, slots=True)
class PoolScore:
    """What the master counts of a pool."""

    started: float = 0.0
    generation: int = 0
    spawned: int = 0  # workers, in all
    died: int = 0  # workers that ended without being told
    killed: int = 0  # workers that did not end when they were told
    reached: int = 0  # how often all workers there may be were busy (max_workers)
    recycled: int = 0  # workers replaced for their age, memory or count of requests
    rests: int = 0  # 1 when it is well without a worker, until a request comes (ondemand)


@dataclass(frozen=True, slots=True)
class Glance:
    """What the master looks at each time."""

    heard: float
    rss: int
    requests: int
    busy: int  # threads that run a request
    capacity: int  # as WorkerScore's
    oldest: float  # since when the oldest of these runs, WebSockets apart; 0.0 where none does


class Slot:
    """A worker's place on the scoreboard, for the worker to write to."""

    def __init__(self, board: Scoreboard, number: int) -> None:
        self.board = board
        self.number = number
        self.threads = board.threads  # cells there are
        self._first = board.first_word(number)
        self._state = STARTING
        self._taken = 0
        self._page = mmap.PAGESIZE
        self.notes = board.notes(number)
        self.most = 0  # requests after which the worker is to be replaced; 0 for no limit

    def thread(self) -> ThreadCell | None:
        """Give the next thread its cell; None where there is no more."""
        if self._taken >= self.threads:
            return None
        first = self._first + WORKER_WORDS + self._taken * THREAD_WORDS
        self._taken += 1
        cell = ThreadCell(self.board.memory, self.board.words, first, self.notes)
        self.board.words[self._first + TAKEN] = self._taken
        return cell

    def hold(self, capacity: int, queue: int | None) -> None:
        """Tell how many requests make the process busy, 0 for one for each thread, and how many
        beyond these it takes, None for any number.
        """
        self.board.words[self._first + TAKEN + 1] = capacity
        self.board.words[self._first + LIMIT] = 0 if queue is None else queue + 1

    def become(self, state: int) -> None:
        """Tell STARTING, READY or STOPPING."""
        self._state = state
        self.board.write(self._first + 3, STATE.pack(state, monotonic()))

    def connected(self, connections: int) -> None:
        """Tell how many connections there are, for the other workers to know at once."""
        self.board.words[self._first + HELD] = connections

    def ahead(self) -> bool:
        """Has another worker that serves clearly fewer connections?"""
        held = self.board.words[self._first + HELD]
        return self.board.least_held() < held - 1 - held // 8

    def tell(
        self,
        connections: int,
        queued: int,
        accepted: int,
        refused: int,
        dropped: int,
        queue_most: int = 0,
        queue_full: int = 0,
    ) -> None:
        """Tell how the process is: about once a second while something happens, else every five
        seconds, and before it ends.
        """
        numbers = (connections, queued, accepted, refused, dropped, queue_most, queue_full)
        known = _told.pack(self._state, monotonic(), _rss(self._page), process_time(), *numbers)
        self.board.write(self._first + 3, known)


def _rss(page: int) -> int:
    """Bytes of memory that the process has, from proc(5); 0 where there is no such file."""
    try:
        fd = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return int(os.read(fd, 128).split()[1]) * page
    except (OSError, ValueError, IndexError):
        return 0
    finally:
        os.close(fd)


class Scoreboard:
    """The scoreboard of one pool, with a slot for each of up to `slots` workers.

    Made before the workers are forked, or by a process that serves alone. Raises OSError where the
    system has no memory for it.
    """

    def __init__(self, slots: int, threads: int) -> None:
        self.slots = slots
        self.threads = threads
        self._slot_words = WORKER_WORDS + threads * THREAD_WORDS + NOTES_WORDS
        words = HEADER_WORDS + (slots + 1) * self._slot_words
        self.memory = mmap.mmap(-1, words * WORD)  # zeros; pages exist once they are written to
        self.words = memoryview(self.memory).cast("B").cast("Q")
        self._gone = Totals()
        self.gone = self.notes(slots)  # of workers that have gone, for the master to write

    def notes(self, slot: int) -> Notes:
        """Give the notes of a slot, to write to or to read."""
        return Notes(self.memory, self.first_word(slot) + self._slot_words - NOTES_WORDS)

    def recent(self, ring: int) -> list[Note]:
        """Give the last requests that failed (ERROR) or were slow (SLOW), the newest first."""
        found = [note for slot in range(self.slots + 1) for note in self.notes(slot).read(ring)]
        return sorted(found, key=lambda note: -note.time)[:KEPT]

    def first_word(self, slot: int) -> int:
        """Give the number of a slot's first word."""
        if not 0 <= slot <= self.slots:
            raise ValueError(f"there is no slot {slot}")
        return HEADER_WORDS + slot * self._slot_words

    def write(self, word: int, packed: bytes) -> None:
        """Write words, from the one with this number on."""
        self.memory[word * WORD : word * WORD + len(packed)] = packed

    # ---------------------------------------------------------------- the master's

    def take(self, slot: int, generation: int) -> Slot:
        """Give a slot to a worker that is about to be forked."""
        self._clear(slot)
        self.write(self.first_word(slot), _hired.pack(0, generation, monotonic()))
        taken = Slot(self, slot)
        taken.become(STARTING)
        return taken

    def hire(self, slot: int, pid: int) -> None:
        """The worker was forked, and has this process id."""
        self.words[self.first_word(slot)] = pid

    def retire(self, slot: int) -> Totals:
        """The worker has gone: keep what it had counted, and free the slot."""
        score = self.worker(slot, always=True)
        assert score is not None
        self.gone.take(self.notes(slot))
        self.words[0] += 1  # odd: who reads now looks again
        self._gone += score.totals
        self._write_gone()
        self._clear(slot)
        self.words[0] += 1
        return score.totals

    def publish(self, pool: PoolScore) -> None:
        """Tell what the master counts."""
        self.write(1, _pool.pack(*astuple(pool)))

    def report(self, counters: Sequence[int]) -> None:
        """Keep what was reported, for whoever reports next; seven counters."""
        self.write(1 + _pool.size // WORD, _reported.pack(*counters))

    def reported(self) -> tuple[int, ...]:
        """Give what was reported last; zeros at first."""
        return _reported.unpack_from(self.memory, WORD + _pool.size)

    def _clear(self, slot: int) -> None:
        self.notes(slot).clear()
        at = self.first_word(slot) * WORD
        cell = THREAD_WORDS * WORD
        taken = self._taken(self.first_word(slot))
        self.memory[at : at + WORKER_WORDS * WORD] = bytes(WORKER_WORDS * WORD)
        at += WORKER_WORDS * WORD
        for thread in range(taken):  # nobody has written to the others
            start = at + thread * cell
            self.memory[start : start + cell] = bytes(cell)

    def _taken(self, first: int) -> int:
        return min(self.words[first + TAKEN], self.threads)

    def _write_gone(self) -> None:
        gone = self._gone
        first = self.first_word(self.slots)
        numbers = (
            gone.accepted,
            gone.refused,
            gone.dropped,
            gone.queue_most,
            gone.queue_full,
            1,
            0,
        )
        self.write(first + 3, _worker.pack(EMPTY, 0.0, 0, gone.cpu, 0, 0, *numbers))
        first += WORKER_WORDS
        counts = (gone.errors, gone.requests, gone.aborted, gone.broken, gone.received, gone.sent)
        self.write(first, _counters.pack(*gone.answers, *counts, gone.busy))
        self.write(first + COUNTER_WORDS, STATE.pack(IDLE, 0.0))
        self.write(first + COUNTER_WORDS + NOW_WORDS, _buckets.pack(*gone.latency))

    # ---------------------------------------------------------------- for anybody to read

    def pool(self) -> PoolScore:
        """Give what the master counts."""
        return PoolScore(*_pool.unpack_from(self.memory, WORD))

    def workers(self) -> list[WorkerScore]:
        """Give the workers that there are."""
        found = (self.worker(slot) for slot in range(self.slots))
        return [score for score in found if score is not None]

    def totals(self) -> Totals:
        """Give the sums over all workers, those that have gone included: they only grow."""
        for _ in range(100):
            before = self.words[0]
            last = self.worker(self.slots, always=True)
            assert last is not None
            sums = last.totals
            for score in self.workers():
                sums += score.totals
            if not before & 1 and self.words[0] == before:
                break
        return sums

    def least_held(self) -> int:
        """Give the number of connections of that worker, of those that serve, that has fewest."""
        words = self.words
        firsts = range(HEADER_WORDS, HEADER_WORDS + self.slots * self._slot_words, self._slot_words)
        return min((words[at + HELD] for at in firsts if words[at + 3] == READY), default=0)

    def glance(self, slot: int) -> Glance:
        """Give the little that is looked at often."""
        first = self.first_word(slot)
        _, heard, rss, *_ = _worker.unpack_from(self.memory, (first + 3) * WORD)
        requests = busy = 0
        oldest = 0.0
        for number in range(self._taken(first)):
            word = first + WORKER_WORDS + number * THREAD_WORDS
            requests += self.words[word + ERRORS + 1]
            state, since = STATE.unpack_from(self.memory, (word + COUNTER_WORDS) * WORD)
            if state == BUSY:
                oldest = min(oldest or since, since)
            busy += state >= BUSY
        return Glance(heard, rss, requests, busy, self.words[first + TAKEN + 1], oldest)

    def worker(self, slot: int, *, always: bool = False) -> WorkerScore | None:
        """Give the worker of a slot, or None where there is none."""
        first = self.first_word(slot)
        pid, generation, started = _hired.unpack_from(self.memory, first * WORD)
        known = _worker.unpack_from(self.memory, (first + 3) * WORD)
        state, heard, rss, cpu, connections, queued, *counts, _, capacity = known
        if state == EMPTY and not always:
            return None
        found = (self._thread(first, number) for number in range(self._taken(first)))
        threads = tuple(thread for thread in found if thread is not None)
        accepted, refused, dropped, most, full = counts
        totals = Totals(
            accepted=accepted,
            refused=refused,
            dropped=dropped,
            cpu=cpu,
            queue_full=full,
            queue_most=most,
        )
        limit = self.words[first + LIMIT]
        for thread in threads:
            totals += thread.totals
        return WorkerScore(
            slot,
            pid,
            generation,
            started,
            state,
            heard,
            rss,
            cpu,
            connections,
            queued,
            limit - 1 if limit else None,
            capacity,
            threads,
            totals,
        )

    def _thread(self, first: int, number: int) -> ThreadScore | None:
        at = (first + WORKER_WORDS + number * THREAD_WORDS) * WORD
        now = at + COUNTER_WORDS * WORD
        word = now // WORD + NUMBER
        for _ in range(10):
            before = self.words[word]
            state, since, served, line, id = NOW.unpack_from(self.memory, now)
            if served == before == self.words[word] and served != WRITING:
                break
        else:
            served = 0
        if state == ABSENT:
            return None
        counters = _counters.unpack_from(self.memory, at)
        latency = _buckets.unpack_from(self.memory, now + NOW_WORDS * WORD)
        errors, requests, aborted, broken, received, sent, busy = counters[ERRORS:]
        if not served or (state >= BUSY and served != requests + 1):
            served, line, id = 0, b"", b""
        totals = Totals(
            requests,
            aborted,
            broken,
            received,
            sent,
            counters[:ERRORS],
            errors,
            busy,
            latency,
        )
        return ThreadScore(number, state, since, _text(line), _text(id), served, totals)


def own_slot(threads: int) -> Slot:
    """Give the place of a process that serves alone, on a scoreboard of its own."""
    board = Scoreboard(1, threads)
    slot = board.take(0, 0)
    board.hire(0, os.getpid())
    board.publish(PoolScore(started=monotonic(), spawned=1))
    return slot


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode("latin-1")
