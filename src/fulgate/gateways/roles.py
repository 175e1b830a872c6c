"""Who is served in which role; and the Authorizer, which is asked before a request is served.

FastCGI 1.0, section 6.3. An Authorizer gets no body: a web server asks it with the request's
parameters alone, which need not have SCRIPT_NAME and PATH_INFO. `filters.py` has the Filter.
"""

from __future__ import annotations

import base64
import binascii
import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from fulgate.errors import Aborted
from fulgate.exchange import Carrier, Exchange, Headers, Role, SyncGateway
from fulgate.gateways.head import check_name, check_status, check_value
from fulgate.gateways.streams import printable, to_stderr
from fulgate.gateways.wsgi import Application, exit_status
from fulgate.logs import log_refusal, request_line

if TYPE_CHECKING:
    from fulgate.gateways.filters import Filter

__all__ = [
    "Allow",
    "Authorizer",
    "AuthorizerRequest",
    "ByRole",
    "Deny",
    "RoleRequest",
    "Roles",
    "authorizer",
]

logger = logging.getLogger("fulgate")


class RoleRequest:
    """What a web server tells of a request. `params` are its CGI variables, latin-1 text."""

    def __init__(
        self, params: Mapping[str, str], pairs: Callable[[], list[tuple[str, str]]]
    ) -> None:
        self.params = params
        self.pairs = pairs  # the parameters in the order in which they came, repeated ones too

    @property
    def method(self) -> str:
        """The request's method, such as "GET"; "" when the web server does not tell."""
        return self.params.get("REQUEST_METHOD", "")

    @property
    def uri(self) -> str:
        """The request's path and query as the client sent them; "" when that is not told."""
        return self.params.get("REQUEST_URI", "")

    def header(self, name: str) -> str | None:
        """Give the value of a header that the client sent, or None."""
        key = name.upper().replace("-", "_")
        if key in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            return self.params.get(key)
        return self.params.get("HTTP_" + key)

    @property
    def credentials(self) -> tuple[str, str] | None:
        """Name and password of Basic authentication (RFC 7617), read as UTF-8; None without.

        mod_fcgid gives them as REMOTE_USER and REMOTE_PASSWD, and keeps the header to itself.
        """
        known = self.params
        if "REMOTE_PASSWD" in known:
            return _utf8(known.get("REMOTE_USER", "")), _utf8(known["REMOTE_PASSWD"])
        scheme, _, text = (self.header("Authorization") or "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            name, colon, password = base64.b64decode(text, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return None
        return (name, password) if colon else None


class AuthorizerRequest(RoleRequest):
    """A request that a web server asks about."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange.params, exchange.pairs)


def _utf8(text: str) -> str:
    return text.encode("latin-1").decode("utf-8", "replace")


def _in_utf8(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"the value of a variable is not str, but {type(text).__name__}")
    return text.encode("utf-8").decode("latin-1")


@dataclass(frozen=True, slots=True)
class Allow:
    """The request may be served. `variables` are added to its CGI variables by the web server.

    Their values are text, and sent in UTF-8, as `credentials` are read. `headers` go beside them;
    what a web server does with them is its own affair.
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    headers: Headers = field(default_factory=list)

    def answer(self) -> tuple[str, Headers, bytes]:
        named = [("Variable-" + name, _in_utf8(value)) for name, value in self.variables.items()]
        return "200 OK", [*named, *self.headers], b""


@dataclass(frozen=True, slots=True)
class Deny:
    """The request is not served, and this goes to the client instead.

    `status` is any but a 200, such as "403 Forbidden".
    """

    status: str = "403 Forbidden"
    headers: Headers = field(default_factory=list)
    body: bytes = b""

    def answer(self) -> tuple[str, Headers, bytes]:
        if self.status[:3] == "200":
            raise ValueError("Deny with a status of 200 would allow the request")
        body = self.body or (self.status + "\n").encode("latin-1")
        headers = list(self.headers)
        names = {name.lower() for name, _ in headers}
        if not self.body and "content-type" not in names:
            headers.append(("Content-Type", "text/plain; charset=utf-8"))
        if "content-length" not in names:
            headers.append(("Content-Length", str(len(body))))
        return self.status, headers, body


Check = Callable[[AuthorizerRequest], Allow | Deny]


class Authorizer:
    """What is served in the role of an Authorizer; `authorizer` makes it of a function."""

    def __init__(self, check: Check) -> None:
        if not callable(check):
            raise TypeError("an authorizer is made of a function of a request")
        if iscoroutinefunction(check):
            raise TypeError("an authorizer is asked in a thread, and cannot be a coroutine")
        self.check = check
        self.__doc__ = check.__doc__

    def __call__(self, request: AuthorizerRequest) -> Allow | Deny:
        """Ask as a web server does; for tests."""
        return self.check(request)


def authorizer(check: Check) -> Authorizer:
    """Make an application of the role Authorizer of a function that gives Allow or Deny.

    What it raises denies the request, with 500.
    """
    return Authorizer(check)


class Roles:
    """Serves several roles on one socket: a WSGI application, an authorizer, and a filter.

    `filter` is one that `fulgate.filter` has made, or a WSGI application, which may be the
    responder too: in a filter's environ "fulgate.data" is the stream of data.
    """

    def __init__(
        self,
        responder: Application | None = None,
        authorizer: Authorizer | None = None,
        filter: Filter | Application | None = None,
    ) -> None:
        if responder is None and authorizer is None and filter is None:
            raise TypeError("no role is served")
        self.responder = responder
        self.authorizer = authorizer
        self.filter = filter

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        """Call the WSGI application. Raises TypeError where there is none."""
        if self.responder is None:
            raise TypeError("there is no WSGI application")
        return self.responder(environ, start_response)


class ByRole:
    """A SyncGateway that gives each exchange to the gateway of its role."""

    def __init__(self, gateways: Mapping[Role, SyncGateway]) -> None:
        self._gateways = gateways

    def __call__(self, exchange: Exchange, carrier: Carrier) -> None:
        """Answer one exchange. Raises nothing."""
        gateway = self._gateways.get(exchange.role)
        if gateway is not None:
            gateway(exchange, carrier)
            return
        logger.error("%s: the role %s is not served", request_line(exchange), exchange.role.name)
        _send(exchange, carrier, *Deny("500 Internal Server Error").answer())


class AuthorizerGateway:
    """A SyncGateway: an authorizer answers exchanges. `stderr` is as for `WSGI`."""

    def __init__(self, app: Authorizer, stderr: bool = False) -> None:
        self._app = app
        self._stderr = stderr

    def __call__(self, exchange: Exchange, carrier: Carrier) -> None:
        """Answer one exchange, whatever the application does. Raises nothing."""
        app_status = 0
        try:
            if exchange.refused is not None:
                log_refusal(exchange)
                answer = Deny(exchange.refused.status).answer()
            else:
                answer = self._decide(exchange)
        except BaseException as error:  # SystemExit in an application does not end the server
            self._log(exchange, carrier, error)
            app_status = exit_status(error)
            answer = Deny("500 Internal Server Error").answer()
        _send(exchange, carrier, *answer, app_status)

    def _decide(self, exchange: Exchange) -> tuple[str, Headers, bytes]:
        decision = self._app.check(AuthorizerRequest(exchange))
        if not isinstance(decision, (Allow, Deny)):
            raise TypeError(f"an authorizer gives Allow or Deny, not {type(decision).__name__}")
        status, headers, body = decision.answer()
        check_status(status)
        for name, value in headers:
            check_name(name)
            check_value(name, value)
        if not isinstance(body, bytes):
            raise TypeError(f"the body is not bytes, but {type(body).__name__}")
        return status, headers, body

    def _log(self, exchange: Exchange, carrier: Carrier, error: BaseException) -> None:
        exchange.error = type(error).__name__
        logger.error("%s: the authorizer raised", request_line(exchange), exc_info=error)
        if self._stderr:
            lines = "".join(traceback.format_exception(error)).split("\n")
            to_stderr(exchange, carrier, "\n".join([printable(line) for line in lines]))


def _send(
    exchange: Exchange,
    carrier: Carrier,
    status: str,
    headers: Headers,
    body: bytes,
    app_status: int = 0,
) -> None:
    if exchange.aborted:
        return
    exchange.start(status, headers)
    head_only = exchange.params.get("REQUEST_METHOD") == "HEAD"
    try:
        carrier.finish(exchange, b"" if head_only else body, app_status)
    except Aborted:
        logger.debug("%s: aborted by the web server", request_line(exchange))
