"""`fulgate ping`: is a FastCGI server there? For probes."""

from __future__ import annotations

import time
from typing import Final

import click

from fulgate.client.asked import Asked, speakable
from fulgate.client.blocking import Client
from fulgate.client.connection import Connection
from fulgate.client.params import BadRequest, request_params
from fulgate.client.records import printable
from fulgate.commands.options import secret
from fulgate.endpoint import FASTCGI, Endpoint
from fulgate.errors import (
    AnswerCut,
    BindError,
    ConnectFailed,
    FulgateError,
    ProtocolError,
    Refused,
    TimedOut,
)
from fulgate.exchange import Role

__all__ = ["command", "probe"]

DEAD, BUSY, WRONG = 1, 3, 4  # exit statuses; 2 is wrong use
OVERLOADED: Final = 2
SHOWN: Final = 60  # bytes of a body


class NotWell(FulgateError):
    """The server did not answer as it should; `exit_status` says in which way."""

    def __init__(self, exit_status: int, message: str) -> None:
        super().__init__(message)
        self.exit_status = exit_status


@click.command("ping", short_help="Tell whether a FastCGI, SCGI or AJP server answers.")
@click.argument("endpoint", type=speakable)
@click.argument("path", required=False)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="For all of it.",
)
@click.option(
    "--script-filename",
    default="",
    metavar="FILE",
    help="The script for PHP-FPM; its ping.path is both the path and the script.",
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing; the exit status says it.")
def command(
    endpoint: Endpoint, path: str | None, timeout: float, script_filename: str, quiet: bool
) -> int:
    """Tell whether a FastCGI, SCGI or AJP server answers: exit status 0 if it does.

    1 is dead: nobody listens. 3 is busy: no answer in time, or it says that it is overloaded. 4
    is wrong: what listens is no FastCGI server, or may not be reached, or does not answer PATH with
    2xx or 3xx. 2 is wrong use.

    Without PATH the server is asked for its limits (FCGI_GET_VALUES), which Fulgate answers also
    when all threads are busy; one that does not know that is asked for "/", and any answer will do.
    So is one of SCGI, which has no such question. One of AJP is asked for its CPONG.
    """  # fmt: skip
    began = time.monotonic()
    try:
        if path is None:
            said = _values_or_any(endpoint, timeout, script_filename)
        else:
            said = _answer(endpoint, path, timeout, script_filename)
    except FulgateError as error:
        failure = _failure(endpoint, error, timeout)
        if quiet:
            return failure.exit_status
        raise failure from error
    if not quiet:
        click.echo(f"{endpoint} answers in {(time.monotonic() - began) * 1000:.1f} ms: {said}")
    return 0


def probe(endpoint: Endpoint, timeout: float = 2.0) -> str:
    """Give what a server says of itself. Raises a FulgateError that says what is wrong with it."""
    try:
        return _values_or_any(endpoint, timeout, "")
    except FulgateError as error:
        raise _failure(endpoint, error, timeout) from error


def _values_or_any(endpoint: Endpoint, timeout: float, script_filename: str) -> str:
    until = time.monotonic() + timeout
    client = Client(endpoint, connect_timeout=timeout, max_idle=0)
    if endpoint.protocol == "ajp":
        return _pong(client.connect(until), until)
    if endpoint.protocol != FASTCGI:
        return f"status {_ask(client, '/', timeout, script_filename)[0]}"
    connection = client.connect(until)
    # One that knows no GET_VALUES may be silent instead of closing.
    connection.deadline = time.monotonic() + (until - time.monotonic()) / 2
    try:
        return _values(connection)
    except (AnswerCut, TimedOut):
        pass
    finally:
        connection.close()
    answer = _ask(client, "/", until - time.monotonic(), script_filename)
    return f"status {answer[0]}"


def _pong(connection: Connection, until: float) -> str:
    connection.deadline = until
    try:
        connection.ping()
    finally:
        connection.close()
    return "CPONG"


def _values(connection: Connection) -> str:
    values = connection.get_values()
    shown = " ".join(f"{name}={value}" for name, value in values.items())
    return printable(shown.encode("latin-1")) or "no limits"


def _answer(endpoint: Endpoint, path: str, timeout: float, script_filename: str) -> str:
    client = Client(endpoint, connect_timeout=timeout, max_idle=0)
    status, body = _ask(client, path, timeout, script_filename)
    if status == 503:
        raise NotWell(BUSY, f"{endpoint} is busy: status 503")
    if not 200 <= status < 400:
        raise NotWell(WRONG, f"{endpoint} is wrong: status {status}")
    text = printable(body.split(b"\n")[0])
    return f"status {status}" + (f", {text}" if text else "")


def _ask(client: Client, path: str, left: float, script_filename: str) -> tuple[int, bytes]:
    try:
        given = secret(client.endpoint).items()
        params = request_params("GET", path, script_filename=script_filename, params=given)
    except BadRequest as error:
        raise click.UsageError(str(error)) from None
    asked = Asked(params, Role.RESPONDER, replayable=False, bare=False)
    with client.ask(asked, deadline=max(left, 0)) as answer:
        body = b""
        for piece in answer:
            body = (body + piece)[:SHOWN]  # there may be much of it
        return answer.status, body


def _failure(endpoint: Endpoint, error: FulgateError, timeout: float) -> NotWell:
    if isinstance(error, NotWell):
        return error
    if isinstance(error, TimedOut):
        return NotWell(BUSY, f"{endpoint} is busy: no answer within {timeout:g} s")
    if isinstance(error, Refused):
        busy = error.protocol_status == OVERLOADED
        return NotWell(
            BUSY if busy else WRONG, f"{endpoint} is {'busy' if busy else 'wrong'}: {error}"
        )
    if isinstance(error, ConnectFailed):
        reason = str(error).rpartition(": ")[2]
        if isinstance(error.__cause__, (PermissionError, BindError)):
            return NotWell(WRONG, f"{endpoint} is wrong: {reason}")
        return NotWell(DEAD, f"{endpoint} is dead: {reason}")
    if isinstance(error, ProtocolError):
        return NotWell(WRONG, f"{endpoint} is wrong: {error}")
    return NotWell(WRONG, str(error))
