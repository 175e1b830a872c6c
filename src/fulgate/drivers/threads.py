"""The threads driver: leader and followers on one shared poller.

One thread, the *leader*, polls, and serves what is ready in line while requests do not wait; the
other workers, the *followers*, are parked. A thread that is busy in the application does not hold
the lead for longer than two ticks: the *control* thread, which is not counted among the workers
and never serves, takes the lead from it and gives it to a follower, or leads itself when there is
none. So somebody always polls. It also keeps the deadlines.

Who owns what: `_lock` guards the lead (`_leader`) and the parked workers. `pending` and the
dictionary of connections are changed by single operations that the interpreter makes atomic.
Connections have their own locks; `_lock` may be taken while one of those is held, never the other
way round.

Nothing here exists before `start`: no thread, no poller. A fork in between loses nothing.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic, perf_counter, sleep
from typing import Final

from fulgate.config import Config
from fulgate.drivers import poller as pollers
from fulgate.drivers.acceptor import Acceptor, Allowed
from fulgate.drivers.deadlines import Deadlines
from fulgate.drivers.lead import HAND_ON_FOR, Waiting
from fulgate.drivers.phases import FOREVER, IDLE, clock, keep_memory
from fulgate.drivers.poller import Poller
from fulgate.drivers.wire import APP, Hub, Task, Wire
from fulgate.drivers.worker import Score, Worker
from fulgate.errors import Aborted, NoThreads
from fulgate.exchange import Exchange, ServerProtocol, SyncGateway
from fulgate.listener import PassOn
from fulgate.systemd import Watchdog

__all__ = ["Threads"]

log = logging.getLogger("fulgate")

TICK: Final = 0.005  # seconds; each tick asks for the GIL
ERROR_PAUSE: Final = 0.05  # seconds, so that an error that stays does not fill the log
WAITED_LONG: Final = 0.1  # seconds in the queue, in which the client may have gone
LONGEST_REST: Final = 1.0  # seconds; somebody may have missed what would have woken us
NEGLECTED: Final = 5.0  # seconds for which no request waits beside a free thread, while all is well
TELL: Final = 1.0  # seconds between two times that the scoreboard is told of the process
TELL_IDLE: Final = 5.0  # the same, while nothing happens
SCAN_PAUSE: Final = 0.02  # seconds at least between two looks at all deadlines


class Threads(Hub):
    """Serves listening sockets with `config.threads` threads.

    `make_protocol` gives a protocol for each connection, by the listening socket that it came
    from; `gateway` answers exchanges; `ended` is called, outside of all locks, when an exchange
    has ended; `allowed` is asked about each new connection; `score` is where it tells what it does;
    `shared`: other processes accept from the same sockets.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        make_protocol: Callable[[socket.socket], ServerProtocol],
        gateway: SyncGateway,
        config: Config,
        ended: Callable[[Exchange], None] | None = None,
        allowed: Allowed | None = None,
        score: Score | None = None,
        shared: bool = False,
    ) -> None:
        self.config = config
        self.queue = config.queue
        self.keep_alive = config.keep_alive
        self.write_behind = config.write_behind
        self.pending: deque[Task] = deque()
        self.connections: dict[int, Wire] = {}
        self.stopping = False
        self.pass_on: PassOn | None = None
        self.late: Callable[[], None] | None = None  # called when a request does not end in time
        self.most = 0  # requests, after which `spent` is called, once; 0 for never
        self.spent: Callable[[], None] | None = None
        self.watchdog: Watchdog | None = None  # told by the control thread, while all is well
        self._longest_rest = LONGEST_REST
        self.next_scan = FOREVER
        self._gateway = gateway
        self._ended = ended
        self._score = score
        self._told = 0.0
        self._known = (0, 0, 0)  # requests, accepted and open connections, when we told last
        self._refused = 0
        self._dropped = 0
        self._queue_most = 0  # requests that waited at once
        self._queue_full = 0  # requests for which there was no room
        self._deadlines = Deadlines(config)
        board = score if shared else None
        self._acceptor = Acceptor(self, self.connections, listeners, make_protocol, allowed, board)
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # held while polling: the control thread may have to leave
        self._workers: list[Worker] = []
        self._parked: list[Worker] = []
        self._leader: Worker | None = None  # None: the control thread leads
        self._hand_on = False
        # The master names what it kills a process for, and the control thread gets no turn to tell
        # when C code holds the interpreter.
        self._tell_at_once = config.request_timeout > 0
        self._resting = False  # the control thread has nothing to tick for
        self._over = False
        self._cut = False
        self._left_over: Exchange | None = None  # what was first in the queue at the last tick
        self._emptied = threading.Event()

    # ---------------------------------------------------------------- start and stop

    def start(self) -> None:
        """Start polling and serving. The listening sockets are bound, and do not block.

        Where the system gives fewer threads than are wanted, it serves with those; raises
        NoThreads when that is not at least one, and the control thread.
        """
        keep_memory()
        self.poller: Poller = pollers.make(self.config.poller)
        self._wake_control = threading.Lock()
        self._wake_control.acquire()
        if self.watchdog is not None:
            self._longest_rest = min(LONGEST_REST, self.watchdog.interval)
        self._control_thread = threading.Thread(
            target=self._control, name="fulgate-control", daemon=True
        )
        try:
            self._start_threads()
            self._acceptor.start()  # last, so that who connects is not lost when this fails
        except BaseException:
            self._end_threads(monotonic() + 5.0)
            raise

    def _start_threads(self) -> None:
        wanted = self.config.threads
        try:
            self._control_thread.start()
            for number in range(wanted):
                worker = Worker()
                if self._score is not None:
                    worker.cell = self._score.thread()
                worker.thread = threading.Thread(
                    target=self._work, args=(worker,), name=f"fulgate-{number + 1}", daemon=True
                )
                self._workers.append(worker)
                worker.thread.start()
        except RuntimeError as error:  # "can't start new thread": RLIMIT_NPROC, a cgroup, memory
            if len(self._workers) < 2:
                raise NoThreads(str(error)) from error
            del self._workers[-1]
            log.warning("%s: serving with %d of %d threads", error, len(self._workers), wanted)

    def adopt(self, sock: socket.socket, protocol: ServerProtocol) -> None:
        """Serve a connection that another process has accepted. Raises OSError."""
        self._acceptor.admit(sock, protocol, IDLE)
        self._settle_pending()

    def stop(self, timeout: float, pass_on: PassOn | None = None) -> bool:
        """Stop accepting, let requests end for up to `timeout` seconds, then cut what is left.

        Connections between requests are given to `pass_on`; without it they are closed. Returns
        whether all ended by itself. The listening sockets are closed first, so that who comes from
        then on is refused at once, and not left in a queue that nobody serves.
        """
        end = monotonic() + timeout
        self.pass_on = pass_on
        self.stopping = True
        self._acceptor.stop()
        for connection in list(self.connections.values()):
            connection.drain()
        self._settle_pending()
        clean = self._wait_until_empty(end)
        if not clean:
            left = sum(1 for worker in self._workers if self._runs(worker))
            waited = timeout - max(0.0, end - monotonic())
            log.warning("stopped with %d requests unfinished after %.1f s", left, waited)
        for connection in list(self.connections.values()):
            connection.abort()
        self._end_threads(monotonic() + (5.0 if clean else 0.2))
        return clean

    def cut(self) -> None:
        """Have a `stop` that waits give up waiting, within 0.05 s.

        It may be a signal handler's call, in the thread that waits: the event's own lock, which
        that thread may hold, is left alone.
        """
        self._cut = True

    def lose(self) -> None:
        """In a forked child: close the descriptors that belong to the parent. Takes no lock,
        since a thread that does not live here may have held it.
        """
        self._over = True
        self.poller.close()
        for connection in list(self.connections.values()):
            connection.sock.close()
            connection.outbox.clear()
        self.connections.clear()

    def _settle_pending(self) -> None:
        """`drain` may have queued requests; see that a thread takes them."""
        self.poller.wake()
        with self._lock:
            if self.pending and self._parked:
                self._parked.pop().parked.release()

    def _wait_until_empty(self, end: float) -> bool:
        while self.connections or self.pending or any(self._runs(w) for w in self._workers):
            left = end - monotonic()
            if left <= 0 or self._cut:
                return False
            self._emptied.wait(min(left, 0.05))
            self._emptied.clear()
            if self.pending:
                self._settle_pending()
            if self.pass_on is not None:
                for connection in list(self.connections.values()):
                    connection.drain()  # what could not be passed on before
        return True

    def _runs(self, worker: Worker) -> bool:
        """Has it a request that somebody waits for?"""
        return worker.exchange is not None and worker.exchange is not worker.late

    def _end_threads(self, end: float) -> None:
        self._over = True
        with self._lock:
            self._parked.clear()
        for worker in self._workers:
            with contextlib.suppress(RuntimeError):
                worker.parked.release()
        self._wake()
        here = threading.current_thread()
        threads = [worker.thread for worker in self._workers] + [self._control_thread]
        while (
            threads := [t for t in threads if t is not None and t is not here and t.is_alive()]
        ) and monotonic() < end:
            self.poller.wake()  # again: whoever leaves the poll may have taken it from another
            threads[0].join(min(0.05, max(0.0, end - monotonic())))
        if not threads:  # else one of them may still use it; it goes with the last of them
            self.poller.close()
        for worker in self._workers:
            worker.close()
        self._tell(monotonic())

    # ---------------------------------------------------------------- workers

    def _work(self, me: Worker) -> None:
        while not self._over:
            try:
                self._follow(me)
            except Exception:  # a poll that fails, say; this thread and the lead must go on
                log.exception("an error in the server")
                sleep(ERROR_PAUSE)

    def _follow(self, me: Worker) -> None:
        if self._leader is me:
            self._lead(me)
            return
        try:
            task = self.pending.popleft()
        except IndexError:
            if not self._take_lead(me):
                me.parked.acquire()
        else:
            self._run(me, task)

    def _take_lead(self, me: Worker) -> bool:
        """Become the leader if the control thread leads for want of one; else be parked."""
        with self._lock:
            if self._leader is None:
                self._leader = me
                self.poller.wake()  # the control thread may be in the poll
            elif self._leader is not me:
                self._parked.append(me)
                return self._over
        return True

    def _give_lead(self) -> None:
        """Give the lead to a follower, or to the control thread; under `_lock`."""
        if self._parked:
            follower = self._parked.pop()
            self._leader = follower
            follower.parked.release()
        else:
            self._leader = None
            self._wake()

    def _lead(self, me: Worker) -> None:
        pending = self.pending
        poll = self.poller.poll
        while self._leader is me and not self._over:
            if not pending:
                events: list[tuple[int, int]] = []
                me.polls_since = before = perf_counter()
                with self._turn:
                    # What was queued before this thread took the lead had nobody to wake.
                    if self._leader is me and not self._over and not pending:
                        events = poll(-1)
                me.polled += perf_counter() - before
                me.polls_since = 0.0
                self._handle(events)
                continue
            try:
                task = pending.popleft()
            except IndexError:  # one that lost the lead was quicker
                continue
            if self._hand_on:
                with self._lock:
                    if self._leader is me:
                        self._give_lead()
            self._run(me, task)

    def _run(self, me: Worker, task: Task) -> None:
        connection, exchange = task
        me.began = now = clock()
        me.connection = connection
        me.exchange = exchange
        if self._resting:
            self._wake()
        cell = me.cell
        try:
            if cell is not None:
                cell.begin(now)
                if self._tell_at_once:
                    me.tell(exchange)
            if now - exchange.began > WAITED_LONG:
                connection.catch_up()
            if not exchange.aborted:
                self._gateway(exchange, connection)
                if not (exchange.ended or exchange.leaving or exchange.aborted):
                    raise RuntimeError("the gateway did not end the answer")
        except Aborted:
            pass
        except BaseException:
            # Whatever it is, SystemExit included, it must cost neither this thread nor the lead.
            log.exception("an error in the server, while it served a request")
            connection.abort()
        try:
            if cell is not None:
                cell.end(exchange, clock())
            if self._ended is not None and not exchange.leaving:
                self._ended(exchange)
            if exchange.after:
                self._after(connection, exchange)
        except BaseException:
            log.exception("an error in the server, after it served a request")
        me.requests += 1
        me.exchange = None
        me.connection = None
        if not exchange.leaving:  # else the connection logs it, when its file has left
            exchange.params = {}  # environ refers to it: without the cycle both go at once
        if self.stopping:
            self._emptied.set()

    def _after(self, connection: Wire, exchange: Exchange) -> None:
        connection.flush()
        for function in exchange.after or ():
            try:
                function()
            except BaseException:
                log.exception("an error in a function that was to run after the answer")

    def blocking(self) -> None:
        """The calling thread is about to block: if it leads, somebody else should."""
        leader = self._leader
        if leader is not None and leader.ident == threading.get_ident():
            with self._lock:
                if self._leader is leader:
                    self._give_lead()

    # ---------------------------------------------------------------- events

    def _handle(self, events: list[tuple[int, int]]) -> None:
        connections = self.connections
        accept: list[int] = []
        for fd, mask in events:
            connection = connections.get(fd)
            try:
                if connection is not None:
                    connection.ready(mask)
                elif fd in self._acceptor.listeners:
                    # Later: a new connection may get the number of one that another thread closes
                    # now, and must not get its event.
                    accept.append(fd)
                else:
                    self.poller.woken(fd)
            except Exception:
                log.exception("an error in the server, while it handled a connection")
                if connection is not None:
                    connection.abort()
        if accept:
            self._acceptor.accept(accept)
        if len(self.pending) > self._queue_most + 1:  # the leader takes one at once
            self._measure()

    def forget(self, connection: Wire) -> None:
        """A connection is about to close its descriptor."""
        if self.connections.get(connection.fd) is connection:
            del self.connections[connection.fd]
        self._acceptor.one_left()
        if self.stopping:
            self._emptied.set()

    def room(self) -> bool:
        """May another request wait? Those that free workers are about to take do not count."""
        return len(self.pending) < self.config.queue + self._free()

    def _free(self) -> int:
        """How many workers are about to take a request?"""
        return sum([1 for worker in self._workers if worker.exchange is None])

    def _measure(self) -> None:
        """Note how many requests wait, if they were never so many."""
        waiting = len(self.pending) - self._free()
        if waiting > self._queue_most:
            self._queue_most = waiting

    def ended(self, exchange: Exchange) -> None:
        refused = exchange.refused
        if refused is not None:
            self._refused += 1
            if refused.status.startswith("503"):
                self._queue_full += 1
                self._queue_most = max(self._queue_most, self.queue)
        elif exchange.aborted:
            self._dropped += 1
        if self._ended is not None and exchange.params_ended:
            self._ended(exchange)

    # ---------------------------------------------------------------- control

    def alarm(self, deadline: float) -> None:
        """Have the control thread look at the deadlines at this time, at the latest."""
        if deadline < self.next_scan:
            self.next_scan = deadline
            self._wake()

    def _wake(self) -> None:
        self._resting = False
        with contextlib.suppress(RuntimeError):  # it was released already
            self._wake_control.release()
        if self._leader is None:
            self.poller.wake()

    def _control(self) -> None:
        waiting = Waiting()
        inline_from = 0.0  # until then the lead is handed on, without measuring
        scan_after = 0.0
        several = self.config.threads > 1  # else there is nobody to hand the lead on to
        while not self._over:
            try:
                now = monotonic()
                if self._leader is None:
                    self._lead_without_serving(now)
                else:
                    self._rest(min(max(self.next_scan, scan_after), self._deadlines.due) - now)
                now = monotonic()
                leader = self._leader
                busy = self._tick()
                if several and leader is not None and busy and now >= inline_from:
                    self._hand_on = False  # it can only be measured in line
                    sample = leader.sample()
                    if sample is not None and waiting.hand_on(sample):
                        self._hand_on = True
                        inline_from = now + HAND_ON_FOR
                if self._leader is not leader or self._hand_on:
                    waiting.forget()
                self._look_after_pending()
                if self.next_scan <= now and scan_after <= now:
                    scan_after = now + SCAN_PAUSE
                    self._scan(now)
                if self._deadlines.look(self._workers, now) and self.late is not None:
                    self.late()
                watchdog = self.watchdog
                if watchdog is not None and self._well(now):
                    watchdog.beat(now)
                if 0 < self.most <= sum([worker.requests for worker in self._workers]):
                    self.most = 0
                    if self.spent is not None:
                        self.spent()
                if self._told + TELL <= now and (busy or self._news(now)):
                    self._tell(now)
                self._resting = not busy
                if any(worker.exchange is not worker.seen for worker in self._workers):
                    self._resting = False  # it began between the tick and the line above
            except Exception:
                log.exception("an error in the control thread")

    def _lead_without_serving(self, now: float) -> None:
        """Every worker is in the application: poll, note aborts, queue or shed requests."""
        # A worker that has just lost the lead may be in the poll; then it is the one who polls.
        if not self._turn.acquire(timeout=TICK):
            return
        try:
            leader = self._leader  # for mypyc, which would take it for None from here on
            if leader is not None:
                return
            due = min(self.next_scan, self._deadlines.due) - now
            timeout = max(TICK, min(due, self._longest_rest)) if self._resting else TICK
            events = self.poller.poll(timeout)
        finally:
            self._turn.release()
        self._handle(events)
        if self.pending:
            self._measure()
        with self._lock:
            # What was queued is for workers; one may have been parked just before, or have taken
            # the lead, and it polls without knowing of the queue.
            if self.pending and self._leader is not None:
                self.poller.wake()
            elif self.pending and self._parked:
                self._give_lead()

    def _look_after_pending(self) -> None:
        """Hear the connections of requests that wait for a thread: they may be aborted, too.

        And wake somebody for a request that nobody takes; it should never have to.
        """
        exchange: Exchange | None = None
        if self.pending:
            for connection, _ in list(self.pending):
                if connection.inbound == APP:
                    connection.watch()
        with contextlib.suppress(IndexError):  # a worker may take the last one just now
            exchange = self.pending[0][1]
        if exchange is not None and exchange is self._left_over:
            free = any(worker.exchange is None for worker in self._workers)
            if free and monotonic() - exchange.began > WAITED_LONG:
                log.debug("a request waited, and a thread did not know of it")
                self._settle_pending()
        self._left_over = exchange

    def _well(self, now: float) -> bool:
        """Is what comes served? A leader that is gone, or a request that waits for nothing, is not
        for us to mend.
        """
        leader = self._leader
        if leader is not None and leader.thread is not None and not leader.thread.is_alive():
            return False
        first = self._left_over
        if first is None or now - first.began < NEGLECTED:
            return True
        return not any(worker.exchange is None for worker in self._workers)

    def _news(self, now: float) -> bool:
        """Is there something to tell? Idle processes should not use the CPU for it."""
        requests = sum([worker.requests for worker in self._workers])
        running = any(worker.exchange is not None for worker in self._workers)
        known, self._known = self._known, (requests, self._acceptor.accepted, len(self.connections))
        return running or known != self._known or self._told + TELL_IDLE <= now

    def _tell(self, now: float) -> None:
        self._told = now
        if self._score is not None:
            self._score.tell(
                len(self.connections),
                len(self.pending),
                self._acceptor.accepted,
                self._refused,
                self._dropped,
                self._queue_most,
                self._queue_full,
            )

    def _rest(self, until_scan: float) -> None:
        timeout = min(until_scan, self._longest_rest) if self._resting else TICK
        if timeout > 0:
            self._wake_control.acquire(timeout=timeout)

    def _tick(self) -> bool:
        """Look after requests that have been in the application since the last tick."""
        busy = False
        for worker in self._workers:
            exchange = worker.exchange
            connection = worker.connection
            if exchange is None or connection is None:
                worker.seen = None
                continue
            if exchange is not worker.seen:
                worker.seen = exchange
                busy = True
                continue
            connection.watch()
            worker.tell(exchange)
            if self._leads(worker):
                with self._lock:
                    if self._leads(worker) and worker.exchange is exchange:
                        self._give_lead()
                busy = True
        return busy

    def _leads(self, worker: Worker) -> bool:
        # Compiled, a comparison narrows the attribute, and who leads may change before the next.
        return self._leader is worker

    def _scan(self, now: float) -> None:
        """Act on the deadlines that have passed, and find the next one."""
        self.next_scan = FOREVER
        if self._acceptor.again <= now:
            self._acceptor.resume()
        nearest = self._acceptor.again
        for connection in list(self.connections.values()):
            if connection.deadline <= now:
                connection.expire(now)
            nearest = min(nearest, connection.deadline)
        if nearest < self.next_scan:
            self.next_scan = nearest
        if self.pending:
            self._settle_pending()
