"""Serve until a signal."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any

from fulgate import stacks
from fulgate.arrivals import Arrivals
from fulgate.drivers.inline import Inline
from fulgate.gateways.filters import Filter
from fulgate.gateways.roles import Authorizer, Roles
from fulgate.gateways.wsgi import Application
from fulgate.logs import Logs
from fulgate.server import Server
from fulgate.spawned import open_standard_streams
from fulgate.systemd import Watchdog, notify

if TYPE_CHECKING:  # imports asyncio, and so is imported when it is used
    from fulgate.gateways.asgi import Application as AsyncApplication

__all__ = ["run", "serve"]


def run(
    server: Server,
    *,
    stop_signals: Iterable[int] = (signal.SIGTERM, signal.SIGINT),
    reopen: Callable[[], object] | None = None,
) -> int:
    """Start the server, and serve until a signal; give the process's exit status.

    The first signal stops it gracefully, and the status is 0; a second one cuts what still runs,
    and the status is 128 and its number, as a shell has it. To be called in the main thread, since
    only there Python runs signal handlers; raises ValueError elsewhere, and what `start` raises.
    Where the system gives no thread, the main thread serves. SIGUSR1 and SIGHUP call `reopen`, if
    it is given; SIGHUP does not where a terminal is standard input, which has ended then.
    """
    with Arrivals(stop_signals, reopen) as arrivals:
        stacks.register()
        try:
            return _run(server, arrivals)
        finally:
            stacks.unregister()


def _run(server: Server, arrivals: Arrivals) -> int:
    server.watchdog = Watchdog()
    inline = server.start_anyhow()
    notify("READY=1")
    if inline is not None:
        return _run_inline(server, inline, arrivals)
    arrivals.next()
    notify("STOPPING=1")

    def stop() -> None:
        try:
            server.stop()
        finally:
            arrivals.tell(0)

    stopper = threading.Thread(target=stop, name="fulgate-stop", daemon=True)
    try:
        stopper.start()
    except RuntimeError:  # no thread to be had: a second signal ends the process at once
        arrivals.by_default()
        stop()
    number = arrivals.next()
    if number:
        server.cut()
        if stopper.is_alive():
            stopper.join(1.0)
        return 128 + number
    return 0


def _run_inline(server: Server, inline: Inline, arrivals: Arrivals) -> int:
    def end() -> None:
        if arrivals.count > 1:
            inline.cut()
        elif arrivals.count:
            inline.stop()

    arrivals.on_stop = end
    end()  # what arrived before there was a driver to tell
    watchdog = server.watchdog or Watchdog()
    if math.isfinite(watchdog.interval):
        inline.run(periodic=lambda: watchdog.beat(monotonic()), interval=watchdog.interval)
    else:
        inline.run()
    notify("STOPPING=1")
    server.stop(0)
    arrivals.next()
    return 128 + arrivals.next() if arrivals.count else 0


def serve(
    app: Application | AsyncApplication | Authorizer | Filter | Roles,
    *,
    bind: str | Iterable[str] = (),
    **settings: Any,
) -> int:
    """Serve `app`, WSGI or ASGI, until SIGTERM or Ctrl+C: blocks, and returns the exit status.

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
