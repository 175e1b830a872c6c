"""A worker: a process that a master has forked, from the fork to its end."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from types import FrameType
from typing import Final, Protocol

from fulgate import stacks
from fulgate.errors import FulgateError
from fulgate.listener import PassOn
from fulgate.processes.hooks import Hooks
from fulgate.processes.output import Output
from fulgate.processes.scoreboard import Slot
from fulgate.title import entitle

__all__ = [
    "BLOCKED",
    "CUT",
    "LATE",
    "PASS_ON",
    "READY",
    "REOPEN",
    "STOP",
    "Serves",
    "Worker",
    "hand_over",
    "passed_on",
]

log = logging.getLogger("fulgate")

# What is said on the socket between master and worker, a byte each.
READY: Final = b"r"  # to the master: the application is loaded, and it serves
SPENT: Final = b"m"  # to the master: it has answered as many requests as it is to
LATE: Final = b"l"  # to the master: a request did not end in time
BLOCKED: Final = b"b"  # to the master: nor does anything else run meanwhile
# Either way: an idle connection, with its descriptor, by the protocol that is spoken on it.
CONNECTIONS: Final = {"fastcgi": b"c", "scgi": b"d", "ajp": b"e"}
PASS_ON: Final = b"p"  # to the worker: end, others go on with the connections
STOP: Final = b"s"  # to the worker: end, and nobody does
CUT: Final = b"q"  # to the worker: end at once
REOPEN: Final = b"u"  # to the worker: open the logs again

IGNORED: Final = ("SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR2", "SIGTTIN", "SIGTTOU", "SIGWINCH")


class Serves(Protocol):
    """What a worker runs: a server on shared sockets."""

    on_late: Callable[[], None] | None
    on_blocked: Callable[[], None] | None
    on_spent: Callable[[], None] | None
    on_accepting: Callable[[], None] | None  # before it accepts, in whichever thread does

    def start(self) -> None: ...
    def adopt(self, connection: socket.socket, protocol: str) -> None: ...
    def cut(self) -> None: ...
    def stop(self, timeout: float | None = None, pass_on: PassOn | None = None) -> bool: ...


def passed_on(said: bytes, fds: Iterable[int]) -> Iterator[tuple[socket.socket, str]]:
    """Give the connections that came with these bytes, each with its protocol."""
    named = {order[0]: name for name, order in CONNECTIONS.items()}
    for fd, order in zip(fds, [byte for byte in said if byte in named], strict=True):
        yield socket.socket(fileno=fd), named[order]


def hand_over(channel: socket.socket, connection: socket.socket, protocol: str) -> None:
    """Send a connection to whoever is at the other end, and close it here.

    Raises OSError, and leaves it open, when nobody is.
    """
    socket.send_fds(channel, [CONNECTIONS[protocol]], [connection.fileno()])
    connection.close()


@dataclass
class Worker:
    """A worker, as hooks get to see it, in the master and in itself."""

    number: int  # of all that this master has forked, from 1; gunicorn's `age`
    pool: str
    slot: Slot
    pid: int = 0

    @property
    def age(self) -> int:
        return self.number


class _Life:
    """What goes on in the worker, after the fork."""

    def __init__(
        self,
        worker: Worker,
        master: socket.socket,
        reopen: Callable[[], object],
        output: Output | None,
    ) -> None:
        self.worker = worker
        self.master = master
        self.reopen = reopen
        self.output = output
        self.leaving: SimpleQueue[tuple[socket.socket, str]] = SimpleQueue()
        self.arrived: SimpleQueue[int] = SimpleQueue()
        self.reader, self.writer = os.pipe()
        self.stopper: threading.Thread | None = None
        self.over = False
        self.serving = False
        self.booting = threading.Lock()  # whoever has it decides whether we still are
        os.set_blocking(self.reader, False)
        os.set_blocking(self.writer, False)

    def run(self, server: Serves, hooks: Hooks) -> None:
        """Serve until told otherwise, or until the master is gone."""
        hooks.call("post_worker_init", self.worker)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGABRT):
            signal.signal(number, self.note)
        signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        server.on_late = self.late
        server.on_blocked = self.blocked
        server.on_spent = self.spent
        server.on_accepting = self.serve
        stacks.register()  # before there is a request that may hold the interpreter
        server.start()
        self.tell(READY)
        poll = select.poll()
        poll.register(self.master, select.POLLIN)
        poll.register(self.reader, select.POLLIN)
        while not (self.over and self.leaving.empty()):
            for fd, _ in poll.poll():
                if fd == self.reader:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self.reader, 512)
                elif not self.hear(server):
                    poll.unregister(self.master)
                    if self.output is not None:
                        self.output.give_back()
                    log.error("the master is gone: worker %d ends", os.getpid())
                    self.stop(server, pass_on=False)
            while not self.arrived.empty():
                self.signal(server, self.arrived.get(), hooks)
            while not self.leaving.empty():
                self.send(*self.leaving.get())

    def note(self, number: int, frame: FrameType | None) -> None:
        """Have a signal obeyed; SIGTERM at once where nobody can have been accepted."""
        if number == signal.SIGTERM and not self.serving:
            with self.booting:  # so that nobody is, meanwhile
                if not self.serving:
                    signal.signal(number, signal.SIG_DFL)
                    os.kill(os.getpid(), number)
        self.arrived.put(number)

    def serve(self) -> None:
        with self.booting:
            self.serving = True

    def hear(self, server: Serves) -> bool:
        """Do what the master says; False when it is gone."""
        try:
            orders, fds, _, _ = socket.recv_fds(self.master, 64, 8)
        except OSError:
            return False
        for connection, protocol in passed_on(orders, fds):
            try:
                server.adopt(connection, protocol)
            except OSError as error:
                log.error("a connection that was passed on is lost: %s", error)
                connection.close()
        if REOPEN in orders:
            self.reopen()
        if PASS_ON in orders or STOP in orders:
            self.stop(server, pass_on=STOP not in orders)
        if CUT in orders:
            self.stop(server, pass_on=False)
            server.cut()
        return bool(orders)

    def signal(self, server: Serves, number: int, hooks: Hooks) -> None:
        if number == signal.SIGUSR1:
            self.reopen()
        elif number == signal.SIGABRT:
            hooks.call("worker_abort", self.worker)
        else:
            hooks.call("worker_int", self.worker)
            self.stop(server, pass_on=True)

    def stop(self, server: Serves, *, pass_on: bool) -> None:
        if self.stopper is not None:
            return

        def stop() -> None:
            try:
                server.stop(None, self.leave if pass_on else None)
            finally:
                self.over = True
                self.wake()

        self.stopper = threading.Thread(target=stop, name="fulgate-stop", daemon=True)
        try:
            self.stopper.start()
        except RuntimeError:  # no thread to be had
            stop()

    def leave(self, connection: socket.socket, protocol: str) -> None:
        """Have an idle connection go to the master; called under the driver's locks."""
        self.leaving.put((connection, protocol))
        self.wake()

    def send(self, connection: socket.socket, protocol: str) -> None:
        with connection, contextlib.suppress(OSError):  # without a master it closes
            hand_over(self.master, connection, protocol)

    def late(self) -> None:
        self.tell(LATE)

    def spent(self) -> None:
        self.tell(SPENT)

    def blocked(self) -> None:
        self.tell(BLOCKED)

    def tell(self, what: bytes) -> None:
        with contextlib.suppress(OSError):
            self.master.send(what)

    def wake(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self.writer, b"\0")


def live(
    worker: Worker,
    master: socket.socket,
    make: Callable[[Slot], Serves],
    hooks: Hooks,
    reopen: Callable[[], object],
    output: Output | None = None,
) -> int:
    """Be the worker: in the forked process, until it ends. Returns its exit status."""
    worker.pid = os.getpid()
    entitle(f"pool {worker.pool} worker {worker.number}")
    signal.set_wakeup_fd(-1)
    for name in IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL if number != signal.SIGUSR1 else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    stacks.unregister()
    stacks.tell_of_crashes()
    status = 1
    try:
        hooks.call("post_fork", worker)
        server = make(worker.slot)
        _Life(worker, master, reopen, output).run(server, hooks)
        status = 0
    except FulgateError as error:
        log.error("%s", error)
        status = getattr(error, "exit_status", 1)
    except SystemExit as error:  # of the application, while it was imported
        log.error("the application ended the process while it was loaded: %s", error)
        status = 3
    except BaseException:
        log.exception("worker %d failed", os.getpid())
    hooks.call("worker_exit", worker)
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    return status
