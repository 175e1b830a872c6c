"""What the requests of an application on a loop do and have done: told, and held to their time.

The loop's thread says when a request begins and ends, and counts. All else is up to a thread of its
own, the *watch*, which ticks while there are requests: it tells the scoreboard, and sees which take
long. It notices a loop that is blocked, since it asks the loop for a sign, and gets none; nobody
else could tell of that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from time import monotonic
from types import FrameType
from typing import Any, Final, Protocol

from fulgate.config import Config
from fulgate.drivers.answerer import Answerer
from fulgate.drivers.deadlines import LATE
from fulgate.drivers.phases import FOREVER
from fulgate.drivers.worker import Cell, Score
from fulgate.errors import NoThreads
from fulgate.exchange import Exchange
from fulgate.logs import request_id, request_line

__all__ = ["Timed", "Watch", "stack_of"]

log = logging.getLogger("fulgate")

TICK: Final = 0.1  # seconds between two looks, while there are requests
TELL: Final = 1.0  # seconds between two times that the scoreboard is told of the process
TELL_IDLE: Final = 5.0  # the same, while nothing happens; and then the loop is asked for a sign
BLOCKED: Final = 5.0  # seconds for which a loop may be blocked before the log says so
TO_END: Final = 5.0  # seconds for an application that was cancelled
ERROR_PAUSE: Final = 1.0


class Timed(Answerer, Protocol):
    """An answerer whose time may be limited. `lasting` ones have none: WebSockets."""

    lasting: bool
    task: asyncio.Task[None] | None

    def expire(self) -> None: ...  # answer 504, or break the answer, and have the application end


class _Call:
    """A request that the application has."""

    def __init__(self, exchange: Exchange, answerer: Timed, began: float) -> None:
        self.exchange = exchange
        self.answerer = answerer
        self.began = began
        self.cell: Cell | None = None
        self.told = False  # the rest is the watch's
        self.slow = False
        self.late = False


class Watch:
    """Keeps the requests of one loop. `sizes` gives connections, and those accepted so far."""

    def __init__(
        self, config: Config, score: Score | None, sizes: Callable[[], tuple[int, int]]
    ) -> None:
        self.late: Callable[[], None] | None = None  # a request was cancelled, and does not end
        self.blocked: Callable[[], None] | None = None  # the loop is, and nothing else runs
        self.most = 0  # requests, after which `spent` is called, once; 0 for never
        self.spent: Callable[[], None] | None = None
        self.refused = self.dropped = 0
        self.queue_most = 0  # requests at once, beyond those with which the process is busy
        self.queue_full = 0  # requests that were turned away since there are too many
        self._score = score
        self._sizes = sizes
        self._slow_after = config.request_slowlog_timeout or FOREVER
        self._timeout = config.request_timeout or FOREVER
        self._wanted = score is not None or min(self._slow_after, self._timeout) < FOREVER
        # The master names what it kills a process for, and we get no turn to tell when C code holds
        # the interpreter.
        self._tell_at_once = config.request_timeout > 0
        self._most = config.worker_concurrency
        self._capacity = config.capacity
        self._calls: dict[Exchange, _Call] = {}
        self._free: list[Cell] = []
        self._taken = 0
        self._rest: Cell | None = None  # counts those beyond the most that are shown
        self._requests = 0
        self._cancelled: list[tuple[asyncio.Task[None], float, str]] = []
        self._last_asked = 0.0
        self._asked = 0.0  # when the loop was asked for a sign; 0 when it has given one
        self._said_blocked = False
        self._gave_up = False
        self._told = 0.0
        self._known = (0, 0, 0)
        self._over = False
        self._resting = False
        self._wake = threading.Lock()
        self._wake.acquire()
        self._thread = threading.Thread(target=self._run, name="fulgate-watch", daemon=True)

    # ---------------------------------------------------------------- called in the loop's thread

    def start(self) -> None:
        """Start watching the running loop. Raises NoThreads where the system gives no thread."""
        self._loop = asyncio.get_running_loop()
        self._ident = threading.get_ident()
        if self._wanted:
            try:
                self._thread.start()
            except RuntimeError as error:
                raise NoThreads(str(error)) from error

    def stop(self) -> None:
        """Watch no more, and tell for the last time."""
        self._over = True
        if self._thread.ident is not None:
            self._stir()
            self._thread.join(1.0)
            self._tell(monotonic())

    def begun(self, exchange: Exchange, answerer: Timed) -> None:
        """The application gets a request."""
        if not self._wanted:
            return
        now = monotonic()
        self._calls[exchange] = call = _Call(exchange, answerer, now)
        if len(self._calls) - self._capacity > self.queue_most:
            self.queue_most = len(self._calls) - self._capacity
        if self._score is not None:
            call.cell = cell = self._free.pop() if self._free else self._another(self._score)
            if cell is not None:
                if answerer.lasting:
                    cell.open(now)
                else:
                    cell.begin(now)
                if self._tell_at_once:
                    call.told = True
                    cell.tell(exchange, cell.number)
        if self._resting:
            self._stir()

    def _another(self, score: Score) -> Cell | None:
        if self._taken < self._most:
            cell = score.thread()
            if cell is not None:
                self._taken += 1
                return cell
        if self._rest is None:
            self._rest = score.thread()
        return None

    def over(self, exchange: Exchange) -> None:
        """A request has been answered or given up, be it that the application never got it."""
        if not self._wanted:
            return
        call = self._calls.pop(exchange, None)
        if call is None:
            if exchange.aborted:
                self.dropped += 1
            elif exchange.refused is not None:
                self.refused += 1
                self.queue_full += exchange.refused.status.startswith("503")
            return
        self._requests += 1
        now = monotonic()
        cell = call.cell
        if cell is not None:
            cell.end(exchange, now)
            self._free.append(cell)
        elif self._rest is not None:
            self._rest.add(exchange, now, call.began)
        if self._requests == self.most and self.spent is not None:
            self.spent()

    def _sign(self) -> None:
        self._asked = 0.0

    def _expire(self, call: _Call) -> None:
        if call.exchange not in self._calls:
            return
        task = call.answerer.task
        _say("gave up a request", call, stack_of(task))
        call.exchange.error = LATE
        call.answerer.expire()
        if task is not None and not task.done():
            self._cancelled.append((task, monotonic(), request_line(call.exchange)))

    def _tell_slow(self, call: _Call) -> None:
        if call.exchange in self._calls:
            _say("slow", call, stack_of(call.answerer.task))

    # ---------------------------------------------------------------- the watch

    def _stir(self) -> None:
        self._resting = False
        with contextlib.suppress(RuntimeError):  # it was stirred already
            self._wake.release()

    def _run(self) -> None:
        pause = TICK
        while not self._over:
            self._wake.acquire(timeout=pause)
            try:
                busy = self._tick(monotonic())
                self._resting = not busy
                if self._calls:  # it began just now
                    self._resting = False
                pause = TELL_IDLE if self._resting else TICK
            except Exception:
                if not self._over:
                    log.exception("an error in the watch over the loop")
                pause = ERROR_PAUSE

    def _tick(self, now: float) -> bool:
        """Look at everything; say whether to look again soon."""
        calls = list(self._calls.values())
        blocked = self._ask(now, bool(calls))
        if blocked > TICK:
            self._see_blocked(calls, now, blocked)
        for call in calls:
            self._look(call, now, blocked)
        self._see_cancelled(now)
        sizes = (*self._sizes(), self._requests)
        news = bool(calls) or sizes != self._known
        if self._told + (TELL if news else TELL_IDLE) <= now + TICK / 2:
            self._known = sizes
            self._tell(now)
        return bool(calls or self._cancelled or self._asked or news)

    def _ask(self, now: float, busy: bool) -> float:
        """Ask the loop for a sign; give the seconds since which it has owed one."""
        if self._asked:
            return now - self._asked
        self._said_blocked = self._gave_up = False
        if busy or now - self._last_asked >= TELL_IDLE - TICK:
            self._asked = self._last_asked = now
            self._loop.call_soon_threadsafe(self._sign)
        return 0.0

    def _look(self, call: _Call, now: float, blocked: float) -> None:
        lasted = now - call.began
        if not call.told and lasted >= TICK and call.cell is not None:
            call.told = True
            number = call.cell.number
            # Not over when we looked: so the number was this one's.
            if call.exchange in self._calls:
                call.cell.tell(call.exchange, number)
        if blocked > 2 * TICK or call.answerer.lasting or call.late:
            return  # while the loop is blocked, none of them has a chance
        if lasted >= self._timeout:
            call.late = True
            self._loop.call_soon_threadsafe(self._expire, call)
        elif lasted >= self._slow_after and not call.slow:
            call.slow = True
            self._loop.call_soon_threadsafe(self._tell_slow, call)

    def _see_blocked(self, calls: list[_Call], now: float, blocked: float) -> None:
        """The loop runs something that does not end: tell of it, then have it ended."""
        over = blocked >= self._timeout and not self._gave_up
        if not over and (self._said_blocked or blocked < min(BLOCKED, self._slow_after)):
            return
        task = asyncio.current_task(self._loop)
        stack = _format(_frames(sys._current_frames().get(self._ident)))
        if not self._asked:
            return  # it goes on
        call = next((c for c in calls if task is not None and c.answerer.task is task), None)
        what = "gave up a loop that is blocked" if over else "the loop is blocked"
        if call is not None:
            call.slow = True
            _say(what, call, stack, blocked)
        else:
            log.warning("%s: %.1f s so far, not by a request's own task\n%s", what, blocked, stack)
        self._said_blocked = True
        if over:
            self._gave_up = True
            if self.blocked is not None:
                self.blocked()

    def _see_cancelled(self, now: float) -> None:
        """An application need not end because it is cancelled."""
        for item in list(self._cancelled):
            task, since, line = item
            if task.done():
                self._cancelled.remove(item)
            elif now - since > TO_END:
                self._cancelled.remove(item)
                log.error('"%s" was cancelled, and does not end\n%s', line, stack_of(task))
                if self.late is not None:
                    self.late()

    def _tell(self, now: float) -> None:
        self._told = now
        if self._score is not None:
            connections, accepted = self._sizes()
            queued = max(0, len(self._calls) - self._capacity)
            counts = (self.refused, self.dropped, self.queue_most, self.queue_full)
            self._score.tell(connections, queued, accepted, *counts)


def _say(what: str, call: _Call, stack: str, lasted: float | None = None) -> None:
    exchange = call.exchange
    log.warning(
        '%s: %.1f s so far: "%s" id=%s\n%s',
        what,
        monotonic() - call.began if lasted is None else lasted,
        request_line(exchange),
        request_id(exchange),
        stack,
    )


def stack_of(task: asyncio.Task[Any] | None) -> str:
    """Give the stack of a task that waits, through all that it awaits; "" for none."""
    frames: list[tuple[FrameType, int]] = []
    awaited: Any = task.get_coro() if task is not None else None
    while awaited is not None:
        for kind in ("cr", "gi", "ag"):  # a coroutine, a generator, an asynchronous one
            frame = getattr(awaited, f"{kind}_frame", None)
            if frame is not None:
                frames.append((frame, frame.f_lineno))
                rest = "gi_yieldfrom" if kind == "gi" else f"{kind}_await"
                awaited = getattr(awaited, rest, None)
                break
        else:
            break
    return _format(iter(frames))


def _frames(frame: FrameType | None) -> Iterator[tuple[FrameType, int]]:
    return iter(list(traceback.walk_stack(frame))[::-1] if frame is not None else [])


def _format(frames: Iterator[tuple[FrameType, int]]) -> str:
    return "".join(traceback.StackSummary.extract(frames).format()).rstrip()
