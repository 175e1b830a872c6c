"""`fulgate doctor`: look at a running server, or at how a web server asks it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from typing import Any

import click

from fulgate import doctor
from fulgate.client.asked import connectable, speakable
from fulgate.commands.ping import probe
from fulgate.commands.record import write_down
from fulgate.doctor import nginx as of_nginx
from fulgate.doctor import place, sent
from fulgate.endpoint import AllowedClients, Endpoint
from fulgate.errors import ConfigError
from fulgate.server import Server

__all__ = ["command"]


@click.command("doctor", short_help="Look at a running server, or at how a web server asks it.")
@click.argument("endpoint", type=speakable, required=False)
@click.option("--user", default="", metavar="NAME", help="Whom the web server runs as: www-data.")
@click.option(
    "--listen",
    type=Endpoint.parse,
    metavar="ENDPOINT",
    help="Listen here, and look at what is sent to ENDPOINT; without it, answer with findings.",
)
@click.option(
    "--connections", type=click.IntRange(1), help="With --listen: look after that many ended."
)
@click.option("--pid", type=click.IntRange(1), help="The process to look at.")
@click.option("--py-spy/--no-py-spy", default=True, help="Use py-spy, where it is installed.")
@click.option(
    "--nginx",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="The configuration of nginx to look at.",
)
@click.option(
    "--recording",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="What fulgate record wrote.",
)
def command(
    endpoint: Endpoint | None,
    user: str,
    listen: Endpoint | None,
    connections: int | None,
    pid: int | None,
    py_spy: bool,
    nginx: str | None,
    recording: str | None,
) -> int:
    """Say what is wrong with where an application listens (ENDPOINT), or with what a web server
    sends there (--listen, until Ctrl+C, for a web server that connects to it meanwhile); what a
    running server has imported, what its threads do, and who waits for it (--pid); how nginx passes
    requests on, and which lines are to be changed (--nginx, also beside --listen and --recording);
    or what any web server sent (--recording).

    The exit status is 1 when something is wrong.
    """
    chosen = sum(one is not None for one in (endpoint, pid, recording))
    # nginx's configuration may be looked at beside what nginx sends.
    alone = chosen == 0 and listen is None and nginx is not None
    beside = nginx is None or alone or listen is not None or recording is not None
    if not beside or chosen > 1 or not (chosen or alone or listen is not None):
        raise click.UsageError(
            "name what to look at: ENDPOINT, --pid, --nginx or --recording; with --nginx there may"
            " be --listen or --recording"
        )
    if (chosen and listen is not None and endpoint is None) or (connections and listen is None):
        raise click.UsageError("--listen is for an ENDPOINT or alone, --connections for --listen")
    if user and (endpoint is None or listen is not None):
        raise click.UsageError("--user is for an ENDPOINT, without --listen")
    status = of_nginx.command(nginx) if nginx is not None else 0
    if recording is not None:
        return max(status, sent.command(recording))
    if listen is not None:
        return max(status, _listen(listen, endpoint, connections or 0))
    if endpoint is not None:
        return place.command(endpoint, user, probe)
    return status if pid is None else doctor.command(pid, py_spy)


def _listen(listen: Endpoint, endpoint: Endpoint | None, connections: int) -> int:
    """Pass on what a web server sends, and say what is wrong with it. Nothing of it is kept.

    Without an application each request is answered by a page that says the same.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        file = os.path.join(folder, "talk.jsonl")
        if endpoint is None:
            endpoint = Endpoint("unix", path=os.path.join(folder, "page"))
            stack.enter_context(Server(_page(file), bind=(str(endpoint),)))
        if not write_down(listen, connectable(endpoint), file, connections, AllowedClients([])):
            hint = (
                ""
                if listen.kind != "unix" or listen.group or listen.mode & 0o006
                else ("; ?group=www-data behind the path would let one of that group connect")
            )
            raise ConfigError(f"no web server connected to {listen}{hint}")
        return sent.command(file)


def _page(file: str) -> Callable[..., list[bytes]]:
    def page(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        lines, _ = sent.report(file)
        start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        return ["".join(line + "\n" for line in lines).encode()]

    return page
