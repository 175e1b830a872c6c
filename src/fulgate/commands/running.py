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
    for option in (
        click.option("-c", "--config", metavar="FILE", help="TOML file that names pid or bind."),
        click.option("-b", "--bind", metavar="ENDPOINT", help="A Unix socket that it listens on."),
        click.option("-p", "--pidfile", metavar="FILE", help="The file of its setting pid."),
        click.option("--pid", type=click.IntRange(1), help="Its process id."),
    ):
        named = option(named)
    return named


def watched(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the address at which a server tells its status, as `address`."""

    def named(address: str | None, config: str | None, **own: Any) -> Any:
        return command(address or _status_of(config), **own)

    named.__doc__ = command.__doc__
    named = click.option(
        "-c", "--config", metavar="FILE", help="TOML file that names status_bind."
    )(named)
    return click.argument("address", metavar="[URL|SOCKET]", required=False)(named)


def _status_of(config: str | None) -> str:
    found = load(file=config or "").config.status_bind
    if not found:
        raise ConfigError("say where the status is: its address, or --config with status_bind")
    return found[0]


def find(pidfile: str | None, bind: str | None, config: str | None = None) -> int:
    """Give the id of the process that has this pid file or listens on this Unix socket.

    Without either, what the settings say. Raises ConfigError.
    """
    if not pidfile and not bind:
        found = load(file=config or "").config
        pidfile = os.path.join(found.chdir, found.pid) if found.pid else None
        bind = next((one for one in found.bind if one.startswith("unix:")), None)
        if not pidfile and not bind:
            raise ConfigError("say which server is meant: --pid, --pidfile or --bind unix:PATH")
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
    if endpoint.kind != "unix" or not hasattr(socket, "SO_PEERCRED"):
        raise ConfigError("only of a Unix socket it can be told whose it is; name a pid file")
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(endpoint.path)
        except OSError as error:
            raise ConfigError(f"nobody listens on {text}: {error.strerror}") from error
        # Those of the process that called listen(2).
        told = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", told)[0]
    if pid < 1 or (pid == 1 and _is_service_manager()):
        raise ConfigError(f"{text} was opened by another program; name a pid file")
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
