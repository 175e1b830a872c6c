"""`fulgate get`: what curl is for HTTP."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import click

from fulgate.client.asked import Asked, speakable
from fulgate.client.blocking import Client, StreamedAnswer
from fulgate.client.connection import Connection
from fulgate.client.packets import PacketDescriber
from fulgate.client.params import BadRequest
from fulgate.client.records import Describer, PlainDescriber, RecordReader, printable
from fulgate.commands.body import RequestCommand, Unreadable, Upload, form, given, joined
from fulgate.commands.get_options import get_options
from fulgate.commands.options import Wanted, request_options, secret
from fulgate.commands.written import WRITE, Failed, Output, formatted
from fulgate.endpoint import FASTCGI, Endpoint
from fulgate.errors import (
    AnswerCut,
    BindError,
    ConfigError,
    ConnectFailed,
    FulgateError,
    ProtocolError,
    Refused,
    TimedOut,
)
from fulgate.exchange import Role

__all__ = ["command"]

NO_LIMIT: Final = 86400.0  # seconds without a word, beyond which nobody waits
CONNECT_TIMEOUT: Final = 30.0  # seconds

# curl's exit statuses.
MALFORMED, RESOLVE, CONNECT, WEIRD, PARTIAL, FAIL, READ, TIMEOUT, EMPTY, RECEIVE = (
    3, 6, 7, 8, 18, 22, 26, 28, 52, 56
)  # fmt: skip


class _Client(Client):
    """Shows the records that pass, if it is told to."""

    verbose = False
    connected = 0.0  # when, of time.monotonic

    def connect(self, until: float) -> Connection:
        connection = super().connect(until)
        self.connected = time.monotonic()
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


@click.command("get", cls=RequestCommand, short_help="Make a request to a FastCGI, SCGI or AJP"
               " server.")  # fmt: skip
@click.argument("endpoint")
@click.argument("path", default="/")
@request_options
@get_options
def command(
    endpoint: str,
    path: str,
    method: str | None,
    headers: Sequence[str],
    params: Sequence[str],
    script_filename: str,
    **options: Any,
) -> int:
    """Make a request to a FastCGI, SCGI or AJP application, as curl does over HTTP.

    The exit status is curl's: 3 for a malformed endpoint or path, 6 and 7 for no connection, 8 for
    no FastCGI or no CGI answer, 18, 52 and 56 for an answer that was cut, is empty or was refused,
    22 with --fail, 23 and 26 for a file that cannot be written or read, 28 for a timeout.
    """  # fmt: skip
    got = _Got(_Options(**options), path)
    try:
        sent = _Sent.of(
            path,
            got.options,
            method=method,
            headers=headers,
            params=params,
            script_filename=script_filename,
        )
        got.method = sent.wanted.method
        got.request(_endpoint(endpoint), sent)
    except FulgateError as error:
        got.failure = _failure(error, got)
    got.write_out()
    if got.failure is None:
        return 0
    if got.options.silent and not got.options.show_error:
        return got.failure.exit_status
    raise got.failure


def _endpoint(text: str) -> Endpoint:
    try:
        return speakable(text)
    except ConfigError as error:
        raise Failed(MALFORMED, str(error)) from None


@dataclass(frozen=True)
class _Options:
    """The options that are of this command alone."""

    head: bool
    include: bool
    output: str | None
    remote_name: bool
    dump_header: str | None
    write_out: str | None
    verbose: bool
    fail: bool
    fail_with_body: bool
    silent: bool
    show_error: bool
    max_time: float
    connect_timeout: float
    get: bool
    forms: Sequence[str]
    form_strings: Sequence[str]
    upload: str | None
    user: str | None
    user_agent: str | None
    referer: str | None
    cookies: Sequence[str]
    range: str | None
    role: str
    filter_data: str | None
    no_buffer: bool

    @property
    def more(self) -> list[tuple[str, str]]:
        """The headers that options of their own stand for."""
        found: list[tuple[str, str]] = []
        if self.user is not None:
            user = os.fsencode(self.user if ":" in self.user else f"{self.user}:{_password()}")
            found.append(("Authorization", "Basic " + b64encode(user).decode()))
        if self.user_agent is not None:
            found.append(("User-Agent", self.user_agent))
        if self.referer:
            found.append(("Referer", self.referer))
        for text in self.cookies:
            if "=" not in text:
                raise click.UsageError(f"--cookie wants NAME=VALUE, and not a file: {text!r}")
        if self.cookies:
            found.append(("Cookie", ";".join(self.cookies)))
        if self.range:
            found.append(("Range", f"bytes={self.range}"))
        return found


def _password() -> str:
    text: str = click.prompt("password", hide_input=True, err=True)
    return text


@dataclass(frozen=True)
class _Sent:
    """A request as the options want it."""

    wanted: Wanted
    body: bytes | Upload
    data: bytes  # a filter's
    role: Role

    @classmethod
    def of(cls, path: str, options: _Options, **request: Any) -> _Sent:
        """Raises click.UsageError, and a FulgateError where a file or the path is no good."""
        parts = given()
        upload = None
        more = options.more
        if options.get:
            path += ("&" if "?" in path else "?") + os.fsdecode(joined(parts)) if parts else ""
            parts = []
        forms = bool(options.forms or options.form_strings)
        if bool(parts) + forms + bool(options.upload) + options.head > 1:
            raise click.UsageError("--data, --form, --upload-file and --head exclude one another")
        if forms:
            request["body"], kind = form(options.forms, options.form_strings)
            more.append(("Content-Type", kind))
        elif options.upload is not None:
            upload = Upload.of(options.upload)
            request["length"] = upload.length
            request["method"] = request["method"] or "PUT"
            if path.endswith("/"):
                path += quote(os.fsencode(upload.name), safe="")
        elif options.head:
            request["method"] = request["method"] or "HEAD"
        if options.user_agent == "":
            request["headers"] = ["User-Agent:", *request["headers"]]
        role = Role[options.role.upper()]
        wanted = Wanted.of(path, parts, more=more, role=role, **request)
        data = _filter_data(options.filter_data)
        if role is Role.FILTER:
            wanted.params.setdefault("FCGI_DATA_LENGTH", str(len(data)))
            wanted.params.setdefault("FCGI_DATA_LAST_MOD", "0")
        return cls(wanted, upload or wanted.body, data, role)


def _filter_data(text: str | None) -> bytes:
    return joined([("data_binary", text)]) if text is not None else b""


@dataclass
class _Got:
    """How far it came."""

    options: _Options
    path: str
    method: str = ""
    answer: StreamedAnswer | None = None
    failure: Failed | None = None
    began: float = field(default_factory=time.monotonic)
    connected: float = 0.0
    answered: float = 0.0
    uploaded: int = 0
    written: int = 0

    def request(self, endpoint: Endpoint, sent: _Sent) -> None:
        """Make the request, and write its answer. Raises as `Client` and `Output.write` do."""
        options = self.options
        client = _Client(
            endpoint,
            timeout=NO_LIMIT,
            connect_timeout=options.connect_timeout or CONNECT_TIMEOUT,
            max_idle=0,
        )
        client.verbose = options.verbose
        wanted = sent.wanted
        asked = Asked({**secret(endpoint), **wanted.params}, sent.role, False,
                      wanted.method == "HEAD")  # fmt: skip
        try:
            with client.ask(asked, self._counted(sent.body), sent.data, options.max_time or None) \
                    as answer:  # fmt: skip
                self.answer = answer
                self.answered = time.monotonic()
                self._take(answer)
        finally:
            self.connected = client.connected

    def _counted(self, body: bytes | Upload) -> bytes | Iterable[bytes]:
        if isinstance(body, bytes):
            self.uploaded = len(body)
            return body
        return self._counting(body)

    def _counting(self, upload: Upload) -> Iterable[bytes]:
        for piece in upload.pieces():
            self.uploaded += len(piece)
            yield piece

    def _take(self, answer: StreamedAnswer) -> None:
        options = self.options
        failed = answer.status >= 400 and (options.fail or options.fail_with_body)
        if failed and not options.fail_with_body:
            for _ in answer:
                pass
        else:
            name = _remote_name(self.path) if options.remote_name else options.output
            output = Output(name, options.include or options.head, options.dump_header)
            try:
                output.write(answer)
            finally:
                self.written = output.written
        if answer.stderr and not options.silent and not options.verbose:
            for line in answer.stderr.splitlines():
                _say("stderr:", printable(line))
        if failed:
            raise Failed(FAIL, f"the answer's status is {answer.status}")

    def write_out(self) -> None:
        """Write what -w wants, also when there is no answer."""
        text = self.options.write_out
        if text is None:
            return
        if text.startswith("@"):
            text = os.fsdecode(joined([("data", text)]))
        failed = self.failure is not None
        out, errors = formatted(text, self._facts(), self._header, failed)
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write(out)
            sys.stdout.flush()
        sys.stderr.write(errors)

    def _header(self, name: str) -> str:
        return self.answer.head.get(name) if self.answer else ""

    def _facts(self) -> dict[str, str]:
        answer, failure, now = self.answer, self.failure, time.monotonic()

        def after(at: float) -> str:
            return f"{max(at - self.began, 0.0):.6f}"

        status = f"{answer.status if answer else 0:03d}"
        return {
            "app_status": str(answer.app_status if answer else 0),
            "content_type": self._header("Content-Type"),
            "errormsg": str(failure) if failure else "",
            "exitcode": str(failure.exit_status if failure else 0),
            "http_code": status,
            "method": self.method,
            "num_connects": str(int(self.connected > 0)),
            "num_headers": str(len(answer.head.headers) if answer else 0),
            "redirect_url": self._header("Location"),
            "response_code": status,
            "size_download": str(self.written),
            "size_upload": str(self.uploaded),
            "time_connect": after(self.connected),
            "time_starttransfer": after(self.answered),
            "time_total": after(now),
        }


def _remote_name(path: str) -> str:
    name = path.partition("?")[0].rpartition("/")[2]
    if not name:
        raise Failed(WRITE, f"--remote-name: {path} ends in no name")
    return name


def _failure(error: Exception, got: _Got) -> Failed:
    if isinstance(error, Failed):
        return error
    status = 1
    if isinstance(error, BadRequest):
        status = MALFORMED
    elif isinstance(error, Unreadable):
        status = READ
    elif isinstance(error, ConnectFailed):
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
