"""flup.client.fcgi_app: a WSGI application that passes requests on to a FastCGI application."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fulgate.client.connection import Connection
from fulgate.flup.passing import CHUNK, Passing

__all__ = ["FCGIApp"]


class FCGIApp(Passing):
    """Passes each request on, over a connection of its own. The arguments are `Passing`'s.

    Raises NotImplementedError for `command`, which flup never had either.
    """

    def __init__(
        self,
        command: Any = None,
        connect: str | tuple[str, int] | None = None,
        host: str | None = None,
        port: int | None = None,
        filterEnviron: bool = True,
        timeout: float = 60.0,
    ) -> None:
        if command is not None:
            raise NotImplementedError("starting FastCGI programs is not possible")
        super().__init__(connect, host, port, filterEnviron, timeout)

    def _fcgiGetValues(self, connection: Connection, names: Iterable[str]) -> dict[str, str]:
        """Ask the application for values (FastCGI 1.0, section 4.1)."""
        return connection.get_values(names)

    def _body(self, environ: dict[str, Any]) -> Iterator[bytes]:
        """Give CONTENT_LENGTH bytes of the request's body, or all of it where it ends."""
        if environ.get("CONTENT_LENGTH") or not environ.get("wsgi.input_terminated"):
            yield from super()._body(environ)
            return
        while piece := environ["wsgi.input"].read(CHUNK):
            yield piece
