"""flup.server.cgi: answer one request as a CGI program."""

from __future__ import annotations

from typing import Any

from fulgate.server import Server

__all__ = ["WSGIServer"]


class WSGIServer:
    """Answers the request that stands in the process's environment and on its standard input."""

    def __init__(self, application: Any) -> None:
        self.application = application

    def run(self) -> None:
        """Answer it on standard output. To be called once, at the end of the program."""
        Server(self.application).answer()
