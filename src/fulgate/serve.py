"""The one file that introduces the siblings to one another: a protocol, a gateway, a driver."""

from __future__ import annotations

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
from typing import Any

from fulgate.config import Config
from fulgate.drivers.threads import Threads
from fulgate.endpoint import AllowedClients, bind_all
from fulgate.exchange import Exchange, Limits, ServerProtocol
from fulgate.gateways.wsgi import WSGI, Application
from fulgate.listener import Listener
from fulgate.logs import AccessLog, LogFile
from fulgate.protocols.fastcgi import FastCGI
from fulgate.systemd import notify

__all__ = ["Server", "run", "serve"]

log = logging.getLogger("fulgate")


class Server:
    """Serves a WSGI application. No thread, and no socket, before `start` or `bind`.

    As a context manager it starts and stops::

        with Server(app, Config(bind=("tcp:127.0.0.1:0",))) as server:
            print(server.endpoints)

    `config` defaults to `Config()`; `settings` override fields of it. `on_exposed` gets the
    explanation when a socket can be reached by other machines, instead of a ConfigError. Raises
    ConfigError.
    """

    def __init__(
        self,
        app: Application,
        config: Config | None = None,
        *,
        ended: Callable[[Exchange], None] | None = None,
        on_exposed: Callable[[str], object] | None = None,
        environ: Mapping[str, str] = os.environ,
        **settings: Any,
    ) -> None:
        self.app = app
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
            self.listeners = bind_all(
                self.config.bind,
                backlog=self.config.backlog,
                allowed_clients=self._allowed,
                on_exposed=self._on_exposed,
            )

    def start(self) -> None:
        """Bind if need be, and start serving, in threads of its own. Does not block.

        A server starts once. Raises RuntimeError the second time, ConfigError and BindError.
        """
        if self._driver is not None:
            raise RuntimeError("the server was started already")
        if self._lost:
            raise RuntimeError(self._lost)
        if self._stopped:
            raise RuntimeError("the server was stopped, and does not start again: make a new one")
        try:
            self._start()
        except BaseException:
            self._driver = None
            self.stop(0)
            raise

    def _start(self) -> None:
        self.bind()
        config = self.config
        gateway = WSGI(
            self.app,
            path=config.path,
            script_name=config.script_name,
            repeated_params=config.repeated_params,
            stderr=config.stderr,
            multithread=config.threads > 1,
        )
        if self._ended is None and config.access_logfile:
            self._access_file = LogFile(config.access_logfile, 1)
            self._ended = AccessLog(self._access_file, config.access_log_format)
        driver = Threads(
            self.listeners,
            self._make_protocol,
            gateway,
            config,
            ended=self._ended,
            allowed=self._allows if self._allowed else None,
        )
        _running.add(self)
        self._driver = driver
        driver.start()

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
            if self._access_file is not None:
                self._access_file.close()
                self._access_file = self._ended = None
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
        return self._allowed.allows(peer)

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
    """
    arrived: SimpleQueue[int] = SimpleQueue()  # its put may be called in a signal handler

    def note(number: int, frame: FrameType | None) -> None:
        arrived.put(number)

    before = {number: signal.signal(number, note) for number in stop_signals}
    try:
        server.start()
        notify("READY=1")
        arrived.get()
        notify("STOPPING=1")

        def stop() -> None:
            try:
                server.stop()
            finally:
                arrived.put(0)

        stopper = threading.Thread(target=stop, name="fulgate-stop", daemon=True)
        stopper.start()
        number = arrived.get()
        if number:
            server.cut()
            stopper.join(1.0)
            return 128 + number
        return 0
    finally:
        for signal_number, handler in before.items():
            signal.signal(signal_number, handler)


def serve(app: Application, *, bind: str | Iterable[str] = (), **settings: Any) -> int:
    """Serve `app` until SIGTERM or Ctrl+C: blocks, and returns the exit status.

    `bind` is an endpoint or several; `settings` are fields of `Config`. Raises ConfigError and
    BindError.
    """
    endpoints = (bind,) if isinstance(bind, str) else tuple(bind)
    return run(Server(app, bind=endpoints, **settings))
