"""The load generator's loop: one thread, many connections, one request at a time on each.

It is to be faster than what it measures. A request is bytes made once; an answer that equals the
first good one, byte for byte, is known to be good by that comparison, and only others are read.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fulgate.client.bench_answer import AnswerReader, Wrong
from fulgate.client.bench_figures import NARROW, SHIFT, Counts
from fulgate.client.bench_plan import NEVER, Plan, Slot

__all__ = ["Load"]

SECOND: Final = 1_000_000_000
TICK: Final = SECOND // 20  # between two looks at deadlines, and whether to stop
QUEUE_FULL: Final = SECOND // 200  # to wait when the accept queue is full
AFTER_REFUSAL: Final = SECOND // 10  # to wait when nobody listens any more
NO_LIMIT: Final = 1 << 60
BATCH: Final = 64  # connections that are served between two looks at the clock
READABLE: Final = 1  # EPOLLIN alone
SMALL: Final = 4096
LARGE: Final = 262144

clock = time.perf_counter_ns


class Load:
    """Runs a plan once, and counts. `tell` gets the answers and the errors so far, now and then."""

    def __init__(self, plan: Plan, tell: Callable[[int, int], object]) -> None:
        self.plan = plan
        self.counts = Counts()
        self._tell = tell
        self._stopped = False
        self._poll = select.epoll()
        self._slots = [Slot() for _ in range(plan.connections)]
        self._idle: deque[Slot] = deque()  # with a rate: no request is due for them yet
        self._waiting = 0  # slots that wait to connect again
        self._left = plan.count or NO_LIMIT  # requests to begin
        self._ended = 0  # requests that were answered, or failed
        # By descriptor.
        self._of: list[Slot | None] = []
        self._positions: list[int] = []  # bytes of the expected answer that came; -1: see the slot
        self._started: list[int] = []  # when its request began, or was due; NEVER: there is none
        self._sent: list[int] = []  # with a rate: when it was sent
        self._expected = b""  # the first good answer, and its status
        self._status = ""
        self._alike = 0  # answers that equal it
        self._size = 65536  # bytes to receive at once
        self._begun = self._finish = 0
        self._due = NEVER  # with a rate: when the next request is, and its number
        self._number = 0
        self._behind = False  # one is due, and no connection is free

    def stop(self) -> None:
        """Have `run` end soon. For a signal's handler."""
        self._stopped = True

    def run(self) -> Counts:
        """Do it all, and give what was seen."""
        plan = self.plan
        cpu, starved = time.process_time(), _starved()
        self._begun = clock()
        if plan.seconds:
            self._finish = self._begun + int(plan.seconds * SECOND)
        else:
            self._finish = NEVER
        if plan.rate:
            self._due = self._due_at(0)
        for slot in self._slots:
            if plan.rate:
                self._idle.append(slot)
                if plan.keep:
                    self._connect(slot)
            elif self._left:
                self._left -= 1
                self._begin(slot, clock())
        look = self._begun + TICK
        while not self._over():
            now = clock()
            self._serve(min(now + (QUEUE_FULL if self._waiting else TICK), self._finish))
            if self._waiting:
                self._retry()
            if (now := clock()) >= look:
                look = now + TICK
                self._expire(now)
                self._tell(self._ended, sum(self.counts.errors.values()))
        return self._close(time.process_time() - cpu, _starved() - starved)

    def _over(self) -> bool:
        if self._stopped or self.counts.fatal or clock() >= self._finish:
            return True
        return 0 < self.plan.count <= self._ended

    # The loop

    def _serve(self, until: int) -> None:
        """Take answers, and send the next requests, until a time of the clock."""
        plan = self.plan
        poll = self._poll.poll
        read, write = os.read, os.write
        positions, started = self._positions, self._started
        narrow = self.counts.latency.narrow
        request, length = plan.request, len(plan.request)
        quick = plan.keep and not plan.rate
        now = clock()
        while now < until and not self._stopped:
            expected, size = self._expected, self._size
            alike = ended = 0
            for fd, event in poll(self._wait(until, now), BATCH):
                if event != READABLE or positions[fd]:
                    self._event(fd, event)
                    continue
                try:
                    data = read(fd, size)
                except OSError as error:
                    self._lost(fd, str(error))
                    continue
                if data != expected:
                    self._received(fd, data)
                    continue
                now = clock()
                alike += 1
                if not quick or not self._left:
                    self._answered(fd, now)
                    continue
                ended += 1
                bucket = (now - started[fd]) >> SHIFT
                if bucket < NARROW:
                    narrow[bucket] += 1
                else:
                    self.counts.latency.add(now - started[fd])
                self._left -= 1
                started[fd] = now
                try:
                    sent = write(fd, request)
                except OSError as error:
                    self._not_sent(fd, error)
                    continue
                if sent != length:
                    self._partly_sent(fd, sent)
            self._alike += alike
            self._ended += ended
            now = clock()
            if self._due <= now:
                self._dispatch(now)
            if 0 < plan.count <= self._ended:
                return

    def _wait(self, until: int, now: int) -> float:
        """Wait for the next request that is due; give the seconds for the poll to wait."""
        if self._due == NEVER or self._behind:
            return (until - now) / SECOND
        if (wait := min(self._due, until) - now) > 0:
            # The poll itself knows milliseconds only.
            select.select([self._poll], [], [], wait / SECOND)
        return 0

    def _due_at(self, number: int) -> int:
        plan = self.plan
        return self._begun + int((plan.delay + number / plan.rate) * SECOND)

    def _dispatch(self, now: int) -> None:
        """Send the requests that are due on the connections that are free."""
        while self._due <= now:
            if not self._left:
                self._due = NEVER
                return
            if not self._idle:
                self._behind = True
                return
            due = self._due
            if not self._behind:
                self.counts.late.add(now - due)
            self._left -= 1
            self._number += 1
            self._due = self._due_at(self._number)
            if self._due >= self._finish:
                self._due = NEVER
            self._begin(self._idle.popleft(), due)
            now = clock()
        self._behind = False

    # One request

    def _begin(self, slot: Slot, since: int) -> None:
        """Send a request that is due `since`, once there is a connection to send it on."""
        slot.asked = True
        slot.since = since
        if slot.retry_at != NEVER or slot.connecting:
            return
        if slot.sock is None:
            self._connect(slot)
        else:
            self._send(slot)

    def _send(self, slot: Slot) -> None:
        fd = slot.fd
        self._started[fd], slot.since = slot.since, NEVER
        self._sent[fd] = clock()
        # The first answer on a connection is read, so that `used` and `served` come out right.
        known = slot.used or (slot.served and not self.plan.keep)
        self._positions[fd] = 0 if known else -1
        try:
            sent = os.write(fd, self.plan.request)
        except OSError as error:
            self._not_sent(fd, error)
            return
        if sent != len(self.plan.request):
            self._partly_sent(fd, sent)

    def _partly_sent(self, fd: int, sent: int) -> None:
        slot = self._slot(fd)
        slot.unsent = memoryview(self.plan.request)[sent:]
        self._positions[fd] = -1
        self._poll.modify(fd, select.EPOLLIN | select.EPOLLOUT)

    def _not_sent(self, fd: int, error: OSError) -> None:
        if isinstance(error, BlockingIOError):
            self._partly_sent(fd, 0)
            return
        # What the application wrote before it closed can still be read, and so can the end.
        self._slot(fd).deaf = True
        self._positions[fd] = -1

    def _event(self, fd: int, event: int) -> None:
        """See what became of a connection that needs more than a look at its answer."""
        slot = self._slot(fd)
        if slot.connecting:
            assert slot.sock is not None
            self._connected(slot, slot.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            return
        if event & select.EPOLLOUT and slot.unsent is not None:
            self._send_rest(slot, slot.unsent)
        if event & ~select.EPOLLOUT:
            try:
                data = os.read(fd, self._size)
            except BlockingIOError:
                return
            except OSError as error:
                self._lost(fd, str(error))
                return
            self._received(fd, data)

    def _send_rest(self, slot: Slot, unsent: memoryview) -> None:
        try:
            sent = os.write(slot.fd, unsent)
        except BlockingIOError:
            return
        except OSError:
            slot.deaf = True
            sent = len(unsent)
        slot.unsent = unsent[sent:] if sent < len(unsent) else None
        if slot.unsent is None:
            self._poll.modify(slot.fd, select.EPOLLIN)

    def _received(self, fd: int, data: bytes) -> None:
        """Take what is not a whole answer that equals the first one."""
        if not data:
            self._lost(fd, "")
            return
        slot = self._slot(fd)
        if self._started[fd] == NEVER:
            self.counts.error("protocol", f"bytes that no request asked for: {data[:16]!r}")
            self._disconnect(slot)
            return
        position = self._positions[fd]
        if position >= 0:
            if self._expected.startswith(data, position):
                position += len(data)
                whole = position == len(self._expected)
                self._positions[fd] = 0 if whole else position
                if whole:
                    self._alike += 1
                    self._answered(fd, clock())
                return
            data = self._expected[:position] + data
            self._positions[fd] = -1
        reader = slot.reader
        if reader is None:
            reader = slot.reader = AnswerReader(self.plan.bare)
        try:
            whole = reader.feed(data)
        except Wrong as error:
            self._failed(slot, error.kind, str(error))
            return
        if whole:
            self._note(reader)
            self._answered(fd, clock())

    def _note(self, reader: AnswerReader) -> None:
        """Count an answer that was read; the first good one becomes what others are held to."""
        counts = self.counts
        good = 200 <= reader.status < 300 and not reader.app_status
        if good and not self._expected and (raw := reader.raw):
            self._expected = raw
            self._status = str(reader.status)
            self._size = max(SMALL, min(len(raw) + 1024, LARGE))
        counts.answered += 1
        counts.received += reader.raw_size
        status = str(reader.status)
        counts.statuses[status] = counts.statuses.get(status, 0) + 1
        if reader.app_status:
            counts.error("app_status", f"END_REQUEST with appStatus {reader.app_status}")
        elif not good:
            counts.error("status", f"an answer with status {reader.status}")

    def _answered(self, fd: int, now: int) -> None:
        """Note the end of a request, and go on to the next."""
        slot = self._slot(fd)
        self.counts.latency.add(now - self._started[fd])
        if self.plan.rate:
            self.counts.service.add(now - self._sent[fd])
        slot.used = slot.served = True
        slot.reader = None
        self._ended += 1
        if not self.plan.keep or slot.deaf or slot.unsent is not None:
            self._disconnect(slot)  # as web servers do when they could not send all of a body
        else:
            self._started[fd] = NEVER
            self._positions[fd] = -1
        self._next(slot, now)

    def _failed(self, slot: Slot, kind: str, message: str) -> None:
        """Count an error that ended a request and its connection, and go on to the next."""
        self.counts.error(kind, message)
        self._ended += 1
        self._disconnect(slot)
        self._next(slot, clock())

    def _next(self, slot: Slot, now: int) -> None:
        if self.plan.rate:
            self._idle.append(slot)
            if self._behind:
                self._dispatch(now)
        elif self._left:
            self._left -= 1
            self._begin(slot, now)

    # The connections

    def _slot(self, fd: int) -> Slot:
        slot = self._of[fd]
        assert slot is not None
        return slot

    def _connect(self, slot: Slot) -> None:
        plan = self.plan
        try:
            sock = socket.socket(plan.family, socket.SOCK_STREAM)
        except OSError as error:
            self.counts.fatal = f"no more sockets: {error.strerror} (see ulimit -n)"
            return
        sock.setblocking(False)
        if plan.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = sock.connect_ex(plan.address)
        if code == errno.EAGAIN:  # the accept queue of a Unix socket is full
            sock.close()
            self.counts.queue_full += 1
            self._wait_to_connect(slot, QUEUE_FULL)
            return
        fd = sock.fileno()
        if (more := fd + 1 - len(self._of)) > 0:
            self._of += [None] * more
            self._positions += [-1] * more
            self._started += [NEVER] * more
            self._sent += [NEVER] * more
        self._of[fd] = slot
        slot.sock, slot.fd = sock, fd
        slot.connecting = code == errno.EINPROGRESS
        self._poll.register(fd, select.EPOLLOUT if slot.connecting else select.EPOLLIN)
        if not slot.connecting:
            self._connected(slot, code)

    def _connected(self, slot: Slot, code: int) -> None:
        """See what became of an attempt; `code` is errno's, or 0."""
        if code:
            self.counts.error("connect", os.strerror(code))
            self._disconnect(slot)
            self._ended += slot.since != NEVER
            slot.since = NEVER
            self._wait_to_connect(slot, AFTER_REFUSAL)
            return
        if slot.connecting:
            slot.connecting = False
            self._poll.modify(slot.fd, select.EPOLLIN)
        self.counts.connects += 1
        if slot.since != NEVER:
            self._send(slot)

    def _wait_to_connect(self, slot: Slot, wait: int) -> None:
        slot.retry_at = clock() + wait
        self._waiting += 1

    def _retry(self) -> None:
        """Have connections tried again whose time has come."""
        now = clock()
        for slot in self._slots:
            if slot.retry_at > now:
                continue
            slot.retry_at = NEVER
            self._waiting -= 1
            if slot.since != NEVER:
                self._connect(slot)
            elif slot not in self._idle:
                self._next(slot, now)

    def _lost(self, fd: int, why: str) -> None:
        """A connection ended."""
        slot = self._slot(fd)
        since = self._started[fd]
        begun = slot.reader is not None or self._positions[fd] > 0
        used = slot.used
        self._disconnect(slot)
        if since == NEVER or (used and not begun):
            # It was closed between two requests, as any application may.
            self.counts.reconnects += 1
            if since != NEVER:
                self._begin(slot, since)
            return
        self._failed(slot, "closed", "closed before END_REQUEST came" + (why and f": {why}"))

    def _disconnect(self, slot: Slot) -> None:
        if slot.sock is None:
            return
        self._poll.unregister(slot.fd)
        self._of[slot.fd] = None
        self._started[slot.fd] = NEVER
        slot.sock.close()
        slot.sock = slot.reader = slot.unsent = None
        slot.fd = -1
        slot.connecting = slot.deaf = slot.used = False

    def _expire(self, now: int) -> None:
        """Give up what has waited for too long."""
        oldest = now - int(self.plan.timeout * SECOND)
        began = self._sent if self.plan.rate else self._started
        for slot in self._slots:
            if slot.since != NEVER:  # there is no connection yet
                late = slot.since < oldest
            else:
                late = slot.fd >= 0 and self._started[slot.fd] != NEVER and began[slot.fd] < oldest
            if late:
                slot.since = NEVER
                self._failed(slot, "timeout", f"no answer within {self.plan.timeout:g} s")

    # The end

    def _close(self, cpu: float, starved: float) -> Counts:
        now = min(clock(), self._finish)
        counts = self.counts
        counts.seconds = (now - self._begun) / SECOND
        counts.answered += self._alike
        counts.received += self._alike * len(self._expected)
        if self._alike:
            counts.statuses[self._status] = counts.statuses.get(self._status, 0) + self._alike
        waiting: list[int] = []
        for slot in self._slots:
            counts.never_served += slot.asked and not slot.served
            since = min(slot.since, self._started[slot.fd] if slot.fd >= 0 else NEVER)
            if since != NEVER:
                waiting.append(since)
            self._disconnect(slot)
        counts.in_flight = len(waiting)
        while self._due < now and self._left:
            waiting.append(self._due)
            counts.unsent += 1
            self._left -= 1
            self._number += 1
            self._due = self._due_at(self._number)
        counts.oldest = max(now - min(waiting), 0) if waiting else 0
        counts.cpu_seconds = cpu
        wall = (clock() - self._begun) / SECOND
        counts.cpu_share = cpu / wall
        counts.starved_share = starved / wall
        self._poll.close()
        return counts


def _starved() -> float:
    """Give the seconds that this thread could have run, and had no core; 0 where nobody tells."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
