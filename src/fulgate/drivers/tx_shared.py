"""A connection of the reactor's driver while several requests are on it; see `beside.py`.

What is put, also by other threads, goes into the lanes; the reactor takes it out of them, when the
transport has room. What was put before there were several, and what the protocol owes, goes first.
"""

from __future__ import annotations

from fulgate.drivers import lanes
from fulgate.drivers.beside import Beside
from fulgate.drivers.lanes import FEED
from fulgate.drivers.phases import FOREVER
from fulgate.drivers.tx_connection import Connection
from fulgate.exchange import Buffer, Exchange

__all__ = ["SharedConnection"]


class SharedConnection(Beside, Connection):
    """A connection with several requests."""

    @classmethod
    def of(cls, connection: Connection) -> SharedConnection:
        """Have a connection be shared, with lanes for what it has as the only one.

        It changes its class, under the lock: under it other threads find either the one or the
        other.
        """
        with connection.lock:
            connection.__class__ = cls
            assert isinstance(connection, cls)
            connection._become()
        connection.hear()
        return connection

    def _be_alone(self) -> None:
        self.__class__ = Connection  # type: ignore[assignment]

    # ---------------------------------------------------------------- under the lock

    def pieces(self, data: Buffer) -> list[Buffer]:
        return lanes.pieces(data)

    def put(self, exchange: Exchange, buffers: list[Buffer]) -> None:
        lane = self._lanes.get(exchange)
        if self.closed or not buffers or lane is None:
            return
        if not lane.units:
            self._queue.append(lane)
        lane.put(b"".join(buffers))

    _put = put

    def backlog(self, exchange: Exchange) -> int:
        for lane in self._queue:  # also of one that has ended
            if lane.exchange is exchange:
                return lane.unsent
        return 0

    def most(self) -> int:
        return self._most()

    def _batch(self) -> bytes:
        batch = [super()._batch()]
        size = len(batch[0])
        queue = self._queue
        while queue and size < FEED:
            lane = queue.popleft()
            unit = lane.take()
            if lane.units:
                queue.append(lane)
            batch.append(unit)
            size += len(unit)
        return b"".join(batch)

    # ---------------------------------------------------------------- the reactor's thread

    def hear(self) -> None:
        if not self.is_far():
            super().hear()

    def _flush(self) -> None:
        self._write()
        if isinstance(self, SharedConnection):  # else what ended was the last
            self._resume_lanes()
            self._settle()

    def _gone(self) -> None:
        super()._gone()
        self._write_by = FOREVER

    def _expire(self) -> None:
        self._call = None
        now = self.hub.reactor.seconds()
        if self._writes_in_time(now):
            self._expire_lanes(now)
