"""Fulgate inside Twisted: a service for `twistd`, .tac files and any program with a reactor.

`twistd` builds the application before it daemonises, and a fork keeps only the thread that calls
it. So nothing here owns a thread before `startService`; sockets are bound in
`privilegedStartService`, before privileges are shed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from fulgate.config import Config, settings
from fulgate.drivers.tx import Factory
from fulgate.drivers.tx_pool import Pool
from fulgate.endpoint import FASTCGI, Endpoint, spoken
from fulgate.errors import ConfigError
from fulgate.gateways.trampoline import deferred_of
from fulgate.gateways.wsgi import Application
from fulgate.listener import inherited_on_stdin, systemd_sockets
from fulgate.loader import load_app
from fulgate.logs import AccessLog
from fulgate.process import prepare, settle
from fulgate.server import Server
from fulgate.systemd import Watchdog, notify
from fulgate.twisted_logs import AccessLines, log_as_before, log_to_twisted

if TYPE_CHECKING:
    from fulgate.drivers.aio import Aio

__all__ = ["HOSTS", "FastCGIFactory", "FastCGIService", "FastCGISite", "deferring"]

log = logging.getLogger("fulgate")

Arguments = ParamSpec("Arguments")

HOSTS = {
    "chdir": "twistd's --rundir does that",
    "user": "twistd's --uid does that, or the application's in a .tac file",
    "group": "twistd's --gid does that, or the application's in a .tac file",
    "umask": "twistd's --umask does that",
    "pid": "twistd's --pidfile does that",
    "error_logfile": "twistd's --logfile does that",
    "http": "it is for `fulgate serve`",
    "static": "it is for `fulgate serve`",
    "reload": "it is for `fulgate serve`",
    "reload_extra_file": "it is for `fulgate serve`",
    "chroot": "twistd's --chroot does that",
    "env": "set the variables of twistd",
    "clear_env": "start twistd by env(1) with -i",
    "nice": "start twistd by nice(1)",
    "workers": "it is for `fulgate serve`",
}
"""The settings that belong to the whole process, which is its host's, and what to do instead."""


class FastCGIService(Service):
    """Serves a WSGI or an ASGI application over FastCGI, as a service of Twisted's.

    WSGI runs in threads. ASGI runs in the reactor's loop where the reactor is asyncio's
    (`twistd --reactor=asyncio`), else in a loop in a thread; give it as `asgi`.

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
        asgi: Any = "",
        config: Config | None = None,
        **settings: Any,
    ) -> None:
        config = (config or Config()).replace(**settings)
        if bind:
            config = config.replace(bind=bind)
        if wsgi and asgi:
            raise ConfigError("there are two applications: give wsgi or asgi")
        app = wsgi or asgi
        if asgi:
            config = config.replace(interface="asgi")
        if app and isinstance(app, str):
            config = config.replace(app=app)
        check_hosted(config)
        self._app = None if isinstance(app, str) else app
        if self._app is None and not config.app:
            raise ConfigError("there is no application: give wsgi or asgi")
        self.config = config.replace(bind=_inherit(config))
        self._server = self._new_server()
        self._prepared = False
        self._logging = False
        self._embedded: Aio | None = None  # in the reactor's loop
        self._trigger: Any = None  # what has the reactor stop it
        self._stopping: list[Deferred[None]] = []

    @property
    def endpoints(self) -> list[str]:
        """Where it listens, with real ports; empty before `privilegedStartService`."""
        return self._server.endpoints

    def _new_server(self) -> Server:
        return Server(self._app or _not_loaded, self.config, ended=_access(self.config))

    def _bind(self) -> None:
        if not self._prepared:
            prepare(self.config)
            settle(self.config)
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
            if self._app is None:
                self._server.app = load_app(self.config.app, self.config.pythonpath)
            log_to_twisted(self.config.log_level)
            self._logging = True
            self._start()
        except BaseException:
            self._embedded = None
            self._server.stop(0)
            self._server = self._new_server()
            self._log_as_before()
            raise
        super().startService()
        for endpoint in self.endpoints:
            log.info("serving %s on %s", spoken(endpoint), endpoint)
        reactor = _reactor()
        self._trigger = reactor.addSystemEventTrigger("before", "shutdown", self._shutdown)
        reactor.callWhenRunning(notify, "READY=1")

    def _start(self) -> None:
        reactor = _reactor()
        loop = getattr(reactor, "_asyncioEventloop", None)
        watchdog = Watchdog()
        if loop is None or self._server.interface != "asgi":
            self._server.watchdog = watchdog
            self._server.start()
            return
        self._embedded = driver = self._server.embed()
        driver.watchdog = watchdog

        def failed(failure: Failure) -> None:
            log.critical("%s", failure.getErrorMessage())
            reactor.stop()

        def start() -> None:
            if self._embedded is driver:
                _deferred(driver.start(), loop).addErrback(failed)

        reactor.callWhenRunning(start)

    def _stop_embedded(self, server: Server, driver: Aio) -> None:
        def over(result: Any) -> None:
            server.stop(0)
            self._end(result if isinstance(result, Failure) else None)

        if driver.started:
            _deferred(driver.stop(self.config.graceful_timeout), driver.loop).addBoth(over)
        else:
            over(None)

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
        embedded, self._embedded = self._embedded, None
        if embedded is not None:
            self._stop_embedded(server, embedded)
            return stopped

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
    `protocol` is what the web server speaks: "fastcgi", "scgi" or "ajp". `config` and `settings`
    are as for `fulgate.Server`, `bind`, those of the status and those in `HOSTS` apart. Raises
    ConfigError.
    """

    def __init__(
        self,
        wsgi: Application,
        *,
        config: Config | None = None,
        reactor: Any = None,
        threadpool: Any = None,
        protocol: str = FASTCGI,
        **settings: Any,
    ) -> None:
        reactor = reactor or _reactor()
        config = _of_a_factory(config, settings)

        def driver(make_protocol: Any, gateway: Any, config: Config, **more: Any) -> None:
            pool = Pool(gateway, config, reactor, threadpool)
            Factory.__init__(self, make_protocol, pool, config, reactor=reactor, **more)

        Server(wsgi, config, ended=_access(config), protocol=protocol).compose(driver)


class FastCGISite(_Logged):
    """Serves a twisted.web resource, or a Klein application, over FastCGI on any endpoint.

    All runs in the reactor's thread. `site` is the twisted.web.server.Site of the requests, for
    sessions and the like. `protocol`, `config` and `settings` are as for `FastCGIFactory`;
    `threads` and `queue` together are how many requests may be on one connection, and nothing
    else. Raises ConfigError.
    """

    def __init__(
        self,
        resource: Any,
        *,
        config: Config | None = None,
        reactor: Any = None,
        protocol: str = FASTCGI,
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

        Server(_not_loaded, config, ended=_access(config), protocol=protocol).compose(driver)


def deferring(
    function: Callable[Arguments, Coroutine[Any, Any, Any]],
) -> Callable[Arguments, Deferred[Any]]:
    """Have a coroutine function give a Deferred, and await what is asyncio's too.

    For coroutines that something of Twisted's would run, as Klein does, which knows Deferreds
    alone. Without asyncio's loop in the reactor's thread, awaiting what is asyncio's raises
    RuntimeError. To cancel the Deferred cancels the coroutine.
    """

    @wraps(function)
    def begin(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Deferred[Any]:
        return deferred_of(function(*args, **kwargs))

    return begin


def _of_a_factory(config: Config | None, settings: dict[str, Any]) -> Config:
    config = (config or Config()).replace(**settings)
    check_hosted(config)
    if config.bind:
        raise ConfigError("bind: the factory listens where its endpoint does")
    for name in ("status_bind", "status_path", "ping_path", "statsd_host"):
        if getattr(config, name):
            raise ConfigError(f"{name}: a factory keeps no status; FastCGIService does")
    return config


def _access(config: Config) -> AccessLog | None:
    if config.access_logfile != "-":
        return None  # it is as anywhere
    return AccessLog(AccessLines(), config.access_log_format, config.log_limit)


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
            taken = endpoint.bind(config.backlog)
            found += [f"{endpoint.protocol}+fd:{listener.detach()}" for listener in taken]
        else:
            found.append(text)
    return tuple(found)


def _deferred(coroutine: Coroutine[Any, Any, Any], loop: Any) -> Deferred[Any]:
    import asyncio  # the reactor has

    return Deferred.fromFuture(asyncio.ensure_future(coroutine, loop=loop))


def _not_loaded(environ: object, start_response: object) -> Any:
    raise RuntimeError("the service was started without an application")
