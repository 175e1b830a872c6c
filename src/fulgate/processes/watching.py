"""A process that is watched: what it does goes to a scoreboard, and who asks gets an answer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from fulgate import __version__
from fulgate.config import Config
from fulgate.endpoint import AllowedClients, bind_all
from fulgate.exchange import Exchange, Reply
from fulgate.lines import uri, value
from fulgate.listener import Listener
from fulgate.processes.monitor import Monitor, Statsd
from fulgate.processes.scoreboard import Scoreboard
from fulgate.processes.status import Status

__all__ = ["Aside", "Observing", "Watching", "bind_status"]


class Aside:
    """Answers for `status_path` and `ping_path`, without the application and its threads."""

    def __init__(self, config: Config, status: Status) -> None:
        self._status = status
        self._paths = {config.status_path: "/status", config.ping_path: "/ping"}
        self._paths.pop("", None)

    def __call__(self, exchange: Exchange) -> Reply | None:
        """Give the answer, or None for a request that is the application's."""
        path = self._paths.get(uri(exchange).partition("?")[0])
        if path is None:
            path = self._paths.get(value(exchange, "SCRIPT_NAME"))
        if path is None:
            return None
        return self._status.answer(path, value(exchange, "QUERY_STRING"))


class Watching:
    """Who answers for the status of a pool, in a process that serves.

    The sockets of `status_bind` are bound here, unless an observer answers there for the `pool`.
    Raises ConfigError and BindError.
    """

    def __init__(self, config: Config, pool: str = "") -> None:
        self._config = config
        self._pool = pool or "fulgate"
        self._observed = bool(pool)
        self.listeners = [] if self._observed else bind_status(config)
        self._allowed = AllowedClients.of(config.allowed_clients)
        self._monitor: Monitor | None = None
        self._statsd: Statsd | None = None

    def _status(self, board: Scoreboard) -> Status:
        return _status_of({self._pool: board})

    def aside(self, board: Scoreboard) -> Aside | None:
        """Give what answers for `status_path` and `ping_path`, if they are set."""
        config = self._config
        if not config.status_path and not config.ping_path:
            return None
        return Aside(config, self._status(board))

    def start(self, board: Scoreboard) -> None:
        """Answer, and report. Raises RuntimeError where the system gives no thread."""
        config, status = self._config, self._status(board)
        if self.listeners:
            allows = self._allowed.allows if self._allowed.restrict else None
            self._monitor = Monitor(self.listeners, status, allows)
            self._monitor.start()
        if config.statsd_host and not self._observed:
            self._statsd = _statsd(config, status)
            self._statsd.start()

    def stop(self) -> None:
        """End answering, and close the sockets."""
        if self._statsd is not None:
            self._statsd.stop()
        if self._monitor is not None:
            self._monitor.stop()
        for listener in self.listeners:
            listener.close()

    def lose(self) -> None:
        """In a forked child: let go of the sockets, which are the parent's."""
        for listener in self.listeners:
            os.close(listener.detach())


class Observing:
    """What an observer runs: it answers for pools where their `status_bind` says, and reports.

    `listeners` are the sockets of each endpoint. One that several pools name answers for all these;
    whom it lets in is up to the first of them.
    """

    def __init__(
        self,
        pools: Mapping[str, Config],
        listeners: Mapping[str, Sequence[Listener]],
        boards: Mapping[str, Scoreboard],
    ) -> None:
        self._running: list[Monitor | Statsd] = []
        for endpoint, sockets in listeners.items():
            who = [name for name, config in pools.items() if endpoint in config.status_bind]
            if not who:
                continue
            allowed = AllowedClients.of(pools[who[0]].allowed_clients)
            status = _status_of({name: boards[name] for name in who if name in boards})
            self._running.append(
                Monitor(sockets, status, allowed.allows if allowed.restrict else None)
            )
        for name, config in pools.items():
            if config.statsd_host and name in boards:
                self._running.append(_statsd(config, _status_of({name: boards[name]})))

    def start(self) -> None:
        """Answer, and report. Raises RuntimeError where the system gives no thread."""
        for one in self._running:
            one.start()

    def stop(self) -> None:
        """End answering; the sockets stay open, for whoever comes next."""
        for one in self._running:
            one.stop()


def _status_of(boards: Mapping[str, Scoreboard]) -> Status:
    return Status(__version__, lambda: boards)


def _statsd(config: Config, status: Status) -> Statsd:
    host, _, port = config.statsd_host.rpartition(":")
    return Statsd((host.strip("[]"), int(port)), config.statsd_prefix, status)


def bind_status(config: Config) -> list[Listener]:
    """Bind the sockets of `status_bind`. Raises ConfigError and BindError."""
    if not config.status_bind:
        return []
    allowed = AllowedClients.of(config.allowed_clients)
    return bind_all(config.status_bind, backlog=64, allowed_clients=allowed)
