"""The command `twistd fastcgi`: its options are the fields of Config."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ReactorNotRunning
from twisted.python import usage

from fulgate import settings
from fulgate.config import Setting
from fulgate.config import settings as all_settings
from fulgate.errors import ConfigError
from fulgate.twisted import HOSTS, FastCGIService

__all__ = ["Options", "makeService"]

log = logging.getLogger("fulgate")

NO_OPTIONS = frozenset((*HOSTS, "debug"))  # twistd has options of its own for these


class Options(usage.Options):
    """Read the options, and remember in `given` those that stand on the command line."""

    synopsis = "[options]"
    longdesc = (
        "Serve a WSGI or an ASGI application over FastCGI. Settings come from fulgate.toml, from"
        " [tool.fulgate] in pyproject.toml, from the environment (FULGATE_...) and from these"
        " options."
    )

    def __init__(self) -> None:
        self.given: dict[str, str | tuple[str, ...] | bool] = {}
        self.file = ""
        super().__init__()

    def opt_config(self, path: str) -> None:
        """TOML file with settings."""
        self.file = path

    opt_c = opt_config

    def postOptions(self) -> None:
        """Check what was given, so that a mistake shows before the daemon is made."""
        try:
            self.settings = settings.load(self.given, file=self.file)
        except ConfigError as error:
            raise usage.UsageError(str(error)) from error
        for name, source in self.settings.sources.items():
            if name in HOSTS and source != "default":
                raise usage.UsageError(f"{source}: {name}: not under twistd: {HOSTS[name]}")
        if self.settings.pools:
            raise usage.UsageError(f"pools: not under twistd: {HOSTS['workers']}")
        if not self.settings.config.app:
            raise usage.UsageError("name the application: --app MODULE:ATTR")


def _flag(setting: Setting, value: bool) -> Callable[..., None]:
    def flag(self: Options) -> None:
        self.given[setting.name] = value

    flag.__doc__ = setting.help if value else f"Not --{setting.name}, whatever a file says."
    return flag


def _option(setting: Setting) -> Callable[..., None]:
    def option(self: Options, value: str) -> None:
        if setting.many:
            before = self.given.get(setting.name, ())
            assert isinstance(before, tuple)
            self.given[setting.name] = (*before, value)
        else:
            self.given[setting.name] = value

    option.__doc__ = setting.help
    return option


def _add_options() -> None:
    for setting in all_settings():
        if setting.name in NO_OPTIONS:
            continue
        if setting.type is bool:
            setattr(Options, "opt_" + setting.name, _flag(setting, True))
            setattr(Options, "opt_no_" + setting.name, _flag(setting, False))
            continue
        method = _option(setting)
        setattr(Options, "opt_" + setting.name, method)
        if setting.short:
            setattr(Options, "opt_" + setting.short.lstrip("-"), method)


_add_options()


class ProcessService(FastCGIService):
    """The service whose process does nothing else, and is a FastCGI application as a whole.

    SIGTERM ends it with status 0, which says that it ends on purpose (FastCGI 1.0, section 7).
    Left to twistd, it would end by the signal once all has stopped: twistd sends itself, at the
    end, the one that its own handler got.
    """

    def startService(self) -> None:
        super().startService()
        from twisted.internet import reactor

        # By then the reactor has set its handlers.
        reactor.callWhenRunning(_handle_sigterm, reactor)


def _handle_sigterm(reactor: Any) -> None:
    def stop(number: int, frame: object) -> None:
        reactor.callFromThread(_stop, reactor)

    if callable(signal.getsignal(signal.SIGTERM)):  # else the host has no handlers of its own
        signal.signal(signal.SIGTERM, stop)


def _stop(reactor: Any) -> None:
    log.info("stopping, by SIGTERM")
    with contextlib.suppress(ReactorNotRunning):  # it stops already
        reactor.stop()


def makeService(options: Any) -> FastCGIService:
    """Make the service, for twistd. It owns no thread yet, and binds no new socket."""
    config = options.settings.config
    return ProcessService(wsgi=config.app, config=config)
