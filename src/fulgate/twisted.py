"""Fulgate inside Twisted: a service for `twistd`, .tac files and any program with a reactor.

`twistd` builds the application before it daemonises, and a fork keeps only the thread that calls
it. So nothing here owns a thread before `startService`; sockets are bound in
`privilegedStartService`, before privileges are shed.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from fulgate.config import Config
from fulgate.endpoint import Endpoint
from fulgate.gateways.wsgi import Application
from fulgate.listener import inherited_on_stdin
from fulgate.loader import load_app
from fulgate.serve import Server
from fulgate.systemd import notify

__all__ = ["FastCGIService"]


class FastCGIService(Service):
    """Serves a WSGI application over FastCGI, in threads, as a service of Twisted's.

    `bind` are endpoints, as in `fulgate serve --bind`; `wsgi` is the application, or its name
    ("MODULE:ATTR"), which is then imported when the service starts: after the daemon's fork, and
    as the user that it becomes. `config` and `settings` are as for `fulgate.Server`. Raises
    ConfigError; starting raises BindError and AppNotFound, which `twistd` shows in the terminal.
    """

    def __init__(
        self,
        *bind: str,
        wsgi: Application | str = "",
        config: Config | None = None,
        **settings: Any,
    ) -> None:
        config = (config or Config()).replace(**settings)
        if bind:
            config = config.replace(bind=bind)
        if wsgi and isinstance(wsgi, str):
            config = config.replace(app=wsgi)
        self.config = config
        self._wsgi = None if isinstance(wsgi, str) else wsgi
        self._server = self._new_server()
        if _inherits(config):
            # twistd puts /dev/null over the descriptors 0 to 2 when it daemonises, and systemd's
            # variables name the process that it started: take the sockets now.
            self._server.bind()

    @property
    def endpoints(self) -> list[str]:
        """Where it listens, with real ports; empty before `privilegedStartService`."""
        return self._server.endpoints

    def _new_server(self) -> Server:
        return Server(self._wsgi or _not_loaded, self.config)

    def privilegedStartService(self) -> None:
        """Bind the sockets, while the process may use ports below 1024."""
        super().privilegedStartService()
        self._server.bind()

    def startService(self) -> None:
        """Load the application if it was given by name, and start the threads."""
        if self._wsgi is None:
            self._server.app = load_app(self.config.app, self.config.pythonpath)
        _log_to_twisted()
        try:
            self._server.start()
        except BaseException:
            _log_as_before()
            raise
        super().startService()
        for endpoint in self._server.endpoints:
            logging.getLogger("fulgate").info("serving FastCGI on %s", endpoint)
        from twisted.internet import reactor

        reactor.callWhenRunning(notify, "READY=1")

    def stopService(self) -> Deferred[None]:
        """Stop as `Server.stop` does; the Deferred fires when all is over.

        The reactor runs on meanwhile, so that requests which need it can end.
        """
        from twisted.internet import reactor

        super().stopService()
        notify("STOPPING=1")
        server, self._server = self._server, self._new_server()
        stopped: Deferred[None] = Deferred()

        def stop() -> None:
            # Not in the reactor's thread pool: the reactor waits for that one.
            failure: Failure | None = None
            try:
                server.stop()
            except BaseException:
                failure = Failure()
            reactor.callFromThread(end, failure)

        def end(failure: Failure | None) -> None:
            _log_as_before()
            if failure is None:
                stopped.callback(None)
            else:
                stopped.errback(failure)

        threading.Thread(target=stop, name="fulgate-stop", daemon=True).start()
        return stopped


def _inherits(config: Config) -> bool:
    if not config.bind:
        return inherited_on_stdin() or "LISTEN_FDS" in os.environ
    return any(Endpoint.parse(text).kind in ("fd", "systemd") for text in config.bind)


def _not_loaded(environ: object, start_response: object) -> Any:
    raise RuntimeError("the service was started without an application")


class _ToTwisted(logging.Handler):
    """Hands records of the standard library's logging to twisted.logger."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = LogLevel.levelWithName(_level_name(record.levelno))
            logger = Logger(namespace=record.name)
            failure = None
            if record.exc_info and record.exc_info[1] is not None:
                kind, error, traceback = record.exc_info
                failure = Failure(error, kind, traceback)
            # The text is a value, and no format of its own: requests put braces into it.
            logger.emit(
                level,
                "{text}\n{trace}" if failure else "{text}",
                text=record.getMessage(),
                trace=failure.getTraceback() if failure else "",
            )
        except Exception:
            self.handleError(record)


def _level_name(number: int) -> str:
    for limit, name in ((50, "critical"), (40, "error"), (30, "warn"), (20, "info")):
        if number >= limit:
            return name
    return "debug"


# Several services in one process share the handler: it comes with the first and goes with the last.
_users = 0
_handler = _ToTwisted()


def _log_to_twisted() -> None:
    """Have `logging`, ours and the application's, end in twistd's log."""
    global _users
    _users += 1
    if _users > 1:
        return
    root = logging.getLogger()
    ours = logging.getLogger("fulgate")
    if not ours.level:
        ours.setLevel(logging.INFO)
    # An application that has set its logging up keeps it.
    (ours if root.handlers else root).addHandler(_handler)


def _log_as_before() -> None:
    global _users
    _users -= 1
    if not _users:
        logging.getLogger().removeHandler(_handler)
        logging.getLogger("fulgate").removeHandler(_handler)
