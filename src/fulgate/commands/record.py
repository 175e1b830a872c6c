"""`fulgate record`: write down what a web server and an application say to one another."""

from __future__ import annotations

import asyncio

import click

from fulgate.client.asked import connectable
from fulgate.client.recorder import record
from fulgate.client.recording import Writer
from fulgate.endpoint import FASTCGI, AllowedClients, Endpoint, bind_all
from fulgate.errors import ConfigError

__all__ = ["command", "write_down"]


@click.command("record", short_help="Write down what a web server and an application say.")
@click.argument("listen", type=Endpoint.parse)
@click.argument("endpoint", type=connectable)
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--connections", type=click.IntRange(1), help="End after that many.")
@click.option(
    "--allowed-clients",
    default="",
    metavar="ADDRESSES",
    help="Who may connect over TCP from other machines.",
)
def command(
    listen: Endpoint, endpoint: Endpoint, file: str, connections: int | None, allowed_clients: str
) -> int:
    """Stand between a web server and an application, and write down what passes.

    LISTEN is where the web server is to connect to, ENDPOINT where the application listens. FILE
    is for fulgate dump and fulgate replay; it holds what people sent, and only you may read it.
    SIGTERM or Ctrl+C end it.
    """  # fmt: skip
    if listen.protocol != FASTCGI:
        raise ConfigError(f"endpoint {listen}: this speaks FastCGI, and not {listen.protocol}")
    allowed = AllowedClients([part for part in allowed_clients.split(",") if part.strip()])
    count = write_down(listen, endpoint, file, connections or 0, allowed)
    click.echo(f"fulgate recorded {count} connections into {file}", err=True)
    return 0


def write_down(
    listen: Endpoint, endpoint: Endpoint, file: str, connections: int, allowed: AllowedClients
) -> int:
    """Do so; give the count of connections. Raises ConfigError, BindError."""
    listeners = bind_all([listen], allowed_clients=allowed)
    try:
        try:
            writer = Writer(file, str(endpoint))
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror}") from None
        try:
            return asyncio.run(
                record(
                    listeners,
                    endpoint,
                    writer,
                    connections,
                    lambda text: click.echo(f"fulgate {text}", err=True),
                )
            )
        finally:
            writer.close()
    finally:
        for listener in listeners:
            listener.close()
