"""A server, from its sockets to its stop: has a driver carry what the composition has made."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from fulgate import stacks
from fulgate.composition import Protocols, async_gateway, check_served, gateways
from fulgate.config import Config
from fulgate.drivers.inline import Inline
from fulgate.drivers.stdio import Stdio
from fulgate.drivers.threads import Threads
from fulgate.endpoint import FASTCGI, AllowedClients, Endpoint, bind_all, user_of
from fulgate.errors import ConfigError, NoThreads
from fulgate.exchange import Exchange, Role, SyncGateway
from fulgate.gateways.filters import Filter
from fulgate.gateways.roles import Authorizer, ByRole, Roles
from fulgate.gateways.wsgi import Application
from fulgate.interface import interface_of
from fulgate.listener import Listener, PassOn, inherited_on_stdin
from fulgate.logs import AccessLog, LogFile, access_log
from fulgate.processes.scoreboard import READY, STOPPING, Slot, own_slot
from fulgate.spawned import started_as_cgi, take_standard_streams
from fulgate.systemd import Watchdog

if TYPE_CHECKING:  # what is for ASGI imports asyncio, and so is imported when it is used
    from fulgate.drivers.aio import Aio
    from fulgate.drivers.aio_thread import AioThread
    from fulgate.gateways.asgi import Application as AsyncApplication
    from fulgate.processes.watching import Watching

__all__ = ["Server"]

SLOW_AFTER = 1.0  # seconds after which the status calls a request slow, unless the slow log does

log = logging.getLogger("fulgate")

D = TypeVar("D")


class Server:
    """Serves a WSGI or an ASGI application. No thread, and no socket, before `start` or `bind`.

    As a context manager it starts and stops::

        with Server(app, Config(bind=("tcp:127.0.0.1:0",))) as server:
            print(server.endpoints)

    `config` defaults to `Config()`; `settings` override fields of it. `on_exposed` gets the
    explanation when a socket can be reached by other machines, instead of a ConfigError. `allowed`
    is asked about each peer's address, after `allowed_clients`. `protocol` is what is spoken on
    connections that come from no endpoint. Raises ConfigError.
    """

    def __init__(
        self,
        app: Application | AsyncApplication | Authorizer | Filter | Roles,
        config: Config | None = None,
        *,
        ended: Callable[[Exchange], None] | None = None,
        on_exposed: Callable[[str], object] | None = None,
        allowed: Callable[[Any], bool] | None = None,
        environ: Mapping[str, str] = os.environ,
        protocol: str = FASTCGI,
        **settings: Any,
    ) -> None:
        if settings.get("workers"):
            raise ConfigError(
                "workers: a program serves in its own process; a master with workers is had by"
                " `fulgate serve MODULE:NAME --workers`"
            )
        self.app: Any = app
        self._asked = allowed
        self.config = config = (config or Config()).replace(**settings)
        self.listeners: list[Listener] = []
        self._ended = ended
        self._on_exposed = on_exposed
        for text in config.bind:
            check_served(Endpoint.parse(text).protocol, f"endpoint {text}: ")
        self._allowed = AllowedClients.of(config.allowed_clients, environ)
        self._only_tcp = bool(self._allowed) and not config.allowed_clients
        self._protocols = Protocols(config, protocol)
        self._multiprocess = False
        # On a scoreboard; `start` makes one where there is none, and somebody who reads it.
        self.slot: Slot | None = None
        self.on_late: Callable[[], None] | None = None  # a request did not end in time
        self.on_spent: Callable[[], None] | None = None  # as many requests as `slot.most` are over
        self.on_blocked: Callable[[], None] | None = None  # nor does anything else run meanwhile
        self.on_accepting: Callable[[], None] | None = None  # from now on it accepts
        self.watchdog: Watchdog | None = None  # is told by the driver that all is well
        self._driver: Threads | AioThread | None = None
        self._stopping = threading.Lock()
        self._stopped = False
        self._lost = ""  # why it cannot serve: its threads did not survive a fork
        self._access_file: LogFile | None = None
        self._watching: Watching | None = None

    @property
    def status_listeners(self) -> list[Listener]:
        """The sockets at which its status is answered over HTTP."""
        return self._watching.listeners if self._watching is not None else []

    @property
    def status_endpoints(self) -> list[str]:
        """Where that is, with real ports."""
        return [listener.label for listener in self.status_listeners]

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
        if self._watching is None and self.config.watched:
            from fulgate.processes.watching import Watching  # an HTTP server is much to import

            self._watching = Watching(self.config)

    def start(self) -> None:
        """Bind if need be, and start serving, in threads of its own. Does not block.

        A server starts once. Raises RuntimeError the second time, ConfigError, BindError,
        StartupFailed when an ASGI application's lifespan fails, and NoThreads where the system
        gives none.
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
        slot = self._take_slot()
        driver = self._make_driver()
        watched = self._watching
        aside = watched.aside(slot.board) if watched is not None and slot is not None else None
        most = slot.most if slot is not None else 0
        if isinstance(driver, Threads):
            driver.aside = aside
            driver.late = self.on_late
            driver.most, driver.spent = most, self.on_spent
            driver.watchdog = self.watchdog
            if self.on_accepting is not None:
                self.on_accepting()
        else:
            driver.aio.aside = aside
            driver.aio.watchdog = self.watchdog
            driver.aio.on_accepting = self.on_accepting
            driver.watch.late = self.on_late
            driver.watch.blocked = self.on_blocked
            driver.watch.most, driver.watch.spent = most, self.on_spent
        _running.add(self)
        self._driver = driver
        try:
            driver.start()
            if watched is not None and slot is not None:
                watched.start(slot.board)
        except BaseException:
            self._driver = None
            _running.discard(self)
            raise
        if slot is not None:
            slot.become(READY)
        stacks.name_threads()

    def _take_slot(self) -> Slot | None:
        """Give the place on a scoreboard, on one of its own where there is no master.

        None where nobody could look at that.
        """
        config = self.config
        asgi = self.interface == "asgi"
        if self.slot is None:
            if self._watching is None:
                return None
            self.slot = own_slot(config.worker_concurrency + 1 if asgi else config.threads)
        if asgi:
            limit = config.limit_concurrency
            self.slot.hold(config.capacity, limit - config.capacity if limit else None)
        else:
            self.slot.hold(0, config.queue)
        self.slot.notes.slow_after = self.config.request_slowlog_timeout or SLOW_AFTER
        return self.slot

    @property
    def interface(self) -> str:
        """What the application speaks: "wsgi" or "asgi"."""
        return interface_of(self.app, self.config.interface)

    def _make_driver(self) -> Threads | AioThread:
        if self.interface == "asgi":
            from fulgate.drivers.aio_thread import AioThread

            return self._drive(AioThread, async_gateway(self.app, self.config))
        gateway = self._gateway(
            multithread=self.config.threads > 1, multiprocess=self._multiprocess
        )
        return self._drive(Threads, gateway)

    def _drive(self, driver: Callable[..., D], gateway: object) -> D:
        """Give a driver, on the sockets that were bound."""
        self._protocols.serve_several(True)
        return driver(
            self.listeners,
            self._protocols.make,
            gateway,
            self.config,
            ended=self._ended,
            allowed=self._filter,
            score=self.slot,
            shared=self._multiprocess,
        )

    def embed(self) -> Aio:
        """Bind if need be, and give a driver for the running loop: to `await` its start and stop.

        For an ASGI application only; raises ConfigError for others, and what `bind` raises.
        `fulgate.aio` is made of this.
        """
        from fulgate.drivers.aio import Aio

        if self.interface != "asgi":
            raise ConfigError("a running loop serves ASGI applications only")
        self._check_new()
        self.bind()
        self._open_access_log()
        slot = self._take_slot()
        driver = self._drive(Aio, async_gateway(self.app, self.config))
        if slot is not None:
            if self._watching is not None:
                driver.aside = self._watching.aside(slot.board)
                self._watching.start(slot.board)
            slot.become(READY)
        return driver

    def start_anyhow(self) -> Inline | None:
        """Start; where the system gives no thread, give a driver for the calling thread instead."""
        self._check_new()
        try:
            self._start()
        except NoThreads as error:
            if self.interface == "asgi":
                self.stop(0)
                raise
            log.warning("%s: serving in the main thread, one request at a time", error)
            return self.inline()
        except BaseException:
            self.stop(0)
            raise
        return None

    def inline(self, connection: socket.socket | None = None) -> Inline:
        """Give a driver that serves in the thread that calls its `run`, instead of `start`.

        It serves the sockets that were bound, or only the accepted `connection`, which it owns.
        It needs a WSGI application; raises ConfigError for others.
        """
        self._need_wsgi("a process without threads")
        self._open_access_log()
        self._protocols.serve_several(False)
        driver = Inline(
            self.listeners if connection is None else [],
            self._protocols.make,
            self._gateway(multithread=False, multiprocess=self._multiprocess),
            self.config,
            ended=self._ended,
            allowed=self._filter,
        )
        if connection is not None:
            driver.adopt(connection)
        return driver

    def compose(self, driver: Callable[..., D], **arguments: Any) -> D:
        """Give a driver that is not ours to import, such as one of Twisted's reactor.

        It is called as `Threads` is, without listening sockets, and with `arguments`.
        """
        self._open_access_log()
        self._protocols.serve_several(True)
        return driver(
            self._protocols.make,
            self._gateway(multithread=self.config.threads > 1),
            self.config,
            ended=self._ended,
            allowed=self._filter,
            **arguments,
        )

    def _gateway(self, **environ: bool) -> SyncGateway:
        found = gateways(self.app, self.config, **environ)
        responder = found.get(Role.RESPONDER)
        spoken = {one.protocol for one in self.listeners} or {self._protocols.default}
        if responder is None and spoken != {FASTCGI}:
            raise ConfigError("an application that is no Responder is for FastCGI alone")
        self._protocols.roles = frozenset(found)
        gateway = ByRole(found) if responder is None or len(found) > 1 else responder
        log = self._ended
        return log.timed(gateway) if isinstance(log, AccessLog) and log.wants_cpu else gateway

    def _need_wsgi(self, where: str) -> None:
        if self.interface == "asgi":
            raise ConfigError(f"{where} cannot run an ASGI application")

    def _open_access_log(self) -> None:
        config = self.config
        if self._ended is None and config.access_logfile:
            access = access_log(config)
            if access is not None:
                self._access_file = access.file
                self._ended = access

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

        The status is 0 unless the application failed. Needs no thread, and no socket, but a WSGI
        application; raises ConfigError for others.
        """
        self._need_wsgi("a CGI process")
        params = {k.decode("latin-1"): v.decode("latin-1") for k, v in os.environb.items()}
        stdin, stdout = take_standard_streams()
        self._open_access_log()
        gateway = self._gateway(multithread=False, multiprocess=True, run_once=True)
        try:
            protocol = self._protocols.cgi(params)
            return Stdio(protocol, gateway, self.config, stdin, stdout, self._ended).run()
        finally:
            self._close_access_log()

    def share(
        self,
        listeners: Iterable[Listener],
        slot: Slot,
        watched: Watching | None = None,
    ) -> None:
        """Serve sockets that other processes serve too; what is done is told in this slot."""
        self.listeners = list(listeners)
        self.slot = slot
        self._watching = watched
        self._multiprocess = True

    def adopt(self, connection: socket.socket, protocol: str = FASTCGI) -> None:
        """Serve a connection that another process has accepted. Raises OSError."""
        driver = self._driver
        if driver is None:
            connection.close()
        else:
            driver.adopt(connection, self._protocols.named(protocol))

    def stop(
        self,
        timeout: float | None = None,
        pass_on: PassOn | None = None,
    ) -> bool:
        """Stop: accept no more, close idle connections, let requests end, then cut the rest.

        `timeout` in seconds is for the requests that run; None takes `graceful_timeout`. Idle
        connections are given to `pass_on` instead, if there is one. Returns whether all requests
        ended by themselves. May be called from any thread, more than once.
        """
        with self._stopping:
            self._stopped = True
            driver = self._driver
            clean = True
            watched, self._watching = self._watching, None
            if driver is not None:
                if self.slot is not None:
                    self.slot.become(STOPPING)
                limit = self.config.graceful_timeout if timeout is None else timeout
                clean = driver.stop(limit, pass_on)
            for listener in self.listeners:
                listener.close()
            self.listeners = []
            self._driver = None
            _running.discard(self)
            self._close_access_log()
            if watched is not None:
                watched.stop()
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

    @property
    def _filter(self) -> Callable[[Any, socket.SocketType], bool] | None:
        """What is asked about each connection; None where everybody may connect."""
        return self._allows if self._allowed.restrict or self._asked else None

    def _allows(self, peer: Any, sock: socket.SocketType) -> bool:
        # FCGI_WEB_SERVER_ADDRS shuts other transports than TCP out (FastCGI 1.0, section 3.2).
        if (
            (isinstance(peer, tuple) or not self._only_tcp)
            and self._allowed.allows(peer, sock)
            and (self._asked is None or self._asked(peer))
        ):
            return True
        who = peer if isinstance(peer, tuple) else f"user {user_of(sock)}"
        log.warning("refused a connection from %s, which is not allowed", who)
        return False

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
        if self._watching is not None:
            self._watching.lose()
            self._watching = None
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


# It serves as long as it has not been stopped, also where its program has no name for it.
_running: set[Server] = set()
_parent = os.getpid()


def _note_fork() -> None:
    global _parent
    _parent = os.getpid()


def _lose_in_child() -> None:
    for server in list(_running):
        server.lose(_parent)
    _running.clear()


os.register_at_fork(before=_note_fork, after_in_child=_lose_in_child)
