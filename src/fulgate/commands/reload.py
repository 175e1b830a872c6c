"""`fulgate reload`: have a master take new configuration and new code."""

from __future__ import annotations

import signal

import click

from fulgate.commands.running import send, target

__all__ = ["command"]


@click.command("reload")
@target
def command(pid: int) -> int:
    """Have a running master replace its workers by new ones; the old ones finish first.

    Whether the new ones load is in the log; where they do not, the old ones serve on.
    """
    send(pid, signal.SIGHUP)
    return 0
