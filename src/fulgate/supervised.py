"""Serve with a master and its workers: what the settings say, made plans for the master."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from typing import TYPE_CHECKING, Any

from fulgate import process, whereabouts
from fulgate.config import Config
from fulgate.endpoint import AllowedClients, Endpoint, bind_all
from fulgate.errors import BindError, ConfigError
from fulgate.gateways.wsgi import Application
from fulgate.listener import Listener, adopt
from fulgate.loader import load_app
from fulgate.logs import Logs
from fulgate.processes import watching
from fulgate.processes.crew import Plan
from fulgate.processes.master import Left, Master
from fulgate.processes.output import Output, Tell
from fulgate.processes.pool import Policy
from fulgate.processes.scoreboard import Scoreboard, Slot
from fulgate.server import Server
from fulgate.title import entitle

if TYPE_CHECKING:
    from fulgate.processes.execution import Execution

__all__ = ["Supervised"]

log = logging.getLogger("fulgate")

INHERITED = "_FULGATE_INHERITED"  # what a master that executes itself leaves: JSON
PATIENCE = 1.0  # seconds for the workers of a master that was killed to let go of its sockets


class Supervised:
    """Pools of workers, by their configurations. Binds; raises ConfigError and BindError.

    `read` gives the configurations anew, by name, for a reload.
    """

    def __init__(
        self,
        pools: Mapping[str, Config],
        logs: Logs,
        read: Callable[[], Mapping[str, Config]],
    ) -> None:
        self._logs = logs
        self._read = read
        self._bound: dict[str, list[Listener]] = {}
        self._status: dict[str, list[Listener]] = {}
        self._apps: dict[str, Application] = {}
        left = json.loads(os.environ.pop(INHERITED, "{}"))
        for endpoint, fds in left.get("sockets", {}).items():
            self._bound[endpoint] = [self._inherit(endpoint, fd) for fd in fds]
        for endpoint, fds in left.get("status", {}).items():
            self._status[endpoint] = [self._inherit(endpoint, fd) for fd in fds]
        self._outputs: list[tuple[str, int, list[tuple[int, int]]]] = left.get("outputs", [])
        # Another version may have left more than this one knows.
        known = {field.name for field in fields(Left)}
        self._left = Left(**{k: v for k, v in left.get("master", {}).items() if k in known})
        self._pools: Mapping[str, Config] = {}
        self._hooks = next(iter(pools.values())).hooks
        self._preload = any(config.preload_app for config in pools.values())
        try:
            self._plans = self._make_plans(pools)
            used = {endpoint for config in pools.values() for endpoint in config.bind or ("",)}
            self._close_unused(self._bound, used)
            self._close_unused(self._status, {e for c in pools.values() for e in c.status_bind})
        except BaseException:
            self.close()
            raise
        _entitle(pools)

    @property
    def status_endpoints(self) -> list[str]:
        """Where the status is answered, with real ports."""
        return [listener.label for one in self._status.values() for listener in one]

    @property
    def endpoints(self) -> list[str]:
        """Where it listens, with real ports."""
        return [listener.label for one in self._bound.values() for listener in one]

    def run(self, hears: Callable[[], object]) -> int:
        """Run until a signal; give the exit status. Raises AppNotFound.

        `hears` is called once signals are obeyed.
        """
        master = Master(
            self._plans,
            hooks=self._hooks,
            reload=self._reload,
            reopen=self._logs.reopen,
            execute=self._execute,
            settled=self._close_former,
            observed=lambda: any(c.status_bind or c.statsd_host for c in self._pools.values()),
            observe=self._observe,
        )
        for name, pid, streams in self._outputs:
            output = Output(self._teller(name, True), ((s[0], s[1]) for s in streams))
            output.pid = pid
            master.outputs.append(output)
        master.adopt(self._left)
        return master.run(hears)

    def close(self) -> None:
        """Close the listening sockets."""
        for listeners in (*self._bound.values(), *self._status.values()):
            for listener in listeners:
                listener.close()

    # ---------------------------------------------------------------- plans

    def _make_plans(self, pools: Mapping[str, Config]) -> list[Plan]:
        _check_spoken(pools)
        plans = []
        for name, config in pools.items():
            if not config.app:
                raise ConfigError(f"pool {name}: name the application, as app")
            listeners = self._listeners(config)
            caught = config.catch_workers_output
            tell = self._teller(name, config.decorate_workers_output) if caught else None
            make = self._maker(name, config, listeners)
            plans.append(_plan(name, config, listeners, make, tell))
        self._pools = dict(pools)
        self._tell_where(plans)
        if any(config.catch_workers_output for config in pools.values()):
            self._logs.keep_standard()
        return plans

    def _tell_where(self, plans: Sequence[Plan]) -> None:
        """Tell other commands where each pool is, and its status."""
        places = []
        for plan in plans:
            config = self._pools[plan.name]
            status = [one for text in config.status_bind for one in self._status[text]]
            bind, told = (tuple(one.label for one in all_) for all_ in (plan.listeners, status))
            places.append(whereabouts.Place(bind, told, config.status_path))
        whereabouts.tell(places)

    def _teller(self, pool: str, decorate: bool) -> Tell:
        """Give what takes the lines that workers write."""

        def tell(pid: int, stream: str, text: str) -> None:
            if decorate:
                level = logging.WARNING if stream == "stderr" else logging.INFO
                log.log(level, "%s: worker %d said into %s: %s", pool, pid, stream, text)
            else:
                self._logs.plain(text)

        return tell

    def _listeners(self, config: Config) -> tuple[Listener, ...]:
        allowed = AllowedClients.of(config.allowed_clients)
        found: list[Listener] = []
        for endpoint in config.bind or ("",):
            if endpoint not in self._bound and not self._speak_anew(endpoint):
                binds = (endpoint,) if endpoint else ()
                bind = partial(bind_all, binds, backlog=config.backlog, allowed_clients=allowed)
                self._bound[endpoint] = _patiently(bind)
            found += self._bound[endpoint]
        return tuple(found)

    def _bind_status(self, config: Config) -> None:
        for endpoint in config.status_bind:
            if endpoint not in self._status:
                one = config.replace(status_bind=(endpoint,))
                self._status[endpoint] = _patiently(partial(watching.bind_status, one))

    def _observe(self, boards: Mapping[str, Scoreboard]) -> watching.Observing:
        """Give what answers for the status; in the process that does, without root's rights."""
        entitle("status")
        who = [process.identity(config) for config in self._pools.values()]
        process.drop(next((one for one in who if one is not None), None))
        return watching.Observing(self._pools, self._status, boards)

    def _leave_status(self) -> None:
        """In a worker: the sockets are the observer's."""
        for listeners in self._status.values():
            for listener in listeners:
                os.close(listener.detach())
        self._status.clear()

    def _maker(
        self, name: str, config: Config, listeners: Sequence[Listener]
    ) -> Callable[[Slot], Server]:
        who = process.identity(config)
        if config.preload_app:
            if who is not None:
                raise ConfigError("preload_app: the application's code would run as root")
            if config.clear_env:
                raise ConfigError("preload_app: the master's environment cannot be cleared")
            if name not in self._apps:
                self._apps[name] = load_app(config.app, config.pythonpath)
        loaded: Any = self._apps.get(name) if config.preload_app else None
        self._bind_status(config)

        def make(slot: Slot) -> Server:
            self._leave_status()
            # What looks up users comes before the root folder changes.
            server = Server(loaded, config, ended=self._logs.access)
            watched = watching.Watching(config, name) if config.watched else None
            server.share(listeners, slot, watched)
            process.settle(config)
            process.enter(config, who)
            server.app = loaded or load_app(config.app, config.pythonpath)
            return server

        return make

    # ---------------------------------------------------------------- reload, and execution anew

    def _reload(self) -> list[Plan]:
        pools = self._read()
        if self._preload:
            # What was imported here stays so, until the program is executed anew.
            raise ConfigError("with preload_app, SIGUSR2 takes what SIGHUP does")
        for endpoint, listeners in list(self._bound.items()):
            if any(listener.fileno() < 0 for listener in listeners):
                del self._bound[endpoint]  # those of a pool that is gone
        plans = self._make_plans(pools)
        _entitle(pools)
        # Where the new workers do not get ready, those of before go on, on their own sockets.
        self._close_unused(self._status, {e for c in pools.values() for e in c.status_bind})
        return plans

    def _speak_anew(self, endpoint: str) -> bool:
        """Take the socket of an endpoint that differs in nothing but what is spoken there."""
        wanted = Endpoint.parse(endpoint or "systemd")
        for bound, listeners in list(self._bound.items()):
            if bound and Endpoint.parse(bound).plain == wanted.plain:
                self._bound[endpoint] = [one.speaking(wanted.protocol) for one in listeners]
                return True
        return False

    def _close_former(self, master: Master) -> None:
        """Close what no pool listens on any more."""
        used = {one for crew in master.crews.values() for one in crew.plan.listeners}
        kept = {endpoint for endpoint, found in self._bound.items() if not used.isdisjoint(found)}
        places = {Endpoint.parse(endpoint).plain for endpoint in kept if endpoint}
        # Which of two on the same socket has its file depends on what was spoken there last.
        kept |= {one for one in self._bound if one and Endpoint.parse(one).plain in places}
        self._close_unused(self._bound, kept)

    def _close_unused(self, bound: dict[str, list[Listener]], kept: set[str]) -> None:
        for endpoint in bound.keys() - kept:
            for listener in bound.pop(endpoint):
                if listener.fileno() >= 0:
                    listener.quiesce()
                    listener.close()

    def _execute(self, master: Master) -> Execution | None:
        """Begin to execute the program anew; the master goes on until that is known to work."""
        from fulgate.processes.execution import Execution

        check = [part if part != "serve" else "check" for part in _command()]
        try:
            return Execution(check, partial(self._give_way, master))
        except OSError as error:
            log.error("cannot execute the program anew: %s", error.strerror)
            return None

    def _give_way(self, master: Master) -> None:
        """Execute the program, with the sockets; the workers serve until there are others."""
        if master.told_to_end:
            return
        master.hooks.call("pre_exec")
        sockets = {}
        for endpoint, listeners in self._bound.items():
            for listener in listeners:
                listener.set_inheritable(True)
            sockets[endpoint] = [listener.fileno() for listener in listeners]
        status = {}
        for endpoint, listeners in self._status.items():
            for listener in listeners:
                listener.set_inheritable(True)
            status[endpoint] = [listener.fileno() for listener in listeners]
        left = json.dumps(
            {
                "sockets": sockets,
                "status": status,
                "master": asdict(master.leave()),
                "outputs": [
                    (_pool_of(master, output.pid), output.pid, output.leave())
                    for output in master.outputs
                ],
            }
        )
        log.info("executing the program anew")
        master.watchdog.due = 0.0  # it will be a while until the next one can tell
        master.watchdog.beat(time.monotonic())
        command = _command()
        try:
            os.execve(command[0], command, {**os.environ, INHERITED: left})
        except OSError as error:
            log.error("cannot execute %s anew: %s", command[0], error.strerror)

    def _inherit(self, endpoint: str, fd: int) -> Listener:
        listener = adopt(fd)
        name = listener.getsockname()
        parsed = Endpoint.parse(endpoint or "systemd")
        listener.protocol = parsed.protocol
        if parsed.kind == "tcp":
            listener.bound_by = os.getpid()
        if parsed.kind == "unix":
            with contextlib.suppress(OSError):
                listener.owns(os.fsdecode(name), os.lstat(name))
        return listener


def _pool_of(master: Master, pid: int) -> str:
    """Give the name of a worker's pool; of one that has gone, any."""
    names = [name for name, crew in master.crews.items() if pid in crew.working]
    return names[0] if names else next(iter(master.crews))


def _entitle(pools: Mapping[str, Config]) -> None:
    entitle(f"master ({', '.join(dict.fromkeys(config.app for config in pools.values()))})")


def _check_spoken(pools: Mapping[str, Config]) -> None:
    """Raise ConfigError where two protocols are to be spoken on the same socket."""
    spoken: dict[str, str] = {}
    for config in pools.values():
        for text in config.bind:
            endpoint = Endpoint.parse(text)
            before = spoken.setdefault(endpoint.plain, endpoint.protocol)
            if before != endpoint.protocol:
                raise ConfigError(
                    f"bind: {endpoint.plain} cannot speak both {before} and {endpoint.protocol}"
                )


def _command() -> list[str]:
    """How this program was started."""
    return [sys.executable, *sys.orig_argv[1:]]


def _patiently(bind: Callable[[], list[Listener]]) -> list[Listener]:
    """Bind; where others listen, give them a moment to see that their master is gone."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return bind()
        except BindError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def _plan(
    name: str,
    config: Config,
    listeners: Sequence[Listener],
    make: Callable[[Slot], Server],
    tell: Tell | None,
) -> Plan:
    workers = max(1, config.workers)
    policy = Policy(
        config.pool_mode,
        workers,
        start=min(config.start_workers, workers),
        min_spare=config.min_spare_workers,
        max_spare=config.max_spare_workers,
        spawn_rate=config.spawn_rate,
        idle_timeout=config.process_idle_timeout,
        max_age=config.max_age,
        max_rss=config.max_rss,
        graceful_timeout=config.graceful_timeout,
        boot_timeout=config.boot_timeout,
        emergency_threshold=config.emergency_restart_threshold,
        emergency_interval=config.emergency_restart_interval,
        emergency_stop=config.emergency_action == "stop",
    )
    return Plan(
        name,
        policy,
        # What the application speaks is only known once it is loaded. One more is for the rest.
        config.threads
        if config.interface == "wsgi"
        else max(config.threads, config.worker_concurrency + 1),
        tuple(listeners),
        make,
        config.max_requests,
        config.max_requests_jitter,
        config.request_timeout,
        sealed=bool(config.user or config.group),
        tell=tell,
    )
