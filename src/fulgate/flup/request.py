"""The request object of flup, for programs that override `handler` or `error`."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from fulgate.client.head import HeadReader

__all__ = ["CGIRequest", "OutputStream", "Request"]

Start = Callable[..., Callable[[bytes], object]]


class OutputStream:
    """`req.stdout`: takes an answer as a CGI program writes it, head first.

    Text is encoded as latin-1. Raises ProtocolError for a head that is none.
    """

    def __init__(self, start_response: Start, exc_info: Any = None) -> None:
        self.dataWritten = False
        self.closed = False
        self._start_response = start_response
        self._exc_info = exc_info
        self._head: HeadReader | None = HeadReader()
        self._write: Callable[[bytes], object] | None = None

    @property
    def started(self) -> bool:
        """Has the head come, all of it?"""
        return self._write is not None

    def write(self, data: bytes | str) -> None:
        """Take a piece of the answer."""
        if isinstance(data, str):
            data = data.encode("latin-1")
        if not data:
            return
        self.dataWritten = True
        if self._head is not None:
            found = self._head.feed(data)
            if found is None:
                return
            head, data = found
            self._head = None
            reason = head.reason or _reason(head.status)
            headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in head.headers]
            self._write = self._start_response(
                f"{head.status} {reason}", headers, *([self._exc_info] if self._exc_info else [])
            )
            self._exc_info = None
        if data and self._write is not None:
            self._write(data)

    def writelines(self, lines: Iterable[bytes | str]) -> None:
        """Take several pieces."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Nothing is held back, apart from a head that has not come whole."""

    def close(self) -> None:
        """The end of the answer is sent when the handler returns."""
        self.closed = True


class Request:
    """One request: `params`, `stdin`, `stdout`, `stderr` and `data` are for the handler.

    `params` is the environ of WSGI already.
    """

    requestId = 1
    flags = 0

    def __init__(
        self, server: Any, environ: dict[str, Any], start_response: Start, exc_info: Any = None
    ) -> None:
        self.server = server
        self.params = self.environ = environ  # by FastCGI's name, and by that of SCGI and AJP
        self.role = server.roles[0] if server.roles else 1
        self.stdin = environ["wsgi.input"]
        self.stdout = OutputStream(start_response, exc_info)
        self.stderr = environ["wsgi.errors"]
        self.data = io.BytesIO()
        self.start_response = start_response

    @property
    def aborted(self) -> bool:
        """Has the web server given the request up?"""
        aborted: bool = self.params["fulgate.aborted"]()
        return aborted


class CGIRequest(Request):
    """The same where the process is a CGI program."""


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
