"""`fulgate status`: ask a server that runs how it is."""

from __future__ import annotations

import click

from fulgate.client.status import ask
from fulgate.commands.running import watched

__all__ = ["command"]


@click.command("status")
@click.option("--full", is_flag=True, help="Each worker and thread too.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--health", "health", is_flag=True, help="One word; status 1 unless it is well.")
@watched
def command(address: str, full: bool, as_json: bool, health: bool) -> int:
    """Show the status of a server that runs.

    The address is that of its setting status_bind: http://127.0.0.1:9180 or unix:/run/status.sock.
    Without it, the setting itself is read: of --config, or as `fulgate serve` finds it.
    """
    if health:
        status, body = ask(address, "/health")
        click.echo(body, nl=False)
        return 0 if status == 200 else 1
    query = "&".join(["json"] * as_json + ["full"] * full)
    _, body = ask(address, "/status?" + query)
    click.echo(body if body.endswith("\n") else body + "\n", nl=False)
    return 0
