"""`fulgate conform`: hold any FastCGI application server against the specification."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from fulgate.client.asked import connectable
from fulgate.conform.report import line, summary, to_json, to_junit
from fulgate.conform.run import STATEMENTS, recognise, run
from fulgate.conform.statements import FAIL, Result
from fulgate.conform.target import Target
from fulgate.endpoint import Endpoint
from fulgate.errors import ConfigError

__all__ = ["command"]


def _numbers(ctx: click.Context, param: click.Parameter, value: str) -> list[str]:
    numbers = [part.strip().upper() for part in value.split(",") if part.strip()]
    for number in numbers:
        if number not in STATEMENTS:
            raise click.BadParameter(f"{number!r} is none of 1 to 30 and R1 to R6")
    return numbers


def _words(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(value))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command("conform", short_help="Hold a FastCGI server against the specification.")
@click.argument("endpoint", type=connectable)
@click.option(
    "--only",
    default="",
    callback=_numbers,
    metavar="N,...",
    help="Check only these statements, such as 3,R2.",
)
@click.option(
    "--spawn",
    default="",
    callback=_words,
    metavar="COMMAND",
    help="What starts the server, on the listening socket that is its descriptor 0, or on"
    " the address that stands in place of {}. Statements 1, 2 and 29 need it.",
)
@click.option("--script-filename", default="", metavar="FILE", help="The script, for PHP-FPM.")
@click.option(
    "--crowd",
    type=click.IntRange(2, 10_000),
    default=64,
    show_default=True,
    metavar="N",
    help="Connections that are made at once, for statements 19 and R6.",
)
@click.option(
    "--deadline",
    type=click.FloatRange(0),
    default=0.0,
    metavar="SECONDS",
    help="Within what time a peer that dribbles must be closed (R6); 0 does not look.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="For each wait.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
@click.option("--junit", default="", metavar="FILE", help="Write JUnit's XML, too.")
def command(
    endpoint: Endpoint,
    only: list[str],
    spawn: tuple[str, ...],
    script_filename: str,
    crowd: int,
    deadline: float,
    timeout: float,
    as_json: bool,
    junit: str,
) -> int:
    """Hold a FastCGI application server against FastCGI 1.0, statement by statement.

    The server has to serve fulgate.conform_app:app, or the same in its own language, as
    docs/conformance.md describes it. Each statement passes, fails with what was seen, or is not
    applicable, and why.

    Exit status 0: none fails. 1: some fail. 2: wrong use, nobody listens, or another application
    answers.
    """  # fmt: skip
    target = Target(endpoint, timeout, crowd, deadline, script_filename, spawn)
    recognise(target)
    results: list[Result] = []
    for result in run(target, only):
        results.append(result)
        if not as_json:
            click.echo(line(result))
    click.echo(to_json(str(endpoint), results) if as_json else summary(results))
    if junit:
        try:
            Path(junit).write_bytes(to_junit(str(endpoint), results))
        except OSError as error:
            raise ConfigError(f"{junit}: {error.strerror}") from None
    return int(any(result.outcome == FAIL for result in results))
