"""`fulgate stop`: end a running server, and wait for its end."""

from __future__ import annotations

import contextlib
import signal
import time

import click

from fulgate.commands.running import send, target, wait
from fulgate.errors import ConfigError

__all__ = ["command"]


@click.command("stop")
@click.option("--now", is_flag=True, help="Cut requests off instead of letting them end.")
@click.option("--timeout", type=float, default=60.0, metavar="SECONDS", help="To wait.  [60]")
@target
def command(pid: int, now: bool, timeout: float) -> int:
    """Stop a running server: requests that run may end. The exit status is 1 if it still runs."""
    number = signal.SIGTERM

    def tell() -> None:
        send(pid, number)
        if now:
            time.sleep(0.2)  # two at once would be one
            with contextlib.suppress(ConfigError):  # it has ended
                send(pid, number)  # the second one cuts

    if wait(pid, timeout, tell):
        return 0
    click.echo(f"fulgate: process {pid} still runs", err=True)
    return 1
