"""`fulgate get`: what curl is for HTTP."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, Final

import click

from fulgate.client.asked import Asked, speakable
from fulgate.client.blocking import Client, StreamedAnswer
from fulgate.client.connection import Connection
from fulgate.client.packets import PacketDescriber
from fulgate.client.records import Describer, PlainDescriber, RecordReader, printable
from fulgate.commands.options import Wanted, read_body, request_options, secret
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

__all__ = ["command"]

NO_LIMIT: Final = 86400.0  # seconds without a word, beyond which nobody waits

# curl's exit statuses.
RESOLVE, CONNECT, WEIRD, PARTIAL, FAIL, WRITE, TIMEOUT, EMPTY, RECEIVE = (
    6, 7, 8, 18, 22, 23, 28, 52, 56
)  # fmt: skip


class Failed(FulgateError):
    """There is no whole answer; `exit_status` is curl's."""

    def __init__(self, exit_status: int, message: str) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class _Client(Client):
    """Shows the records that pass, if it is told to."""

    verbose = False

    def connect(self, until: float) -> Connection:
        connection = super().connect(until)
        if self.verbose:
            _say("*", f"connected to {self.endpoint}")
            if self.endpoint.protocol == FASTCGI:
                connection.on_sent = _Shown(">").feed
                connection.on_received = _Shown("<").feed
            else:
                ajp = self.endpoint.protocol == "ajp"
                of = PacketDescriber() if ajp else PlainDescriber()
                connection.on_sent = lambda data: _shown(">", of.sent, data)
                connection.on_received = lambda data: _shown("<", of.received, data)
        return connection


class _Shown:
    """Writes one direction to standard error, record by record."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._reader = RecordReader()
        self._describer = Describer()

    def feed(self, data: bytes) -> None:
        with contextlib.suppress(ProtocolError):  # which whoever reads the answer will find, too
            for record in self._reader.feed(data):
                _say_all(self._mark, self._describer.lines(record))


def _shown(mark: str, describe: Callable[[bytes], list[str]], data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        _say_all(mark, describe(data))


def _say_all(mark: str, lines: Iterable[str]) -> None:
    for line in lines:
        _say(mark, line)


def _say(mark: str, text: str) -> None:
    click.echo(f"{mark} {text}", err=True)


@click.command("get", short_help="Make a request to a FastCGI, SCGI or AJP server.")
@click.argument("endpoint", type=speakable)
@click.argument("path", default="/")
@request_options
@click.option("-I", "--head", is_flag=True, help="Make a HEAD request, and show the head.")
@click.option("-i", "--include", is_flag=True, help="Show the answer's head before its body.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Write the answer there.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show what passes, record by record.")
@click.option(
    "-f", "--fail", is_flag=True, help="Exit with 22 for statuses from 400 on, and show no body."
)
@click.option(
    "-s", "--silent", is_flag=True, help="Say nothing of what went wrong, nor FCGI_STDERR."
)
@click.option(
    "-m",
    "--max-time",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="For the whole answer.",
)
@click.option(
    "--connect-timeout",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    metavar="SECONDS",
    help="For the connection.  [default: 30]",
)
@click.option(
    "--role",
    type=click.Choice([role.name.lower() for role in Role]),
    default="responder",
    help="What the application is to be.  [default: responder]",
)
@click.option("--filter-data", metavar="DATA|@FILE", help="What a filter is to filter.")
def command(
    endpoint: Endpoint,
    path: str,
    head: bool,
    include: bool,
    output: str | None,
    verbose: bool,
    fail: bool,
    silent: bool,
    max_time: float | None,
    connect_timeout: float,
    role: str,
    filter_data: str | None,
    **request: Any,
) -> int:
    """Make a request to a FastCGI, SCGI or AJP application, as curl does over HTTP.

    The exit status is curl's: 6 and 7 for no connection, 8 for no FastCGI or no CGI answer, 18, 52
    and 56 for an answer that was cut, is empty or was refused, 22 with --fail, 28 for a timeout.
    """  # fmt: skip
    if head:
        request["method"] = request["method"] or "HEAD"
    kind = Role[role.upper()]
    wanted = Wanted.of(path, role=kind, **request)
    data = read_body((), (filter_data,)) if filter_data is not None else b""
    if kind is Role.FILTER:
        wanted.params.setdefault("FCGI_DATA_LENGTH", str(len(data)))
        wanted.params.setdefault("FCGI_DATA_LAST_MOD", "0")
    client = _Client(endpoint, timeout=NO_LIMIT, connect_timeout=connect_timeout, max_idle=0)
    client.verbose = verbose
    asked = Asked({**secret(endpoint), **wanted.params}, kind, False, wanted.method == "HEAD")
    got = _Got()
    try:
        with client.ask(asked, wanted.body, data, max_time) as answer:
            got.answer = answer
            failed = fail and answer.status >= 400
            if failed:
                for _ in answer:
                    pass
            else:
                _write(answer, output, include or head, got)
            if answer.stderr and not silent and not verbose:
                for line in answer.stderr.splitlines():
                    _say("stderr:", printable(line))
            if failed:
                raise Failed(FAIL, f"the answer's status is {answer.status}")
    except FulgateError as error:
        failure = _failure(error, got)
        if silent:
            return failure.exit_status
        raise failure from error
    return 0


class _Got:
    """How far it came."""

    answer: StreamedAnswer | None = None
    written = 0


def _write(answer: StreamedAnswer, output: str | None, head: bool, got: _Got) -> None:
    """Write the answer. Raises Failed where it cannot be written, and as `Client` says."""
    with _opened(output) as out:
        try:
            if head:
                out.write(f"Status: {answer.status} {answer.reason}".rstrip().encode() + b"\r\n")
                for name, value in answer.head.headers:
                    out.write(name + b": " + value + b"\r\n")
                out.write(b"\r\n")
            for piece in answer:
                out.write(piece)
                out.flush()
                got.written += len(piece)
            out.flush()
        except OSError as error:
            if isinstance(error, FulgateError):
                raise
            if output is None:
                # What is left in the buffer would be an error again at the exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise Failed(WRITE, f"the answer cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def _opened(output: str | None) -> Iterator[IO[bytes]]:
    if output is None or output == "-":
        yield sys.stdout.buffer
        return
    try:
        file = open(output, "wb")  # noqa: SIM115
    except OSError as error:
        raise Failed(WRITE, f"{output}: {error.strerror}") from error
    with file:
        yield file


def _failure(error: FulgateError, got: _Got) -> Failed:
    if isinstance(error, Failed):
        return error
    status = 1
    if isinstance(error, ConnectFailed):
        status = RESOLVE if isinstance(error.__cause__, BindError) else CONNECT
    elif isinstance(error, TimedOut):
        status = TIMEOUT
    elif isinstance(error, Refused):
        status = RECEIVE
    elif isinstance(error, AnswerCut):
        status = PARTIAL if got.answer is not None else EMPTY
    elif isinstance(error, ProtocolError):
        status = WEIRD
    return Failed(status, str(error))
