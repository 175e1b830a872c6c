"""The role of the Filter: a request, and beside it a stream of data to answer it from.

FastCGI 1.0, section 6.4. The web server sends the request's body as STDIN and then, as DATA, what
is to be filtered, most often a file, with its length and the time of its last change as
FCGI_DATA_LENGTH and FCGI_DATA_LAST_MOD. A Filter answers as a Responder does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from inspect import iscoroutinefunction
from typing import IO, Any, Final

from fulgate.exchange import Buffer, Carrier, Exchange, Headers, SyncGateway
from fulgate.gateways.roles import RoleRequest
from fulgate.gateways.streams import Input

__all__ = ["Filter", "FilterGateway", "FilterRequest", "Filtered", "filter"]

# STDIN that the application has not read is kept in memory up to this many bytes, when DATA is
# wanted, which comes behind it; what is longer goes to a temporary file.
KEPT: Final = 65536

DATA: Final = "fulgate.data"
OURS: Final = ("fulgate.", "wsgi.")  # names in an environ that no web server has sent


class FilterRequest(RoleRequest):
    """A request and its data. `body` and `data` are files that can be read, in any order.

    Both end where the web server ends them, whatever it said of their length before.
    """

    def __init__(self, environ: dict[str, Any]) -> None:
        params = {k: v for k, v in environ.items() if not k.startswith(OURS)}
        super().__init__(params, environ["fulgate.params"])
        self.body: Input = environ["wsgi.input"]
        self.data: Input = environ[DATA]

    @property
    def body_length(self) -> int | None:
        """How many bytes `body` is to have, from CONTENT_LENGTH; None when that is not told."""
        return _number(self.params.get("CONTENT_LENGTH", ""))

    @property
    def data_length(self) -> int | None:
        """How many bytes `data` is to have, from FCGI_DATA_LENGTH; None when that is not told."""
        return _number(self.params.get("FCGI_DATA_LENGTH", ""))

    @property
    def data_modified(self) -> datetime | None:
        """When the data changed last (FCGI_DATA_LAST_MOD), in UTC; None when that is not told."""
        seconds = _number(self.params.get("FCGI_DATA_LAST_MOD", ""))
        try:
            return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
        except (OverflowError, ValueError, OSError):
            return None


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and text.isascii() and len(text) <= 18 else None


@dataclass(frozen=True, slots=True)
class Filtered:
    """A Filter's answer. `body` is bytes, or gives them piece by piece, as a generator does."""

    body: bytes | Iterable[bytes] = b""
    headers: Headers = field(default_factory=list)
    status: str = "200 OK"


Handle = Callable[[FilterRequest], Filtered]


class Filter:
    """What is served in the role of a Filter; `filter` makes it of a function."""

    def __init__(self, handle: Handle) -> None:
        if not callable(handle):
            raise TypeError("a filter is made of a function of a request")
        if iscoroutinefunction(handle):
            raise TypeError("a filter runs in a thread, and cannot be a coroutine")
        self.handle = handle
        self.__doc__ = handle.__doc__

    def __call__(self, request: FilterRequest) -> Filtered:
        """Ask as a web server does; for tests."""
        return self.handle(request)

    def wsgi(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer as a WSGI application, to which "fulgate.data" was given."""
        answer = self.handle(FilterRequest(environ))
        if not isinstance(answer, Filtered):
            raise TypeError(f"a filter gives Filtered, not {type(answer).__name__}")
        start_response(answer.status, list(answer.headers))
        return [answer.body] if isinstance(answer.body, bytes) else answer.body


def filter(handle: Handle) -> Filter:
    """Make an application of the role Filter of a function that gives Filtered.

    What it raises is answered with 500, or breaks the answer when that has begun.
    """
    return Filter(handle)


class FilterGateway:
    """A SyncGateway: `gateway`, one of WSGI, answers exchanges, with "fulgate.data" in environ."""

    def __init__(self, gateway: SyncGateway) -> None:
        self._gateway = gateway

    def __call__(self, exchange: Exchange, carrier: Carrier) -> None:
        """Answer one exchange. Raises nothing."""
        stdin = _Stdin(carrier)
        exchange.params[DATA] = Input(exchange, _Data(stdin))
        try:
            self._gateway(exchange, stdin)
        finally:
            stdin.close()


class _Stdin(Carrier):
    """The carrier of an exchange, of which only STDIN is received."""

    def __init__(self, carrier: Carrier) -> None:
        self.carrier = carrier
        self.sends_files = carrier.sends_files
        self._kept: IO[bytes] | None = None

    def receive(self, exchange: Exchange) -> bytes:
        if self._kept is not None:
            return self._kept.read(KEPT)
        return self.carrier.receive(exchange)

    def keep(self, exchange: Exchange) -> None:
        """Have DATA received from now on, and keep what is left of STDIN before it."""
        if exchange.reading_data:
            return
        if self._kept is not None:
            raise OSError("what stands before DATA could not be kept")
        from tempfile import SpooledTemporaryFile  # which imports much, and is used seldom

        self._kept = kept = SpooledTemporaryFile(max_size=KEPT)  # noqa: SIM115
        try:
            while piece := self.carrier.receive(exchange):
                kept.write(piece)
            kept.seek(0)
        except BaseException:
            kept.close()  # who catches it does not take a part of STDIN for the whole
            raise
        exchange.reading_data = True

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()

    def send(self, exchange: Exchange, data: Buffer) -> None:
        self.carrier.send(exchange, data)

    def finish(self, exchange: Exchange, data: Buffer = b"", app_status: int = 0) -> None:
        self.carrier.finish(exchange, data, app_status)

    def finish_file(self, exchange: Exchange, fd: int, offset: int, size: int) -> None:
        self.carrier.finish_file(exchange, fd, offset, size)

    def fail(self, exchange: Exchange) -> None:
        self.carrier.fail(exchange)

    def log(self, exchange: Exchange, text: str) -> None:
        self.carrier.log(exchange, text)

    def look(self, exchange: Exchange) -> None:
        self.carrier.look(exchange)


class _Data(Carrier):
    """The same, of which only DATA is received."""

    def __init__(self, stdin: _Stdin) -> None:
        self._stdin = stdin

    def receive(self, exchange: Exchange) -> bytes:
        self._stdin.keep(exchange)
        return self._stdin.carrier.receive(exchange)
