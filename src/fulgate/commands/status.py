"""`fulgate status`: ask a server that runs how it is."""

from __future__ import annotations

import click

from fulgate.client.status import Source
from fulgate.commands.running import watched
from fulgate.processes.status import health as health_of

__all__ = ["command"]


@click.command("status")
@click.option("--full", is_flag=True, help="Each worker and thread too.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--health", "health", is_flag=True, help="One word; status 1 unless it is well.")
@watched
def command(source: Source, full: bool, as_json: bool, health: bool) -> int:
    """Show the status of a server that runs.

    The address is that of its setting status_bind: http://127.0.0.1:9180 or unix:/run/status.sock.
    Instead of it, name the server by --pidfile, --bind or --pid; without any of these, the settings
    are read: of --config, or as `fulgate serve` finds them. With status_path alone, the server is
    asked over FastCGI.
    """
    if health:
        word, well = health_of(source.document())
        click.echo(word)
        return 0 if well else 1
    text = source.text("&".join(["json"] * as_json + ["full"] * full))
    click.echo(text if text.endswith("\n") else text + "\n", nl=False)
    return 0
