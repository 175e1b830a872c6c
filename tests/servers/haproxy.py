"""HAProxy, the server that multiplexes, in front of a FastCGI application."""

from __future__ import annotations

import signal
from pathlib import Path
from textwrap import indent
from typing import ClassVar

from tests.servers.base import RealServer

MAIN = """\
global
    log stderr format raw local0
{main}defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    log global
fcgi-app app
    docroot {docroot}
{options}
frontend web
    bind 127.0.0.1:{port}
    default_backend applications
backend applications
    use-fcgi-app app
{rules}    server app {backend} proto fcgi{server}
"""


class HAProxy(RealServer):
    """`options` are lines of fcgi-app, `server` more words of the server line.

    `main` are lines of the global section, `rules` of the backend.
    """

    program: ClassVar[str] = "haproxy"
    stop_signal: ClassVar[int] = signal.SIGTERM

    def __init__(
        self,
        folder: Path,
        backend: str,
        *options: str,
        server: str = "",
        docroot: str = "/srv/www",
        main: str = "",
        rules: str = "",
    ) -> None:
        super().__init__(folder)
        self.backend = backend
        self.options = options
        self.server = server
        self.docroot = docroot
        self.main = main
        self.rules = rules

    def configure(self) -> None:
        text = MAIN.format(
            docroot=self.docroot,
            main=f"    {self.main}\n" if self.main else "",
            rules=f"    {self.rules}\n" if self.rules else "",
            options=indent("\n".join(self.options), "    "),
            port=self.port,
            backend=self.backend.replace("unix:", "unix@"),
            server=f" {self.server}" if self.server else "",
        )
        (self.folder / "haproxy.cfg").write_text(text)

    def command(self) -> list[str]:
        return ["haproxy", "-db", "-f", f"{self.folder}/haproxy.cfg"]
