"""What flup's clients have in common: WSGI applications that pass requests on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any, ClassVar

from fulgate.client.connection import Connection
from fulgate.client.head import HeadReader
from fulgate.endpoint import FASTCGI, Endpoint
from fulgate.errors import ProtocolError

__all__ = ["Passing"]

CHUNK = 65536


class Passing:
    """Passes each request on, over a connection of its own.

    `connect` is the path of a Unix socket or (host, port), which `host` and `port` may say too.
    `filterEnviron` passes only the variables of CGI on, instead of all that are in upper case.
    `timeout` is in seconds, for connecting and for each wait. Raises ValueError unless it is told
    exactly one place.
    """

    _protocol = FASTCGI
    _environPrefixes: ClassVar[list[str]] = [
        *("SERVER_", "HTTP_", "REQUEST_", "REMOTE_", "PATH_", "CONTENT_")
    ]
    _environCopies: ClassVar[list[str]] = ["SCRIPT_NAME", "QUERY_STRING", "AUTH_TYPE"]
    _environRenames: ClassVar[dict[str, str]] = {}

    def __init__(
        self,
        connect: str | tuple[str, int] | None,
        host: str | None,
        port: int | None,
        filterEnviron: bool,
        timeout: float,
    ) -> None:
        if host is not None:
            if port is None:
                raise ValueError("host wants a port")
            connect = (host, port)
        if connect is None:
            raise ValueError("where to connect to is not told")
        self._connect = connect
        self._filterEnviron = filterEnviron
        self._timeout = timeout

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Make the request. Raises OSError when nobody listens, ProtocolError for a bad answer."""
        if self._filterEnviron:
            params = self._defaultFilterEnviron(environ)
        else:
            params = self._lightFilterEnviron(environ)
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(self._getConnection())
            request = connection.begin(params, keep=False)
            for piece in self._body(environ):
                connection.send(request.send(piece))
            connection.send(request.end())
            pieces = connection.stream(request)
            reader = HeadReader()
            found = None
            for piece in pieces:
                found = reader.feed(piece)
                if found is not None:
                    break
            if found is None:
                raise ProtocolError("the answer ended inside its head")
            head, first = found
            reason = head.reason or _reason(head.status)
            headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in head.headers]
            start_response(f"{head.status} {reason}", headers)
            return _Answer(environ, request, first, pieces, stack.pop_all())

    def _getConnection(self) -> Connection:
        """To be overridden: give a connection. By default a new one."""
        if isinstance(self._connect, str):
            endpoint = Endpoint("unix", path=self._connect, protocol=self._protocol)
        else:
            host, port = self._connect
            host = host or "localhost"
            endpoint = Endpoint("tcp", host=host, port=int(port), protocol=self._protocol)
        return Connection(endpoint, self._timeout)

    def _body(self, environ: dict[str, Any]) -> Iterator[bytes]:
        """Give the pieces of the request's body, up to CONTENT_LENGTH bytes of it."""
        source = environ["wsgi.input"]
        left = int(environ.get("CONTENT_LENGTH") or 0)
        while left > 0 and (piece := source.read(min(left, CHUNK))):
            left -= len(piece)
            yield piece

    def _defaultFilterEnviron(self, environ: dict[str, Any]) -> dict[str, str]:
        """To be overridden: give what to pass on with `filterEnviron`."""
        prefixes = tuple(self._environPrefixes)
        result = {
            name: value
            for name, value in environ.items()
            if name.startswith(prefixes) or name in self._environCopies
        }
        for name, other in self._environRenames.items():
            if name in environ:
                result[other] = environ[name]
        return _texts(result)

    def _lightFilterEnviron(self, environ: dict[str, Any]) -> dict[str, str]:
        """To be overridden: give what to pass on without `filterEnviron`."""
        return _texts({name: value for name, value in environ.items() if name.upper() == name})


class _Answer:
    """The body of an answer, as it comes. Closing it closes the connection."""

    def __init__(
        self,
        environ: dict[str, Any],
        request: Any,
        first: bytes,
        pieces: Iterator[bytes],
        stack: contextlib.ExitStack,
    ) -> None:
        self._environ = environ
        self._request = request
        self._first = first
        self._pieces = pieces
        self._stack = stack

    def __iter__(self) -> Iterator[bytes]:
        try:
            if self._first:
                yield self._first
            yield from self._pieces
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection, which aborts the request if it still runs."""
        self._log()
        self._stack.close()

    def _log(self) -> None:
        text = self._request.take_stderr().decode("utf-8", "replace")
        if text:
            self._environ["wsgi.errors"].write(text)


def _texts(params: dict[str, Any]) -> dict[str, str]:
    return {name: value for name, value in params.items() if isinstance(value, str)}


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
