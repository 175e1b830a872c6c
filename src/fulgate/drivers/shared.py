"""A connection of the threads driver while several requests are on it (FastCGI's multiplexing).

`wire.py` is a connection whose requests come one after the other: its thread pulls the body, and
what it writes leaves in its order. From the moment at which a second request begins beside another
one (or the peer asks whether it may), until none is left, the connection is SHARED instead:

- Whoever polls receives, always (`inbound` stays ARMED), since what comes for one request must not
  keep us from hearing of the others. A thread that wants body waits until some has come; what
  nobody reads goes to a file, up to the limit of a body.
- So it is as well once nobody has read the body of an only request for a moment: there may be
  another one behind it. But where the peer never had several, there is an end to that (`_far`):
  so much is kept, and what follows waits with the peer until the application has read that.
- Each request has a *lane*: its phase, its deadline, and what was written for it and has not left.
  Lanes take turns, a unit each; a unit is a list of buffers that the protocol gave at once, and
  nothing comes in between. Only little of it is in the outbox at a time, so that a small answer
  does not wait behind a large one. A thread waits while too much of its own lane is unsent.

A connection that is idle is one like any other, whatever was on it before.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections import deque
from time import monotonic
from typing import Final

from fulgate.drivers import lanes
from fulgate.drivers.lanes import FEED, UNIT
from fulgate.drivers.outbox import File
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
    SHARED,
    WAITING,
)
from fulgate.drivers.spool import forget, kept, spool
from fulgate.drivers.wire import APP, Hub, Wire
from fulgate.errors import Aborted
from fulgate.exchange import Buffer, Exchange, ServerProtocol
from fulgate.logs import request_line

__all__ = ["SharedWire"]

log = logging.getLogger("fulgate")

FLUSH: Final = 16  # times that the outbox is filled in one flush: others want the thread, too


class Lane(lanes.Lane):
    """The lane of a request that a thread answers. Guarded by the connection's lock."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        self.enough = -1  # a thread waits until no more is unsent
        self.changed: threading.Condition | None = None

    def wait(self, lock: threading.Lock, seconds: float | None) -> bool:
        """Wait for a change, without the lock; false when the time is over."""
        if self.changed is None:
            self.changed = threading.Condition(lock)
        return self.changed.wait(seconds)

    def wake(self) -> None:
        if self.changed is not None:
            self.changed.notify_all()


# What connections have that were never shared: 4,000 idle ones would pay 3 MB for their own.
NONE: Final[deque[Lane]] = deque(maxlen=0)


class SharedWire(Wire):
    """A connection, with what is done by whoever polls when there are several requests."""

    def __init__(self, hub: Hub, sock: socket.SocketType, protocol: ServerProtocol) -> None:
        super().__init__(hub, sock, protocol)
        self._lanes: dict[Exchange, Lane] = {}
        self._queue = NONE  # those with something unsent; then the outbox has, too
        self._write_by = FOREVER
        self._unread = False  # an answer has ended before its request's body had
        self._dry = False  # all that the peer has sent was received, and requests go on
        self._sent = 0  # bytes that have left the outbox
        self._left: threading.Condition | None = None  # told of that

    # ---------------------------------------------------------------- what has come

    def _take_beside(self, moved: list[Exchange]) -> None:
        now = monotonic()
        if self.phase != SHARED:
            self._share(now)
        elif self.protocol.shown:
            self._far = False
        lanes = self._lanes
        for exchange in moved:
            if self.closed:
                return
            if exchange.aborted:
                self._aborted(exchange)
            else:
                lane = lanes.get(exchange)
                self._moved_beside(lane or self._lane(exchange, now), now)
        if not self.closed and self.protocol.count != len(lanes):
            for exchange in self.protocol.requests():
                if exchange not in lanes:
                    self._lane(exchange, now)

    def _look_ahead(self, exchange: Exchange, now: float) -> None:
        self._ahead = FOREVER
        if exchange.body_size <= self.hub.config.body_buffer:
            self.deadline = FOREVER
            if self.outbox.size:
                self._set_write_deadline()
            return
        self.protocol.shared = True
        self._share(now)
        self._keep(exchange)
        self._settle()

    def _share(self, now: float) -> None:
        """Make a lane of what the connection had as the only one."""
        phase, deadline = self.phase, self.deadline
        running, waiting = self.running, self.waiting
        self.running = self.waiting = None
        self._queue = deque()
        self.phase = SHARED
        self.deadline = self._ahead = FOREVER
        if running is not None:
            lane = self._lane(running, now)
            lane.phase = RUNNING
            lane.deadline = FOREVER
        elif waiting is not None:
            lane = self._lane(waiting, now)
            lane.phase = WAITING
            lane.deadline = deadline
        elif phase == ARRIVING and self.protocol.count:
            self._lane(self.protocol.requests()[0], now).deadline = deadline
        self._watch_writing(True)

    def _lane(self, exchange: Exchange, now: float) -> Lane:
        lane = self._lanes[exchange] = Lane(exchange)
        limit = self.hub.config.arrival_timeout or FOREVER
        if self.hub.stopping:
            limit = min(limit, ARRIVED_AT_STOP)
        self._give_time(lane, now + limit)
        return lane

    def _give_time(self, lane: Lane, deadline: float) -> None:
        lane.deadline = deadline
        if deadline < self.deadline:
            self._set_deadline(deadline)

    def _drop_aborted(self, moved: list[Exchange]) -> None:
        for exchange in moved:
            lane = self._lanes.get(exchange) if exchange.aborted else None
            if lane is not None and lane.units:
                self._queue.remove(lane)
                lane.clear()

    def _aborted(self, exchange: Exchange) -> None:
        lane = self._lanes.get(exchange)
        if lane is None or lane.phase != RUNNING or exchange.leaving:
            self._unlogged.append(exchange)
        self._leave_lane(exchange)

    def _moved_beside(self, lane: Lane, now: float) -> None:
        exchange = lane.exchange
        if lane.phase == RUNNING:
            if exchange.leaving:
                exchange.take()
            else:
                self._keep(exchange)
                lane.wake()
        elif exchange.refused is not None:
            self._refuse(exchange, exchange.refused)
        elif exchange.params_ended:
            if self._may_start(exchange):
                self._start_beside(lane, now)
            elif lane.phase != WAITING:
                lane.phase = WAITING
                self._give_time(lane, now + self.hub.config.body_wait)

    def _keep(self, exchange: Exchange) -> None:
        """Keep in a file what nobody has read."""
        try:
            spool(exchange, self.hub.config.body_buffer)
            self._far = not self.protocol.shown and kept(exchange) > AHEAD_MOST
        except OSError as error:
            log.error("%s: cannot keep its body: %s", request_line(exchange), error)
            self._give_up(exchange, "503 Service Unavailable")

    def _start_beside(self, lane: Lane, now: float) -> None:
        exchange = lane.exchange
        deadline = self.deadline
        self._start(exchange, now)
        if self.running is exchange:  # else it was answered at once
            self.running = None
            self.phase = SHARED
            self.deadline = deadline
            lane.phase = RUNNING
            lane.deadline = FOREVER
            self._keep(exchange)

    def _has_come(self) -> bool:
        if self._deaf and self.phase == SHARED and self._lanes:
            self._dry = True
        return self._dry

    # ---------------------------------------------------------------- what becomes of it

    def _leave_lane(self, exchange: Exchange) -> None:
        self._far = False
        if not (exchange.input_ended or exchange.broken or exchange.aborted):
            self._unread = True
        lane = self._lanes.pop(exchange, None)
        if lane is not None:
            lane.wake()
        forget(exchange)

    def _give_up(self, exchange: Exchange, status: str) -> None:
        lane = self._lanes.get(exchange)
        if lane is None:
            return
        broken = exchange.head_sent or not exchange.params_ended
        if not exchange.began:
            exchange.began = monotonic()
        with contextlib.suppress(Aborted):
            self._put(lane, exchange.fail() if broken else exchange.refuse(status))
        if lane.phase != RUNNING:
            self._unlogged.append(exchange)
        exchange.aborted = True  # what its thread does from now on raises Aborted
        if not self.closed:
            self.protocol.done(exchange)
            self._leave_lane(exchange)
            self._settle()

    def _settle_beside(self) -> None:
        if self._lanes:
            if self._dry:
                self.inbound = APP
            return
        if self.outbox.size:
            return  # `_flush_beside` comes back here
        unread, self._unread = self._unread, False
        self.protocol.shared = self.protocol.shown
        self.deadline = FOREVER
        if self.protocol.closing:
            self.phase = LINGER if unread else CLOSING
            self._settle_closing()
        elif self.protocol.idle:
            self.phase = IDLE
            self._settle_idle()
        else:
            self.phase = ARRIVING
            self._set_deadline(monotonic() + (self.hub.config.arrival_timeout or FOREVER))

    def _expire_beside(self, now: float) -> None:
        if self._write_by <= now:
            log.info("closed a connection: its client did not read the answer in time")
            self._close()
            return
        for lane in list(self._lanes.values()):
            if self.closed:
                return
            if lane.deadline > now:
                continue
            if lane.phase == WAITING:
                self._start_beside(lane, now)
            else:
                log.info("gave up a request, beside others: it did not arrive in time")
                self._give_up(lane.exchange, "408 Request Timeout")
        if not self.closed and self.phase == SHARED:
            nearest = [lane.deadline for lane in self._lanes.values()]
            self.deadline = min([self._write_by, *nearest])
            self._settle()

    def _close_beside(self, aborted: list[Exchange]) -> None:
        for exchange in aborted:
            lane = self._lanes.get(exchange)
            if lane is None or lane.phase != RUNNING or exchange.leaving:
                self._unlogged.append(exchange)
            forget(exchange)
        for lane in (*self._lanes.values(), *self._queue):
            lane.wake()
        self._lanes.clear()
        self._queue.clear()
        self._tell_left()

    # ---------------------------------------------------------------- what goes

    def _put(self, lane: Lane, buffers: list[Buffer]) -> None:
        """Send a unit, or put it into the lane. Raises Aborted."""
        if self.closed:
            raise Aborted("the connection is closed")
        if lane.exchange.aborted:  # while its thread waited for room; its end was sent since
            raise Aborted("the request was given up by the web server")
        unit = buffers[0] if len(buffers) == 1 else b"".join(buffers)
        if not unit:
            return
        if not self.outbox.size:
            self._write([unit])
            self._watch_writing(True)
        else:
            if not lane.units:
                self._queue.append(lane)
            lane.put(bytes(unit))
        if self.outbox.size:
            self._arm()

    def _feed(self) -> None:
        """Fill the outbox, a unit of each lane in turn."""
        outbox, queue = self.outbox, self._queue
        while queue and outbox.size < FEED:
            lane = queue.popleft()
            outbox.put(lane.take())
            if lane.units:
                queue.append(lane)
            if lane.unsent <= lane.enough:
                lane.wake()

    def _flush_beside(self) -> None:
        outbox = self.outbox
        progress = False
        try:
            for _ in range(FLUSH):
                self._feed()
                size = outbox.size
                if not size:
                    break
                progress = outbox.send(self.sock) or progress
                self._sent += size - outbox.size
                if outbox.left:
                    self._files_left()
                if outbox.size:
                    break  # the socket is full, or a file has had its turn
        except OSError:
            self._close()
            return
        self._feed()
        if progress:
            self._tell_left()
        self._watch_writing(progress)
        if not outbox.size and not self._lanes:
            self._settle_beside()

    def _watch_writing(self, progress: bool) -> None:
        """See to it that what was written leaves: bytes have to, within `send_timeout`."""
        if not self.outbox.size:
            self._write_by = FOREVER
        elif progress or self._write_by == FOREVER:
            self._write_by = monotonic() + (self.hub.config.send_timeout or FOREVER)
            if self._write_by < self.deadline:
                self._set_deadline(self._write_by)

    def _tell_left(self) -> None:
        if self._left is not None:
            self._left.notify_all()

    # ---------------------------------------------------------------- called by a request's thread

    # All of these are called, and return, under the lock; where they wait they let go of it.

    def _receive_beside(self, exchange: Exchange) -> bytes:
        """Wait for the next piece of the body and take it; b"" at its end. Raises Aborted."""
        blocking = False
        received = -1
        late = FOREVER
        while True:
            if exchange.aborted:
                raise Aborted("the request was given up by the web server")
            if exchange.refused is not None:
                raise Aborted(str(exchange.refused))
            data = exchange.take()
            if data or exchange.stream_ended:
                return data
            if not blocking:
                blocking = True
                self.hub.blocking()
            if exchange.received != received:
                received = exchange.received
                late = monotonic() + (self.hub.config.body_timeout or FOREVER)
                wanted = exchange.want(RECEIVE)
                if wanted:
                    self._write(wanted)
            left = late - monotonic()
            if left <= 0:
                log.info("a request's body did not arrive in time")
                self._give_up(exchange, "408 Request Timeout")
                raise Aborted("the body did not arrive in time")
            self._lane_of(exchange).wait(self.lock, left if left < FOREVER else None)

    def _lane_of(self, exchange: Exchange) -> Lane:
        lane = self._lanes.get(exchange)
        if lane is None:
            raise Aborted("the request was given up by the web server")
        return lane

    def _send_beside(self, exchange: Exchange, data: Buffer) -> None:
        lane = self._lane_of(exchange)
        size = len(data)
        if size <= UNIT:
            self._put(lane, exchange.send(data))
        else:
            view = memoryview(data)
            for pos in range(0, size, UNIT):
                self._put(lane, exchange.send(view[pos : pos + UNIT]))
                self._wait_for_lane(lane, -1)
        self._wait_for_lane(lane, -1)
        if exchange.aborted:
            raise Aborted("the request was given up by the web server")

    def _finish_beside(self, exchange: Exchange, data: Buffer, app_status: int) -> None:
        rest = data
        if len(data) > UNIT:
            at = (len(data) - 1) // UNIT * UNIT
            self._send_beside(exchange, memoryview(data)[:at])
            rest = memoryview(data)[at:]
        lane = self._lane_of(exchange)
        self._put(lane, exchange.finish(rest, app_status))
        self._end_beside(exchange)
        self._wait_for_lane(lane, 0 if exchange.after else -1)

    def _fail_beside(self, exchange: Exchange) -> None:
        self._put(self._lane_of(exchange), exchange.fail())
        self._end_beside(exchange)

    def _finish_file_beside(self, file: File) -> None:
        exchange = file.exchange
        lane = self._lanes.get(exchange)
        if lane is not None:
            self._wait_for_lane(lane, 0)  # the file leaves by the outbox, where all else is by then
        if self.closed or exchange.aborted or lane is None:
            file.close()
            raise Aborted("the request was given up by the web server")
        self.outbox.put_file(file)
        self._flush()
        if not exchange.ended and not exchange.aborted:
            # A slow client costs no thread: whoever polls sends the rest, and ends the answer.
            exchange.leaving = True
        self._settle()
        if exchange.aborted:
            raise Aborted("the connection was closed by the web server")

    def _end_beside(self, exchange: Exchange) -> None:
        self.protocol.done(exchange)
        if not self.closed:
            self._leave_lane(exchange)
            self._settle()

    def _wait_for_lane(self, lane: Lane, enough: int) -> None:
        """Wait until at most `enough` bytes are unsent; -1 is what all lanes may have, together."""
        most = enough
        if enough < 0:
            most = max(UNIT, self.hub.write_behind // max(1, len(self._queue)))
            enough = most // 2
        if lane.unsent <= most:
            return
        self.hub.blocking()
        lane.enough = enough
        while lane.unsent > enough and not self.closed and not lane.exchange.aborted:
            lane.wait(self.lock, None)
        lane.enough = -1

    def _wait_until_left(self) -> None:
        """Wait until what is in the outbox now has left, or the connection is closed."""
        end = self._sent + self.outbox.size
        if self.outbox.size:
            self.hub.blocking()
        while self._sent < end and self.phase == SHARED and not self.closed:
            if self._left is None:
                self._left = threading.Condition(self.lock)
            self._left.wait()
