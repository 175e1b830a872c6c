"""A connection of the asyncio driver while several requests are on it; see `beside.py`.

All happens in the loop's thread. What the transport does not take at once is in the lanes.
"""

from __future__ import annotations

import contextlib
from typing import Any

from fulgate.drivers.aio_connection import Connection
from fulgate.drivers.beside import Beside, Lane
from fulgate.drivers.lanes import FEED
from fulgate.exchange import Buffer, Exchange

__all__ = ["Shared"]


def _of(name: str) -> Any:
    """Give a property that is an attribute of the connection."""

    def get(shared: Shared) -> Any:
        return getattr(shared.connection, name)

    def put(shared: Shared, value: Any) -> None:
        setattr(shared.connection, name, value)

    return property(get, put)


class Shared(Beside):
    """What a connection has in that state.

    It is no class that the connection is given, since that one is compiled, and so has its class
    for ever. It leaves to this what differs for several requests, and this works on its attributes.
    """

    lock = contextlib.nullcontext()  # nothing of it is in another thread
    hub = _of("hub")
    wire = _of("wire")
    transport = _of("transport")
    running = _of("running")
    closed = _of("closed")
    full = _of("full")
    deaf = _of("deaf")
    hear = _of("hear")
    _stop_hearing = _of("_stop_hearing")
    _answerer = _of("_answerer")
    _waiting = _of("_waiting")
    _phase = _of("_phase")
    _deadline = _of("_deadline")
    _may_start = _of("_may_start")
    _is_for_gateway = _of("_is_for_gateway")
    _in = _of("_in")
    _alarm = _of("_alarm")

    def __init__(self, connection: Connection) -> None:
        """Take over what the connection has as the only request."""
        self.connection = connection
        connection.shared = self
        self._become()
        connection.transport.set_write_buffer_limits(FEED, FEED // 2)
        connection.hear()

    def _be_alone(self) -> None:
        connection = self.connection
        connection.shared = None
        limit = connection.hub.config.write_behind
        connection.transport.set_write_buffer_limits(limit, limit // 2)

    def _settle(self) -> None:
        if self.connection.shared is self:
            super()._settle()
        else:
            self.connection._settle()

    # ---------------------------------------------------------------- called by the connection

    def take(self, moved: list[Exchange]) -> None:
        """Act on what moved."""
        self._take_beside(moved)

    def look_ahead(self) -> None:
        """Take what comes behind the only request's body, which nobody reads."""
        self._look_ahead_of_all()

    def feed(self) -> None:
        """Give the transport what it takes, a unit of each lane in turn."""
        connection = self.connection
        queue = self._queue
        while queue and not connection.full and not connection.closed:
            lane = queue.popleft()
            unit = lane.take()
            if lane.units:
                queue.append(lane)
            connection._write([unit])
        self._resume_lanes()
        self._settle()

    def gone(self) -> None:
        """Nothing is sent any more."""
        self._gone()

    def expire(self, now: float) -> None:
        """Act on deadlines that are over."""
        self._expire_lanes(now)

    # ---------------------------------------------------------------- requests

    def _begun(self, exchange: Exchange, answerer: Any) -> None:
        self.connection.hub.begun(exchange, answerer)

    def _lasting(self, lane: Lane) -> bool:
        return lane.answerer is not None and lane.answerer.lasting

    def _put(self, exchange: Exchange, buffers: list[Buffer]) -> None:
        connection = self.connection
        lane = self._lanes.get(exchange)
        if connection.closed or not buffers or lane is None:
            return
        if not connection.full:
            connection._write(buffers)
            return
        if not lane.units:
            self._queue.append(lane)
        lane.put(b"".join(buffers))
