"""Several requests on a connection where one thread serves all (FastCGI's multiplexing).

What the connections of asyncio and of Twisted's reactor have in common in that state, which is a
class of its own: from the moment at which a second request begins beside another one, or the peer
asks whether it may, or nobody reads the body of an only one for a moment (there may be another one
behind it), until none is left. As in `shared.py`, each request has a lane; what nobody reads of a
body is spooled, and all is received, always, but for what `is_far` says; of what is written the
transport gets a unit of each lane in turn, and little at a time.

All is called in the thread of the loop, but for what `tx_shared.py` calls under *the lock*, which
guards the lanes, what is in them, and the protocol. asyncio's needs none.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from fulgate.drivers import lanes
from fulgate.drivers.lanes import UNIT, pieces
from fulgate.drivers.phases import (
    AHEAD_MOST,
    ARRIVED_AT_STOP,
    ARRIVING,
    CLOSING,
    FOREVER,
    IDLE,
    LINGER,
    RECEIVE,
    RUNNING,
    WAITING,
)
from fulgate.drivers.spool import forget, kept, spool
from fulgate.errors import Aborted, LimitExceeded
from fulgate.exchange import Buffer, Exchange, Headers, ServerProtocol
from fulgate.logs import log_refusal, request_line

__all__ = ["Beside", "Lane"]

log = logging.getLogger("fulgate")

LASTING_MOST: Final = 1 << 20  # unread bytes of what is no body, and so not spooled


class Lane(lanes.Lane):
    """The lane of a request that an answerer answers."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        self.answerer: Any = None
        self.paused = False  # its answerer was told that the client reads slowly


class Beside:
    """The state of a connection in which it has no `running` request, and each has its lane."""

    _lanes: dict[Exchange, Lane]
    _queue: deque[Lane]  # those with something unsent
    _unread: bool  # an answer has ended before its request's body had
    _far: bool  # what is kept of a body is as much as may be
    _taking: bool  # what moved is being seen to, so that there may be more requests than lanes

    if TYPE_CHECKING:  # what the connection has
        hub: Any
        lock: Any
        wire: ServerProtocol
        running: Exchange | None
        closed: bool
        full: bool
        deaf: bool
        _answerer: Any
        _waiting: Exchange | None
        _phase: int
        _deadline: float

        def hear(self) -> None: ...
        def _stop_hearing(self) -> None: ...
        def _may_start(self, exchange: Exchange) -> bool: ...
        def _is_for_gateway(self, exchange: Exchange) -> bool: ...
        def _in(self, seconds: float) -> float: ...
        def _alarm(self) -> None: ...

    # ---------------------------------------------------------------- what each driver does

    def _be_alone(self) -> None:
        """Become a connection like any other, under the lock."""
        raise NotImplementedError

    def _put(self, exchange: Exchange, buffers: list[Buffer]) -> None:
        """Write a unit, or put it into the lane, under the lock."""
        raise NotImplementedError

    def _flush(self) -> None:
        """Send what was put, as far as the transport takes it."""

    def _begun(self, exchange: Exchange, answerer: Any) -> None:
        """The application is about to get an exchange."""

    def _lasting(self, lane: Lane) -> bool:
        """Is what comes for it no body?"""
        return False

    def _emptied(self) -> list[Exchange]:
        """Drop what is unsent of a connection that is closed, under the lock.

        Gives the exchanges whose end was not seen to yet.
        """
        return []

    # ---------------------------------------------------------------- called by who answers

    def send(self, exchange: Exchange, data: Buffer) -> None:
        with self.lock:
            for piece in pieces(data):
                self._put(exchange, exchange.send(piece))
        self._have_left(exchange)

    def finish(self, exchange: Exchange, data: Buffer = b"", app_status: int = 0) -> None:
        *first, last = pieces(data)
        with self.lock:
            for piece in first:
                self._put(exchange, exchange.send(piece))
            self._put(exchange, exchange.finish(last, app_status))
        self._flush()
        self._ended(exchange)

    def fail(self, exchange: Exchange) -> None:
        with self.lock:
            self._put(exchange, exchange.fail())
        self._flush()
        self._ended(exchange)

    def log(self, exchange: Exchange, text: str) -> None:
        with self.lock:
            self._put(exchange, exchange.log(text))
        self._have_left(exchange)

    def refuse(
        self,
        exchange: Exchange,
        status: str,
        headers: Headers | None = None,
        app_status: int = 0,
    ) -> None:
        if not exchange.began:
            exchange.began = monotonic()
        with self.lock, contextlib.suppress(Aborted):
            self._put(exchange, exchange.refuse(status, headers, app_status))
        self._flush()
        self._ended(exchange)

    def want(self, exchange: Exchange) -> None:
        lane = self._lanes.get(exchange)
        if lane is not None and not exchange.stream_ended:
            with self.lock:
                self._put(exchange, exchange.want(RECEIVE))
            self._flush()
            self._give_time(lane, self.hub.config.body_timeout)

    def _have_left(self, exchange: Exchange) -> None:
        """Send what was put, and have its answerer pause while too much of it is unsent."""
        self._flush()
        lane = self._lanes.get(exchange)
        if lane is None or lane.paused or lane.answerer is None:
            return
        if lane.unsent > self._most():
            lane.paused = True
            lane.answerer.pause()

    def _most(self) -> int:
        """How many bytes may be unsent in a lane?"""
        most: int = self.hub.config.write_behind // max(1, len(self._queue))
        return max(UNIT, most)

    def _resume_lanes(self) -> None:
        for lane in [lane for lane in self._lanes.values() if lane.paused]:
            if lane.unsent <= UNIT and lane.answerer is not None:
                lane.paused = False
                lane.answerer.resume()

    # ---------------------------------------------------------------- the state begins, and ends

    def _become(self) -> None:
        """Make a lane of what the connection had as the only one, under the lock."""
        phase, deadline = self._phase, self._deadline
        running, waiting = self.running, self._waiting
        answerer, self._answerer = self._answerer, None
        self.running = self._waiting = None
        self._phase = RUNNING
        self._deadline = FOREVER
        self._lanes = {}
        self._queue = deque()
        self._unread = self._taking = self._far = False
        only = running or waiting
        if only is not None:
            lane = self._new_lane(only)
            lane.phase = RUNNING if running is not None else WAITING
            lane.answerer = answerer
            lane.paused = self.full
            lane.deadline = deadline
        elif phase == ARRIVING and self.wire.count:
            self._new_lane(self.wire.requests()[0]).deadline = deadline
        self._deadline = min([lane.deadline for lane in self._lanes.values()], default=FOREVER)
        self._alarm()

    def _settle(self) -> None:
        if self.closed or self._taking or self._lanes or self._queue:
            return
        unread = self._unread
        self._deadline = FOREVER
        with self.lock:
            self.wire.shared = self.wire.shown
            self._be_alone()
        if self.wire.closing:
            self._phase = LINGER if unread else CLOSING
        else:
            self._phase = IDLE
        self._settle()

    # ---------------------------------------------------------------- requests

    def _take_beside(self, moved: list[Exchange]) -> None:
        """Act on what moved."""
        self._taking = True
        with self.lock:
            self._drop_aborted(moved)
        for exchange in moved:
            if self.closed:
                return
            if exchange.aborted:
                self._aborted(exchange)
            else:
                self._moved_beside(self._lanes.get(exchange) or self._lane(exchange))
        if not self.closed and self.wire.count != len(self._lanes):
            with self.lock:
                begun = self.wire.requests()
            for exchange in begun:
                if exchange not in self._lanes:
                    self._lane(exchange)
        self._taking = False
        if self._far:
            self.hear()
        self._settle()

    def _look_ahead_of_all(self) -> None:
        """Keep what nobody has read of an only request, so that what comes behind it is found."""
        for lane in list(self._lanes.values()):
            self._keep(lane)

    def is_far(self) -> bool:
        """Is nothing to be received until what is kept was read? Never where the peer has several.

        As long as there is something in a file, it does not become shorter.
        """
        if self._far:
            lanes = self._lanes.values()
            self._far = not self.wire.shown and any(kept(one.exchange) for one in lanes)
        return self._far

    def _new_lane(self, exchange: Exchange) -> Lane:
        lane = self._lanes[exchange] = Lane(exchange)
        return lane

    def _lane(self, exchange: Exchange) -> Lane:
        with self.lock:
            lane = self._new_lane(exchange)
        wait = self.hub.config.arrival_timeout
        if self.hub.stopping:
            wait = min(wait or FOREVER, ARRIVED_AT_STOP)
        self._give_time(lane, wait)
        return lane

    def _give_time(self, lane: Lane, seconds: float) -> None:
        lane.deadline = self._in(seconds)
        if lane.deadline < self._deadline:
            self._deadline = lane.deadline
            self._alarm()

    def _moved_beside(self, lane: Lane) -> None:
        exchange = lane.exchange
        if lane.phase == RUNNING:
            lane.deadline = FOREVER
            if self._keep(lane) and lane.answerer is not None:
                lane.answerer.moved()
        elif exchange.refused is not None:
            self._turn_away(exchange, exchange.refused)
        elif exchange.params_ended:
            if self._may_start(exchange):
                self._start_beside(lane)
            elif lane.phase != WAITING:
                lane.phase = WAITING
                self._give_time(lane, self.hub.config.body_wait)

    def _drop_aborted(self, moved: list[Exchange]) -> None:
        """Nothing of a request leaves behind its end, which was put already; under the lock."""
        for exchange in moved:
            lane = self._lanes.get(exchange) if exchange.aborted else None
            if lane is not None and lane.units:
                self._queue.remove(lane)
                lane.clear()

    def _aborted(self, exchange: Exchange) -> None:
        lane = self._lanes.get(exchange)
        self._leave_lane(exchange)
        if lane is not None and lane.answerer is not None:
            lane.answerer.aborted()
        else:
            self.hub.over(exchange)

    def _keep(self, lane: Lane) -> bool:
        """Keep in a file what nobody has read; false if the request is given up instead."""
        exchange = lane.exchange
        if self._lasting(lane):
            if exchange.body_size <= LASTING_MOST:
                return True
            log.warning("%s: what came for it is not read", request_line(exchange))
        else:
            try:
                with self.lock:
                    spool(exchange, self.hub.config.body_buffer)
                    self._far = not self.wire.shown and kept(exchange) > AHEAD_MOST
                if self._far:
                    self._stop_hearing()
                return True
            except OSError as error:
                log.error("%s: cannot keep its body: %s", request_line(exchange), error)
        self._give_up(lane, "503 Service Unavailable")
        return False

    def _start_beside(self, lane: Lane) -> None:
        exchange = lane.exchange
        if not self._is_for_gateway(exchange):
            return
        lane.phase = RUNNING
        lane.deadline = FOREVER
        if self._keep(lane):
            lane.answerer = answerer = self.hub.gateway(exchange, self)
            self._begun(exchange, answerer)
            answerer.begin()

    def _turn_away(
        self, exchange: Exchange, refused: LimitExceeded, headers: Headers | None = None
    ) -> None:
        exchange.refused = refused
        log_refusal(exchange)
        self.refuse(exchange, refused.status, headers)
        self.hub.over(exchange)

    def _give_up(self, lane: Lane, status: str) -> None:
        """End one request before its time: with this answer, or as a broken one."""
        exchange = lane.exchange
        with self.lock:
            if exchange.ended or exchange.aborted:
                return
            broken = exchange.head_sent or not exchange.params_ended
            self._put(exchange, exchange.fail() if broken else exchange.refuse(status))
            exchange.aborted = True  # what its application does from now on raises Aborted
        self._flush()
        self._ended(exchange)
        if lane.answerer is not None:
            lane.answerer.aborted()
        else:
            self.hub.over(exchange)

    def _ended(self, exchange: Exchange) -> None:
        with self.lock:
            self.wire.done(exchange)
        self._leave_lane(exchange)
        self._settle()

    def _leave_lane(self, exchange: Exchange) -> None:
        if not (exchange.input_ended or exchange.broken or exchange.aborted):
            self._unread = True
        with self.lock:
            self._lanes.pop(exchange, None)
            forget(exchange)
        if self._far:
            self.hear()

    def _gone(self) -> None:
        if self.closed:
            return
        gone = list(self._lanes.values())
        begun = {lane.exchange for lane in gone if lane.answerer is not None}
        self._deadline = FOREVER
        with self.lock:
            self.closed = True
            aborted = self.wire.eof()
            for exchange in aborted:
                forget(exchange)
            self._lanes.clear()
            self._queue.clear()
            ended = self._emptied()
        for exchange in aborted:
            if exchange not in begun:
                self.hub.over(exchange)
        for lane in gone:
            if lane.answerer is not None and lane.exchange not in ended:
                lane.answerer.aborted()

    # ---------------------------------------------------------------- deadlines

    def _expire_lanes(self, now: float) -> None:
        for lane in list(self._lanes.values()):
            if lane.deadline > now or self.closed:
                continue
            lane.deadline = FOREVER
            if lane.phase == WAITING:
                self._start_beside(lane)
            else:
                log.info("gave up a request, beside others: it did not arrive in time")
                self._give_up(lane, "408 Request Timeout")
        if not self.closed and (self._lanes or self._queue):  # else it is alone again
            self._deadline = min([lane.deadline for lane in self._lanes.values()], default=FOREVER)
            self._alarm()
