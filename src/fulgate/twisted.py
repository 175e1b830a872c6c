"""Fulgate inside Twisted: a service for `twistd`, .tac files and any program with a reactor.

`twistd` builds the application before it daemonises, and a fork keeps only the thread that calls
it. So nothing here owns a thread before `startService`; sockets are bound in
`privilegedStartService`, before privileges are shed.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from fulgate.config import Config, settings
from fulgate.drivers.tx import Factory
from fulgate.drivers.tx_pool import Pool
from fulgate.endpoint import Endpoint
from fulgate.errors import ConfigError
from fulgate.gateways.wsgi import Application
from fulgate.listener import inherited_on_stdin, systemd_sockets
from fulgate.loader import load_app
from fulgate.logs import AccessLog
from fulgate.process import prepare
from fulgate.serve import Server
from fulgate.systemd import notify
from fulgate.twisted_logs import AccessLines, log_as_before, log_to_twisted

__all__ = ["HOSTS", "FastCGIFactory", "FastCGIService", "FastCGISite"]

log = logging.getLogger("fulgate")

HOSTS = {
    "chdir": "twistd's --rundir does that",
    "user": "twistd's --uid does that, or the application's in a .tac file",
    "group": "twistd's --gid does that, or the application's in a .tac file",
    "umask": "twistd's --umask does that",
    "pid": "twistd's --pidfile does that",
    "error_logfile": "twistd's --logfile does that",
    "http": "it is for `fulgate serve`",
    "static": "it is for `fulgate serve`",
}
"""The settings that belong to the whole process, which is its host's, and what to do instead."""


class FastCGIService(Service):
    """Serves a WSGI application over FastCGI, in threads, as a service of Twisted's.

    `bind` are endpoints, as in `fulgate serve --bind`; `wsgi` is the application, or its name
    ("MODULE:ATTR"), which is then imported when the service starts: after the daemon's fork, and
    as the user that it becomes. `config` and `settings` are as for `fulgate.Server`. Raises
    ConfigError, also for the settings in `HOSTS`. Starting raises BindError and AppNotFound, which
    `twistd` shows in the terminal.

    It stops by itself when the reactor does, also where it has no parent.
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
        check_hosted(config)
        self._wsgi = None if isinstance(wsgi, str) else wsgi
        if self._wsgi is None and not config.app:
            raise ConfigError("there is no application: give wsgi")
        self.config = config.replace(bind=_inherit(config))
        self._server = self._new_server()
        self._prepared = False
        self._logging = False
        self._trigger: Any = None  # what has the reactor stop it
        self._stopping: list[Deferred[None]] = []

    @property
    def endpoints(self) -> list[str]:
        """Where it listens, with real ports; empty before `privilegedStartService`."""
        return self._server.endpoints

    def _new_server(self) -> Server:
        return Server(self._wsgi or _not_loaded, self.config, ended=_access(self.config))

    def _bind(self) -> None:
        if not self._prepared:
            prepare(self.config)
            self._prepared = True
        self._server.bind()

    def privilegedStartService(self) -> None:
        """Bind the sockets, while the process may use ports below 1024."""
        super().privilegedStartService()
        self._bind()

    def startService(self) -> None:
        """Load the application if it was given by name, and start the threads."""
        try:
            self._bind()
            if self._wsgi is None:
                self._server.app = load_app(self.config.app, self.config.pythonpath)
            log_to_twisted(self.config.log_level)
            self._logging = True
            self._server.start()
        except BaseException:
            self._server.stop(0)
            self._server = self._new_server()
            self._log_as_before()
            raise
        super().startService()
        for endpoint in self.endpoints:
            log.info("serving FastCGI on %s", endpoint)
        reactor = _reactor()
        self._trigger = reactor.addSystemEventTrigger("before", "shutdown", self._shutdown)
        reactor.callWhenRunning(notify, "READY=1")

    def _shutdown(self) -> Deferred[None]:
        self._trigger = None
        notify("STOPPING=1")
        return self.stopService()

    def stopService(self) -> Deferred[None]:
        """Stop as `Server.stop` does; the Deferred fires when all is over.

        The reactor runs on meanwhile, so that requests which need it can end.
        """
        super().stopService()
        reactor = _reactor()
        if self._trigger is not None:
            reactor.removeSystemEventTrigger(self._trigger)
            self._trigger = None
        stopped: Deferred[None] = Deferred()
        self._stopping.append(stopped)
        if len(self._stopping) > 1:
            return stopped
        server, self._server = self._server, self._new_server()

        def stop() -> None:
            # Not in the reactor's thread pool: an application may have filled that.
            failure: Failure | None = None
            try:
                server.stop()
            except BaseException:
                failure = Failure()
            reactor.callFromThread(self._end, failure)

        threading.Thread(target=stop, name="fulgate-stop", daemon=True).start()
        return stopped

    def _end(self, failure: Failure | None) -> None:
        self._log_as_before()
        waiting, self._stopping = self._stopping, []
        for stopped in waiting:
            if failure is None:
                stopped.callback(None)
            else:
                stopped.errback(failure)

    def _log_as_before(self) -> None:
        if self._logging:
            self._logging = False
            log_as_before()


class _Logged(Factory):
    """While it serves, what `logging` gets is in Twisted's log."""

    _logging = False

    def startFactory(self) -> None:
        """Twisted calls this when the first port listens."""
        super().startFactory()
        if not self._logging:
            self._logging = True
            log_to_twisted(self.config.log_level)

    def _drained(self) -> None:
        super()._drained()
        if self._logging:
            self._logging = False
            log_as_before()


class FastCGIFactory(_Logged):
    """Serves a WSGI application over FastCGI on any Twisted server endpoint.

    `wsgi` runs in the reactor's thread pool, or in `threadpool`, a
    twisted.python.threadpool.ThreadPool that was started; in `config.threads` threads at most.
    `config` and `settings` are as for `fulgate.Server`, `bind` and the settings in `HOSTS` apart.
    Raises ConfigError.
    """

    def __init__(
        self,
        wsgi: Application,
        *,
        config: Config | None = None,
        reactor: Any = None,
        threadpool: Any = None,
        **settings: Any,
    ) -> None:
        reactor = reactor or _reactor()
        config = _of_a_factory(config, settings)

        def driver(make_protocol: Any, gateway: Any, config: Config, **more: Any) -> None:
            pool = Pool(gateway, config, reactor, threadpool)
            Factory.__init__(self, make_protocol, pool, config, reactor=reactor, **more)

        Server(wsgi, config, ended=_access(config)).compose(driver)


class FastCGISite(_Logged):
    """Serves a twisted.web resource, or a Klein application, over FastCGI on any endpoint.

    All runs in the reactor's thread. `site` is the twisted.web.server.Site of the requests, for
    sessions and the like. `config` and `settings` are as for `FastCGIFactory`; `threads` and
    `queue` mean nothing here. Raises ConfigError.
    """

    def __init__(
        self,
        resource: Any,
        *,
        config: Config | None = None,
        reactor: Any = None,
        **settings: Any,
    ) -> None:
        # twisted.web is much to import for who serves WSGI.
        from twisted.web.resource import IResource

        from fulgate.gateways.resource import MountedSite, ResourceGateway

        reactor = reactor or _reactor()
        config = _of_a_factory(config, settings)
        if not IResource.providedBy(resource) and callable(getattr(resource, "resource", None)):
            resource = resource.resource()  # Klein's
        self.site = site = MountedSite(resource, reactor=reactor)

        def driver(make_protocol: Any, gateway: Any, config: Config, **more: Any) -> None:
            rules = (config.path, config.script_name, config.repeated_params)
            resources = ResourceGateway(site, reactor, *rules)
            Factory.__init__(self, make_protocol, resources, config, reactor=reactor, **more)

        Server(_not_loaded, config, ended=_access(config)).compose(driver)


def _of_a_factory(config: Config | None, settings: dict[str, Any]) -> Config:
    config = (config or Config()).replace(**settings)
    check_hosted(config)
    if config.bind:
        raise ConfigError("bind: the factory listens where its endpoint does")
    return config


def _access(config: Config) -> AccessLog | None:
    if config.access_logfile != "-":
        return None  # it is as anywhere
    return AccessLog(AccessLines(), config.access_log_format)


def _reactor() -> Any:
    # Not before it is needed: importing it installs the default one.
    from twisted.internet import reactor

    return reactor


def check_hosted(config: Config) -> None:
    """Raise ConfigError for a setting that is the host's to decide."""
    for setting in settings():
        if setting.name in HOSTS and getattr(config, setting.name) != setting.default:
            raise ConfigError(f"{setting.name}: not under Twisted: {HOSTS[setting.name]}")


def _inherit(config: Config) -> tuple[str, ...]:
    """Take the sockets that are inherited, and give the endpoints with their new numbers.

    twistd puts /dev/null over the descriptors 0 to 2 when it daemonises, and systemd's variables
    name the process that it started.
    """
    endpoints = config.bind
    if not endpoints and inherited_on_stdin():
        endpoints = ("fd:0",)
    elif not endpoints and systemd_sockets(take=False):
        endpoints = ("systemd",)
    found: list[str] = []
    for text in endpoints:
        endpoint = Endpoint.parse(text)
        if endpoint.kind in ("fd", "systemd"):
            found += [f"fd:{listener.detach()}" for listener in endpoint.bind(config.backlog)]
        else:
            found.append(text)
    return tuple(found)


def _not_loaded(environ: object, start_response: object) -> Any:
    raise RuntimeError("the service was started without an application")
