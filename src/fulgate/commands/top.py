"""`fulgate top`: the status of a server, live in a terminal."""

from __future__ import annotations

import time
from typing import Any

import click

from fulgate.client.status import Source
from fulgate.commands.running import watched
from fulgate.errors import BindError, ConfigError

__all__ = ["command"]


@click.command("top")
@click.option("--interval", type=click.FloatRange(0.1), default=1.0, help="Seconds.")
@click.option("--count", type=click.IntRange(0), default=0, help="Looks to take; 0 for no end.")
@watched
def command(source: Source, interval: float, count: int) -> int:
    """Show the status of a server that runs, live, until Ctrl+C.

    The address is that of its setting status_bind: http://127.0.0.1:9180 or unix:/run/status.sock.
    Instead of it, name the server by --pidfile, --bind or --pid; without any of these, the settings
    are read: of --config, or as `fulgate serve` finds them.
    """
    try:
        from rich.console import Console
        from rich.live import Live

        from fulgate.client.status_view import view
    except ImportError as error:
        raise ConfigError("fulgate top needs rich: install fulgate[status]") from error
    console = Console()
    before: dict[str, Any] | None = None
    now = source.document()
    looks = 0
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            live.update(view(now, before), refresh=True)
            looks += 1
            if looks == count:
                return 0
            time.sleep(interval)
            before = now
            try:
                now = source.document()
            except BindError:  # it may be starting anew
                before = None
