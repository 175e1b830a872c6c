"""`fulgate bench`: put load on a FastCGI server, and measure it."""

from __future__ import annotations

import contextlib
import json
import resource
import select
from pathlib import Path
from typing import Any

import click

from fulgate.client.asked import connectable
from fulgate.client.bench import bench, wire
from fulgate.client.bench_figures import Counts
from fulgate.client.bench_plan import Plan
from fulgate.client.bench_report import Report
from fulgate.client.params import BadRequest
from fulgate.commands.body import RequestCommand, Unreadable, given
from fulgate.commands.options import Unreachable, Wanted, request_options
from fulgate.endpoint import Endpoint
from fulgate.errors import BindError, ConfigError

__all__ = ["command"]

DURATION = 10.0  # seconds, unless --count or --duration says something else
SPARE_FILES = 32


@click.command(
    "bench", cls=RequestCommand, short_help="Put load on a FastCGI server, and measure it."
)
@click.argument("endpoint", type=connectable)
@click.argument("path", default="/")
@click.option(
    "-c",
    "--connections",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Connections, with one request at a time on each.",
)
@click.option(
    "--keep-alive/--no-keep-alive",
    default=True,
    show_default=True,
    help="Keep connections, or make a new one for each request.",
)
@click.option("-n", "--count", type=click.IntRange(1), help="Requests in all.")
@click.option(
    "--duration",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help=f"How long; with --count, at most.  [default: {DURATION:g}, without --count]",
)
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    metavar="N",
    help="Requests a"
    " second; latency is measured from when each was due. Without it the next one"
    " follows as soon as a connection is free.",
)
@request_options
@click.option(
    "--body-size", type=click.IntRange(0), metavar="BYTES", help="A body of that many bytes."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="For one answer.",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes that generate the load, and share all of the above.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option(
    "--json-file",
    type=click.Path(dir_okay=False, writable=True),
    metavar="FILE",
    help="Write the figures there as JSON, too.",
)
def command(
    endpoint: Endpoint,
    path: str,
    connections: int,
    keep_alive: bool,
    count: int | None,
    duration: float | None,
    rate: float | None,
    body_size: int | None,
    timeout: float,
    processes: int,
    as_json: bool,
    json_file: str | None,
    **request: Any,
) -> int:
    """Put load on a FastCGI server, and print what it did: speed, latencies, errors.

    PATH is what is asked for, with its query. Ctrl+C ends it with what was seen so far. The exit
    status is 1 when there were errors, statuses other than 2xx, or connections without an answer.
    """  # fmt: skip
    if body_size is not None:
        if given():
            raise click.UsageError("--body-size and --data exclude one another")
        request["body"] = b"x" * body_size
    if processes > connections:
        raise click.UsageError("there are more --processes than --connections")
    if not hasattr(select, "epoll"):
        raise ConfigError("fulgate bench needs Linux's epoll")
    _allow_files(connections // processes + SPARE_FILES)
    wanted = _wanted(path, request)
    family, address = _reach(endpoint, timeout)
    plan = Plan(
        family=family,
        address=address,
        request=wire(wanted.params.items(), wanted.body, keep_alive),
        connections=connections,
        keep=keep_alive,
        bare=wanted.method == "HEAD",
        count=count or 0,
        seconds=duration or (0.0 if count else DURATION),
        rate=rate or 0.0,
        timeout=timeout,
    )

    def report_of(counts: Counts) -> Report:
        return Report(str(endpoint), wanted.method, path, len(wanted.body), processes, plan, counts)

    if as_json:
        report = report_of(bench(plan, processes, lambda answered, errors: None))
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        try:
            from fulgate.client.bench_view import View
        except ImportError as error:
            raise ConfigError("fulgate bench needs rich: install fulgate[bench], or ask for"
                              " --json") from error  # fmt: skip
        view = View(plan)
        with view:
            counts = bench(plan, processes, view.tell)
        report = report_of(counts)
        view.report(report)
    if json_file:
        Path(json_file).write_text(json.dumps(report.as_dict(), indent=2) + "\n")
    return 0 if report.good else 1


def _wanted(path: str, request: dict[str, Any]) -> Wanted:
    try:
        return Wanted.of(path, given(), **request)
    except (BadRequest, Unreadable) as error:
        raise click.UsageError(str(error)) from None


def _reach(endpoint: Endpoint, timeout: float) -> tuple[int, Any]:
    """Find the address that answers, before any load is made. Raises Unreachable."""
    try:
        with endpoint.connect(timeout) as sock:
            return sock.family, sock.getpeername()
    except (OSError, BindError) as error:
        reason = getattr(error, "strerror", "") or str(error)
        raise Unreachable(f"cannot connect to {endpoint}: {reason}") from error


def _allow_files(files: int) -> None:
    """Have the process allowed so many descriptors. Raises ConfigError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or files <= soft:
        return
    if hard != resource.RLIM_INFINITY and files > hard:
        raise ConfigError(f"the limit of open files is {hard}: see ulimit -n, or --processes")
    with contextlib.suppress(OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
