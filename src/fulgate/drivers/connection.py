"""One connection of the threads driver, as the thread sees it that runs the application."""

from __future__ import annotations

import logging
import select

from fulgate.drivers.outbox import File
from fulgate.drivers.phases import FOREVER, RECEIVE, SHARED
from fulgate.drivers.poller import READ
from fulgate.drivers.shared import SharedWire
from fulgate.drivers.spool import kept
from fulgate.drivers.wire import APP, ARMED, READING
from fulgate.errors import Aborted
from fulgate.exchange import Buffer, Exchange

__all__ = ["Connection"]

log = logging.getLogger("fulgate")


class Connection(SharedWire):
    """A connection whose requests are answered by threads that may block.

    A thread that waits for the descriptor hands the lead on first (`Hub.blocking`), and owns
    inbound or counts as a user meanwhile, so that nobody closes the descriptor under it. Where the
    connection is SHARED it waits for whoever polls instead.
    """

    sends_files = True

    def receive(self, exchange: Exchange) -> bytes:
        while True:
            with self.lock:
                data = self._body(exchange)
                if data is not None:
                    return data
                if self.phase == SHARED:
                    return self._receive_beside(exchange)
                self.inbound = READING
                wanted = exchange.want(RECEIVE)
                if wanted:
                    self._write(wanted)
            received = self._recv_or_wait()
            with self.lock:
                self.inbound = APP
                if self.closed:
                    self._release_descriptor()
                else:
                    if received is None:
                        log.info("a request's body did not arrive in time")
                        self._close()
                        raise Aborted("the body did not arrive in time")
                    self._take(received)
                    if self.running is None:
                        self._settle()
                        self.hub.poller.wake()  # requests may be queued, and nobody may know
                    elif self.running is not exchange:
                        self.hub.poller.wake()  # another request is queued, and nobody may know
            if self._unlogged:
                self._log_ended()

    def _body(self, exchange: Exchange) -> bytes | None:
        """Give what can be returned without receiving, or None. Raises Aborted."""
        if exchange.aborted:
            raise Aborted("the request was given up by the web server")
        if exchange.refused is not None:
            raise Aborted(str(exchange.refused))
        data = exchange.take()
        if data:
            self._ahead = FOREVER
            if self.inbound == ARMED and not self._armed & READ:
                if self._far and not kept(exchange):
                    self._far = False
                self._arm()  # there is room for more
            return data
        return b"" if exchange.stream_ended else None

    def _recv_or_wait(self) -> bytes | None:
        """Receive, waiting up to the deadline; b"" when the peer is gone, None when it is late."""
        try:
            return self.sock.recv(RECEIVE)
        except BlockingIOError:
            pass
        except OSError:
            return b""
        self.hub.blocking()
        limit = self.hub.config.body_timeout
        try:
            if not _wait(self.fd, select.POLLIN, limit):
                return None
            return self.sock.recv(RECEIVE)
        except BlockingIOError:
            return self._recv_or_wait()  # somebody else's signal, or a checksum that failed
        except OSError:
            return b""

    def send(self, exchange: Exchange, data: Buffer) -> None:
        with self.lock:
            if self.phase == SHARED:
                self._send_beside(exchange, data)
                return
            self._write(exchange.send(data))
            if self.outbox.size <= self.hub.write_behind:
                if self.outbox.size:
                    self._arm()
                return
            self._users += 1
        self._wait_writable(self.hub.write_behind // 2)
        if exchange.aborted:
            raise Aborted("the request was given up by the web server")

    def finish(self, exchange: Exchange, data: Buffer = b"", app_status: int = 0) -> None:
        lock = self.lock
        lock.acquire()
        try:
            if self.phase == SHARED:
                self._finish_beside(exchange, data, app_status)
                return
            self._write(exchange.finish(data, app_status))
            self._end(exchange)
            if self.outbox.size <= self.hub.write_behind or self.closed:
                return
            self._users += 1
        finally:
            lock.release()
        self._wait_writable(self.hub.write_behind)

    def finish_file(self, exchange: Exchange, fd: int, offset: int, size: int) -> None:
        file = File(exchange, fd, offset, size)
        with self.lock:
            if self.phase == SHARED:
                self._finish_file_beside(file)
                return
            if self.closed or exchange.aborted:
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

    def fail(self, exchange: Exchange) -> None:
        with self.lock:
            if self.phase == SHARED:
                self._fail_beside(exchange)
                return
            self._write(exchange.fail())
            self._end(exchange)

    def log(self, exchange: Exchange, text: str) -> None:
        with self.lock:
            buffers = exchange.log(text)
            if buffers and self.phase == SHARED:
                self._put(self._lane_of(exchange), buffers)
            elif buffers:
                self._write(buffers)
                if self.outbox.size:
                    self._arm()

    def flush(self) -> None:
        """Wait until all that was written has left, or the connection is closed."""
        with self.lock:
            if not self.outbox.size or self.closed:
                return
            if self.phase == SHARED:
                self._wait_until_left()
                return
            self._users += 1
        self._wait_writable(0)

    def _wait_writable(self, enough: int) -> None:
        """Wait, as a counted user, until at most `enough` bytes are in the outbox, or it closes."""
        self.hub.blocking()
        try:
            while True:
                in_time = _wait(self.fd, select.POLLOUT, self.hub.config.send_timeout)
                with self.lock:
                    if self.closed:
                        return
                    if not in_time:
                        log.info("closed a connection: its client did not read the answer in time")
                        self._close()
                        return
                    self._flush()
                    if self.closed or self.outbox.size <= enough:
                        return
        finally:
            with self.lock:
                self._users -= 1
                if self.closed:
                    self._release_descriptor()
                else:
                    self._arm()
            if self._unlogged:
                self._log_ended()


def _wait(fd: int, events: int, seconds: float) -> bool:
    """Wait for a descriptor; 0 seconds mean without end. False when the time is over."""
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(seconds * 1000 if seconds > 0 else None))
