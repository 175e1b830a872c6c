"""Which process is meant: for the commands that tell a running server something."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import click

from fulgate import whereabouts
from fulgate.client.status import Source
from fulgate.endpoint import Endpoint
from fulgate.errors import ConfigError
from fulgate.settings import load

__all__ = ["find", "send", "target", "wait", "watched"]


def target(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that name a process, and its number as `pid`."""

    def named(
        pid: int | None, pidfile: str | None, bind: str | None, config: str | None, **own: Any
    ) -> Any:
        return command(pid or find(pidfile, bind, config), **own)

    named.__doc__ = command.__doc__
    return _options("pid or bind", named)


def watched(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that name a server, and where its status is, as `source`."""

    def named(
        address: str | None,
        pid: int | None,
        pidfile: str | None,
        bind: str | None,
        config: str | None,
        **own: Any,
    ) -> Any:
        if address:
            return command(Source(address), **own)
        return command(_status(pid, pidfile, bind, config), **own)

    named.__doc__ = command.__doc__
    named = _options("status_bind, pid or bind", named)
    return click.argument("address", metavar="[URL|SOCKET]", required=False)(named)


def _options(named_by_file: str, command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("-c", "--config", metavar="FILE", help=f"TOML file with {named_by_file}."),
        click.option("-b", "--bind", metavar="ENDPOINT", help="An endpoint that it listens on."),
        click.option("-p", "--pidfile", metavar="FILE", help="Its pid file."),
        click.option("--pid", type=click.IntRange(1), help="Its process id."),
    ):
        command = option(command)
    return command


def _status(pid: int | None, pidfile: str | None, bind: str | None, config: str | None) -> Source:
    """Give where the status is of a process, or of what the settings say. Raises ConfigError."""
    if not pid and not pidfile and not bind:
        found = load(file=config or "")
        for one in (found.config, *found.pools.values()):
            if one.status_bind:
                return Source(one.status_bind[0])
    pid = pid or find(pidfile, bind, config)
    places = [
        place
        for place in whereabouts.of(pid)
        if not bind or any(whereabouts.same(bind, one) for one in place.bind)
    ]
    if not places:
        raise ConfigError(f"process {pid} does not tell where its status is; name the address")
    for place in places:
        if place.status_bind:
            return Source(place.status_bind[0])
    for place in places:
        if place.status_path:
            return Source(bind or place.bind[0], place.status_path)
    raise ConfigError(
        f"process {pid} has no status: start it with --status-bind unix:PATH, or --status-path PATH"
    )


def find(pidfile: str | None, bind: str | None, config: str | None = None) -> int:
    """Give the id of the process that has this pid file or listens on this endpoint.

    Without either, what the settings say. Raises ConfigError.
    """
    if not pidfile and not bind:
        found = load(file=config or "")
        pidfile = os.path.join(found.config.chdir, found.config.pid) if found.config.pid else None
        every = (found.config, *found.pools.values())
        bind = next((text for one in every for text in one.bind), None)
        if not pidfile and not bind:
            raise ConfigError("say which server is meant: --pid, --pidfile or --bind")
    return _of_file(pidfile) if pidfile else _of_socket(bind or "")


def _of_file(path: str) -> int:
    try:
        with open(path) as file:
            with contextlib.suppress(BlockingIOError):  # its process has locked it
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                raise ConfigError(f"no process that runs has the file {path}")
            return int(file.read())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError:
        raise ConfigError(f"{path} is not a pid file") from None


def _of_socket(text: str) -> int:
    endpoint = Endpoint.parse(text)
    if endpoint.kind not in ("unix", "tcp"):
        raise ConfigError(f"{text} names no server; name a pid file")
    if endpoint.kind == "unix" and hasattr(socket, "SO_PEERCRED"):
        pid = _who_listens(endpoint)
        if pid > 1 or (pid == 1 and not _is_service_manager()):
            return pid
    told = whereabouts.at(text)
    if len(told) > 1:
        raise ConfigError(f"several processes say that they serve at {text}; name a pid file")
    if not told:
        raise ConfigError(f"no process that you may look into serves at {text}; name a pid file")
    return told[0]


def _who_listens(endpoint: Endpoint) -> int:
    """Give the id of the process that called listen(2) on a Unix socket; 0 where it is hidden."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(endpoint.path)
        except OSError as error:
            raise ConfigError(f"nobody listens on {endpoint}: {error.strerror}") from error
        told = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", told)[0]
    return pid


def _is_service_manager() -> bool:
    """Is process 1 who passes sockets to services, and not, as in a container, a server itself?"""
    try:
        with open("/proc/1/comm") as comm:
            return comm.read().strip() in ("systemd", "init", "launchd")
    except OSError:
        return True


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal. Raises ConfigError."""
    try:
        os.kill(pid, number)
    except OSError as error:
        raise ConfigError(f"process {pid}: {error.strerror}") from error


def wait(pid: int, timeout: float, tell: Callable[[], None]) -> bool:
    """Call `tell`, then wait for the process to end; False when it did not within `timeout`."""
    try:
        fd = os.pidfd_open(pid)
    except (OSError, AttributeError):  # an old kernel, or another system
        tell()
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            try:
                os.kill(pid, 0)
            except OSError:
                return True
            time.sleep(0.05)
        return False
    try:
        tell()
        return bool(select.select([fd], [], [], timeout)[0])
    finally:
        os.close(fd)
