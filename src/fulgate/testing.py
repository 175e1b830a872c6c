"""Run a WSGI application in memory, for tests: through real FastCGI records and the real gateway.

For example::

    from fulgate.testing import call

    result = call(app, path="/form", method="POST", body=b"a=1")
    assert result.status == "200 OK"
    assert result["Content-Type"] == "text/html; charset=utf-8"
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote_to_bytes

from fulgate.errors import Aborted
from fulgate.exchange import Buffer, Carrier, Exchange, Limits
from fulgate.gateways.wsgi import WSGI, Application
from fulgate.protocols.fastcgi import (
    FastCGI,
)
from fulgate.protocols.fastcgi_client import FastCGIClient, Request

__all__ = ["Result", "call"]

logger = logging.getLogger("fulgate")


@dataclass(frozen=True)
class Result:
    """What a web server gets for one request, and what came of it."""

    status: str  # such as "200 OK"; "" when nothing was answered
    headers: list[tuple[str, str]]
    body: bytes
    chunks: list[bytes]  # the body in the pieces in which it left
    errors: str  # what went to the web server's log (FCGI_STDERR)
    app_status: int  # of END_REQUEST
    broken: bool  # the answer began, but was not ended
    environ: dict[str, object] = field(repr=False, compare=False)  # as the application left it

    @property
    def code(self) -> int:
        """The number of the status; 0 when nothing was answered."""
        return int(self.status[:3] or 0)

    @property
    def text(self) -> str:
        """The body as UTF-8 text. Raises UnicodeDecodeError where it is none."""
        return self.body.decode("utf-8")

    def get_all(self, name: str) -> list[str]:
        """Give the values of all headers of that name, in their order."""
        lower = name.lower()
        return [value for key, value in self.headers if key.lower() == lower]

    def __getitem__(self, name: str) -> str:
        """Give the value of the first header of that name. Raises KeyError without one."""
        for value in self.get_all(name):
            return value
        raise KeyError(name)

    def __contains__(self, name: str) -> bool:
        return bool(self.get_all(name))


def call(
    app: Application,
    params: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
    body: bytes | Iterable[bytes] = b"",
    *,
    method: str = "",
    path: str = "/",
    query: str = "",
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    script_name: str = "",
    path_policy: str = "auto",
    repeated_params: str = "refuse",
    limit_request_body: int = 0,
    stderr: bool = True,
    abort_after: int = -1,
) -> Result:
    """Have `app` answer one request, made as nginx makes it; give what it answered.

    `method` is GET without a body, and POST with one, unless it is given. `path` is text, or text
    that is percent-encoded already. `headers` are the client's, `params` the web server's; what
    they name replaces what nginx would send, and pairs may repeat a name. `body` as an iterable
    arrives in those pieces, without CONTENT_LENGTH.

    `script_name`, `path_policy`, `repeated_params`, `limit_request_body` (bytes; 0: no limit) and
    `stderr` are the server's settings. `abort_after` has the web server give the request up after
    that many pieces of the answer, or before the first with 0; -1 is never.

    Functions given to "fulgate.after" run before this returns. What the application raises is
    answered and logged as by the server: look at `status`, `broken` and `errors`.
    """
    pieces = [body] if isinstance(body, bytes) else body
    length = str(len(body)) if isinstance(body, bytes) and body else ""
    method = method or ("GET" if body == b"" else "POST")
    given = [(_http_name(name), value) for name, value in _pairs(headers)] + _pairs(params or ())
    names = {name for name, _ in given}
    stock = _params(method, path, query, length)
    pairs = [pair for pair in stock if pair[0] not in names] + given
    wire = _Wire(FastCGI(Limits(body=limit_request_body), {}), pairs, pieces, abort_after)
    exchange = wire.exchange
    gateway = WSGI(
        app,
        path=path_policy,
        script_name=script_name,
        repeated_params=repeated_params,
        stderr=stderr,
        multithread=False,
    )
    gateway(exchange, wire)
    for function in exchange.after or []:
        try:
            function()
        except Exception:
            logger.exception("work after the answer failed")
    return wire.result()


def _pairs(
    params: Mapping[str, str] | Iterable[tuple[str, str]],
) -> list[tuple[str, str]]:
    return list(params.items() if isinstance(params, Mapping) else params)


def _http_name(name: str) -> str:
    """Give the param that a header becomes (RFC 3875, section 4.1.18)."""
    upper = name.upper().replace("-", "_")
    return upper if upper in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + upper


def _params(method: str, path: str, query: str, length: str) -> list[tuple[str, str]]:
    """Give what nginx's stock fastcgi_params have for such a request."""
    path, mark, more = path.partition("?")
    query = query or more
    uri = quote(path, safe="/%:@!$&'()*+,;=~") + ("?" + query if mark or query else "")
    decoded = unquote_to_bytes(path).decode("latin-1")
    return [
        ("QUERY_STRING", query),
        ("REQUEST_METHOD", method),
        ("CONTENT_TYPE", ""),
        ("CONTENT_LENGTH", length),
        ("SCRIPT_NAME", decoded),
        ("REQUEST_URI", uri),
        ("DOCUMENT_URI", decoded),
        ("DOCUMENT_ROOT", "/usr/share/nginx/html"),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("REQUEST_SCHEME", "http"),
        ("GATEWAY_INTERFACE", "CGI/1.1"),
        ("SERVER_SOFTWARE", "nginx/1.26.0"),
        ("REMOTE_ADDR", "127.0.0.1"),
        ("REMOTE_PORT", "50000"),
        ("SERVER_ADDR", "127.0.0.1"),
        ("SERVER_PORT", "80"),
        ("SERVER_NAME", "localhost"),
        ("REDIRECT_STATUS", "200"),
        ("HTTP_HOST", "localhost"),
    ]


class _Wire(Carrier):
    """A connection in memory: the web server on one end, an exchange for a gateway on the other."""

    def __init__(
        self,
        protocol: FastCGI,
        pairs: list[tuple[str, str]],
        pieces: Iterable[bytes],
        abort_after: int,
    ) -> None:
        self._protocol = protocol
        self._client = FastCGIClient()
        self._pieces = iter(pieces)
        self._abort_after = abort_after
        self._chunks: list[bytes] = []  # STDOUT, in the pieces in which it came
        self._errors: list[bytes] = []
        self._request: Request
        self._request, out = self._client.begin(pairs, keep=False)
        (self.exchange,) = protocol.feed(b"".join(out))
        self._abort_when_due()

    def _abort_when_due(self) -> None:
        if len(self._chunks) == self._abort_after and not self._request.aborted:
            self._protocol.feed(b"".join(self._request.abort()))
            self._take(self._protocol.out)

    def _take(self, out: list[Buffer]) -> None:
        """Take what the application's side has put on the wire."""
        self._client.feed(b"".join(out))
        out.clear()
        data = self._request.take()
        if data:
            self._chunks.append(data)
        self._errors.append(self._request.take_stderr())

    def _check(self, exchange: Exchange) -> None:
        if exchange.aborted:
            raise Aborted("the request was given up by the web server")

    def receive(self, exchange: Exchange) -> bytes:
        self._check(exchange)
        while not exchange.stdin_ended:
            piece = next(self._pieces, b"")
            if piece:
                self._protocol.feed(b"".join(self._request.send(piece)))
            else:
                self._protocol.feed(b"".join(self._request.end()))
            if exchange.refused is not None:
                raise Aborted(str(exchange.refused))
            if exchange.body_size:
                break
        return exchange.take()

    def send(self, exchange: Exchange, data: Buffer) -> None:
        self._check(exchange)
        self._take(exchange.send(data))
        self._abort_when_due()

    def finish(self, exchange: Exchange, data: Buffer = b"", app_status: int = 0) -> None:
        self._check(exchange)
        self._take(exchange.finish(data, app_status))

    def fail(self, exchange: Exchange) -> None:
        self._check(exchange)
        self._take(exchange.fail())

    def log(self, exchange: Exchange, text: str) -> None:
        self._take(exchange.log(text))

    def result(self) -> Result:
        """Read the answer as a web server does (RFC 3875, section 6)."""
        whole = b"".join(self._chunks)
        head, _, body = whole.partition(b"\r\n\r\n")
        headers = list(_headers(head.decode("latin-1")))
        status = "200 OK" if whole else ""
        if headers and headers[0][0] == "Status":
            status = headers.pop(0)[1]
        return Result(
            status=status,
            headers=headers,
            body=body,
            chunks=[chunk for chunk in self._body_chunks(len(whole) - len(body)) if chunk],
            errors=b"".join(self._errors).decode("utf-8"),
            app_status=self._request.app_status,
            broken=not self._request.whole,
            environ=self.exchange.params,
        )

    def _body_chunks(self, head: int) -> Iterator[bytes]:
        for chunk in self._chunks:
            yield chunk[head:]
            head = max(0, head - len(chunk))


def _headers(head: str) -> Iterator[tuple[str, str]]:
    for line in head.split("\r\n"):
        name, colon, value = line.partition(":")
        if colon:
            yield name, value.strip(" ")
