"""flup.client.scgi_app: a WSGI application that passes requests on to an SCGI application."""

from __future__ import annotations

from fulgate.flup.passing import Passing

__all__ = ["SCGIApp", "encodeNetstring"]


def encodeNetstring(s: bytes) -> bytes:
    """Give bytes as a netstring."""
    return b"%d:%s," % (len(s), s)


class SCGIApp(Passing):
    """Passes each request on, over a connection of its own. The arguments are `Passing`'s.

    A body without CONTENT_LENGTH is not passed on, since SCGI has no way to.
    """

    _protocol = "scgi"

    def __init__(
        self,
        connect: str | tuple[str, int] | None = None,
        host: str | None = None,
        port: int | None = None,
        filterEnviron: bool = True,
        timeout: float = 60.0,
    ) -> None:
        super().__init__(connect, host, port, filterEnviron, timeout)
