"""The one file that introduces the siblings to one another: a protocol, a gateway, a driver."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from queue import SimpleQueue
from types import FrameType, TracebackType
from typing import Any, TypeVar

from fulgate import stacks
from fulgate.config import Config
from fulgate.drivers.inline import Inline
from fulgate.drivers.stdio import Stdio
from fulgate.drivers.threads import Threads
from fulgate.endpoint import AllowedClients, bind_all
from fulgate.errors import NoThreads
from fulgate.exchange import Exchange, Limits, ServerProtocol
from fulgate.gateways.wsgi import WSGI, Application
from fulgate.listener import Listener, inherited_on_stdin
from fulgate.logs import AccessLog, LogFile, Logs
from fulgate.protocols.cgi import CGI
from fulgate.protocols.fastcgi import (
    FastCGI,
)
from fulgate.spawned import open_standard_streams, started_as_cgi, take_standard_streams
from fulgate.systemd import notify

__all__ = ["Server", "run", "serve"]

log = logging.getLogger("fulgate")

D = TypeVar("D")


class Server:
    """Serves a WSGI application. No thread, and no socket, before `start` or `bind`.

    As a context manager it starts and stops::

        with Server(app, Config(bind=("tcp:127.0.0.1:0",))) as server:
            print(server.endpoints)

    `config` defaults to `Config()`; `settings` override fields of it. `on_exposed` gets the
    explanation when a socket can be reached by other machines, instead of a ConfigError. `allowed`
    is asked about each peer's address, after `allowed_clients`. Raises ConfigError.
    """

    def __init__(
        self,
        app: Application,
        config: Config | None = None,
        *,
        ended: Callable[[Exchange], None] | None = None,
        on_exposed: Callable[[str], object] | None = None,
        allowed: Callable[[Any], bool] | None = None,
        environ: Mapping[str, str] = os.environ,
        **settings: Any,
    ) -> None:
        self.app = app
        self._asked = allowed
        self.config = config = (config or Config()).replace(**settings)
        self.listeners: list[Listener] = []
        self._ended = ended
        self._on_exposed = on_exposed
        self._allowed = AllowedClients.of(config.allowed_clients, environ)
        self._only_tcp = bool(self._allowed) and not config.allowed_clients
        self._limits = Limits(
            config.limit_params_size, config.limit_params, config.limit_request_body
        )
        self._values = {
            "FCGI_MAX_CONNS": str(config.worker_connections),
            "FCGI_MAX_REQS": str(config.threads + config.queue),
            "FCGI_MPXS_CONNS": "0",
        }
        self._multiprocess = False
        self._driver: Threads | None = None
        self._stopping = threading.Lock()
        self._stopped = False
        self._lost = ""  # why it cannot serve: its threads did not survive a fork
        self._access_file: LogFile | None = None

    @property
    def endpoints(self) -> list[str]:
        """Where it listens, with real ports: "unix:/run/app.sock", "tcp:127.0.0.1:9000"."""
        return [listener.label for listener in self.listeners]

    def bind(self) -> None:
        """Bind the listening sockets. Raises ConfigError and BindError. `start` does it too."""
        if not self.listeners:
            # Who starts a process with its listening socket there may start several.
            self._multiprocess = inherited_on_stdin()
            self.listeners = bind_all(
                self.config.bind,
                backlog=self.config.backlog,
                allowed_clients=self._allowed,
                on_exposed=self._on_exposed,
            )

    def start(self) -> None:
        """Bind if need be, and start serving, in threads of its own. Does not block.

        A server starts once. Raises RuntimeError the second time, ConfigError, BindError, and
        NoThreads where the system gives none.
        """
        self._check_new()
        try:
            self._start()
        except BaseException:
            self.stop(0)
            raise

    def _check_new(self) -> None:
        if self._driver is not None:
            raise RuntimeError("the server was started already")
        if self._lost:
            raise RuntimeError(self._lost)
        if self._stopped:
            raise RuntimeError("the server was stopped, and does not start again: make a new one")

    def _start(self) -> None:
        self.bind()
        self._open_access_log()
        driver = Threads(
            self.listeners,
            self._make_protocol,
            self._gateway(multithread=self.config.threads > 1, multiprocess=self._multiprocess),
            self.config,
            ended=self._ended,
            allowed=self._allows if self._allowed or self._asked else None,
        )
        _running.add(self)
        self._driver = driver
        try:
            driver.start()
        except BaseException:
            self._driver = None
            _running.discard(self)
            raise
        stacks.name_threads()

    def _start_anyhow(self) -> Inline | None:
        """Start; where the system gives no thread, give a driver for the calling thread instead."""
        self._check_new()
        try:
            self._start()
        except NoThreads as error:
            log.warning("%s: serving in the main thread, one request at a time", error)
            return self.inline()
        except BaseException:
            self.stop(0)
            raise
        return None

    def inline(self, connection: socket.socket | None = None) -> Inline:
        """Give a driver that serves in the thread that calls its `run`, instead of `start`.

        It serves the sockets that were bound, or only the accepted `connection`, which it owns.
        """
        driver = Inline(
            self.listeners if connection is None else [],
            self._make_protocol,
            self._gateway(multithread=False, multiprocess=self._multiprocess),
            self.config,
            ended=self._ended,
            allowed=self._allows if self._allowed or self._asked else None,
        )
        if connection is not None:
            driver.adopt(connection)
        return driver

    def compose(self, driver: Callable[..., D], **arguments: Any) -> D:
        """Give a driver that is not ours to import, such as one of Twisted's reactor.

        It is called as `Threads` is, without listening sockets, and with `arguments`.
        """
        self._open_access_log()
        return driver(
            self._make_protocol,
            self._gateway(multithread=self.config.threads > 1),
            self.config,
            ended=self._ended,
            allowed=self._allows if self._allowed or self._asked else None,
            **arguments,
        )

    def _gateway(self, **environ: bool) -> WSGI:
        config = self.config
        return WSGI(
            self.app,
            path=config.path,
            script_name=config.script_name,
            repeated_params=config.repeated_params,
            stderr=config.stderr,
            **environ,
        )

    def _open_access_log(self) -> None:
        config = self.config
        if self._ended is None and config.access_logfile:
            self._access_file = LogFile(config.access_logfile, 1)
            self._ended = AccessLog(self._access_file, config.access_log_format)

    def _close_access_log(self) -> None:
        if self._access_file is not None:
            self._access_file.close()
            self._access_file = self._ended = None

    @property
    def cgi(self) -> bool:
        """Is there one request to answer, which stands in the process's environment (CGI)?

        Never so when it was told where to listen. See `fulgate.spawned.started_as_cgi`.
        """
        return not self.config.bind and not self.listeners and started_as_cgi()

    def answer(self) -> int:
        """Answer the one request of a CGI process (RFC 3875); give the exit status for it.

        The status is 0 unless the application failed. Needs no thread, and no socket.
        """
        params = {k.decode("latin-1"): v.decode("latin-1") for k, v in os.environb.items()}
        stdin, stdout = take_standard_streams()
        self._open_access_log()
        gateway = self._gateway(multithread=False, multiprocess=True, run_once=True)
        try:
            protocol = CGI(params, self._limits)
            return Stdio(protocol, gateway, self.config, stdin, stdout, self._ended).run()
        finally:
            self._close_access_log()

    def stop(self, timeout: float | None = None) -> bool:
        """Stop: accept no more, close idle connections, let requests end, then cut the rest.

        `timeout` in seconds is for the requests that run; None takes `graceful_timeout`. Returns
        whether all of them ended by themselves. May be called from any thread, more than once.
        """
        with self._stopping:
            self._stopped = True
            driver = self._driver
            clean = True
            if driver is not None:
                clean = driver.stop(self.config.graceful_timeout if timeout is None else timeout)
            for listener in self.listeners:
                listener.close()
            self.listeners = []
            self._driver = None
            _running.discard(self)
            self._close_access_log()
            return clean

    def cut(self) -> None:
        """End a `stop` that waits, at once: what still runs is aborted."""
        driver = self._driver
        if driver is not None:
            driver.cut()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _make_protocol(self, listener: socket.socket) -> ServerProtocol:
        return FastCGI(self._limits, self._values)

    def _allows(self, peer: Any) -> bool:
        # FCGI_WEB_SERVER_ADDRS shuts other transports than TCP out (FastCGI 1.0, section 3.2).
        if self._only_tcp and not isinstance(peer, tuple):
            return False
        if not self._allowed.allows(peer):
            return False
        return self._asked is None or self._asked(peer)

    def lose(self, parent: int) -> None:
        """In a forked child, where only the forking thread lives: let go of what the parent has.

        The child must neither answer on the parent's connections nor keep the listening sockets
        open, on which nobody accepts here: clients would wait for ever.
        """
        if self._driver is None:
            return
        self._lost = (
            f"the server's threads were started in process {parent}, and a fork does not copy"
            f" threads: process {os.getpid()} cannot serve. Start the server after the fork;"
            " under twistd use fulgate.twisted.FastCGIService, which does so"
        )
        self._driver.lose()
        self._driver = None
        self._stopping = threading.Lock()
        for listener in self.listeners:
            listener.close()
        self.listeners = []
        reactor: Any = sys.modules.get("twisted.internet.reactor")
        if reactor is not None and not reactor.running:
            # twistd makes its daemon by forking: if this child is one, it would look healthy.
            reactor.callWhenRunning(self._refuse, reactor)

    def _refuse(self, reactor: Any) -> None:
        log.critical("%s", self._lost)
        reactor.stop()


_running: weakref.WeakSet[Server] = weakref.WeakSet()
_parent = os.getpid()


def _note_fork() -> None:
    global _parent
    _parent = os.getpid()


def _lose_in_child() -> None:
    for server in list(_running):
        server.lose(_parent)
    _running.clear()


os.register_at_fork(before=_note_fork, after_in_child=_lose_in_child)


def run(server: Server, *, stop_signals: Iterable[int] = (signal.SIGTERM, signal.SIGINT)) -> int:
    """Start the server, and serve until a signal; give the process's exit status.

    The first signal stops it gracefully, and the status is 0; a second one cuts what still runs,
    and the status is 128 and its number, as a shell has it. To be called in the main thread, since
    only there Python runs signal handlers; raises ValueError elsewhere, and what `start` raises.
    Where the system gives no thread, the main thread serves.
    """
    arrived: SimpleQueue[int] = SimpleQueue()  # its put may be called in a signal handler
    inline: Inline | None = None
    stopper: threading.Thread | None = None

    def next_arrived() -> int:
        while arrived.empty():
            os.read(reader, 512)
        return arrived.get()

    def note(number: int, frame: FrameType | None) -> None:
        arrived.put(number)
        if inline is not None:
            _end(inline, arrived)

    before = {number: signal.signal(number, note) for number in stop_signals}
    # A thread that waits for a lock misses a signal that comes just before it waits, or that
    # another thread got: the interpreter's byte in a pipe is there all the same.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    stacks.register()
    try:
        inline = server._start_anyhow()
        notify("READY=1")
        if inline is not None:
            return _run_inline(server, inline, arrived)
        next_arrived()
        notify("STOPPING=1")

        def stop() -> None:
            try:
                server.stop()
            finally:
                arrived.put(0)
                with contextlib.suppress(OSError):
                    os.write(writer, b"\0")

        stopper = threading.Thread(target=stop, name="fulgate-stop", daemon=True)
        try:
            stopper.start()
        except RuntimeError:  # no thread to be had: a second signal ends the process at once
            for signal_number in before:
                signal.signal(signal_number, signal.SIG_DFL)
            stop()
        number = next_arrived()
        if number:
            server.cut()
            stopper.join(1.0)
            return 128 + number
        return 0
    finally:
        stacks.unregister()
        signal.set_wakeup_fd(wakeup_before)
        os.close(reader)
        if stopper is None or not stopper.is_alive():  # else it writes there yet
            os.close(writer)
        for signal_number, handler in before.items():
            signal.signal(signal_number, handler)


def _end(inline: Inline, arrived: SimpleQueue[int]) -> None:
    if arrived.qsize() > 1:
        inline.cut()
    elif not arrived.empty():
        inline.stop()


def _run_inline(server: Server, inline: Inline, arrived: SimpleQueue[int]) -> int:
    _end(inline, arrived)  # what arrived before there was a driver to tell
    inline.run()
    notify("STOPPING=1")
    server.stop(0)
    arrived.get()
    return 0 if arrived.empty() else 128 + arrived.get()


def serve(app: Application, *, bind: str | Iterable[str] = (), **settings: Any) -> int:
    """Serve `app` until SIGTERM or Ctrl+C: blocks, and returns the exit status.

    `bind` is an endpoint or several; `settings` are fields of `Config`. Without `bind`, in a
    process that a web server has started: on the socket that it left on descriptor 0 (FastCGI
    1.0, section 2.2), and where that is none but the variables of CGI are there, it answers that
    one request. With `error_logfile` the log goes to that file, else wherever `logging` sends it.
    Raises ConfigError and BindError.
    """
    endpoints = (bind,) if isinstance(bind, str) else tuple(bind)
    open_standard_streams()
    server = Server(app, bind=endpoints, **settings)
    logs = Logs(server.config.replace(access_logfile="")) if "error_logfile" in settings else None
    try:
        return server.answer() if server.cgi else run(server)
    finally:
        if logs is not None:
            logs.close()
