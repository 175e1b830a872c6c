"""lighttpd with mod_fastcgi, or mod_scgi, in front of an application."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from tests.servers.base import RealServer

MAIN = """\
server.modules = ("mod_{protocol}")
server.bind = "127.0.0.1"
server.port = {port}
server.document-root = "{root}"
server.errorlog = "{folder}/error.log"
server.upload-dirs = ("{folder}")
server.max-request-field-size = 65536
{lines}
{protocol}.server = ("{prefix}" => ((
    {backend},
    "check-local" => "disable"{options}
)))
"""


class Lighttpd(RealServer):
    """`backend` is "unix:/path" or "127.0.0.1:port"; `options` are those of fastcgi.server.

    `protocol` is "fastcgi" or "scgi".
    """

    program: ClassVar[str] = "lighttpd"

    def __init__(
        self,
        folder: Path,
        backend: str,
        *lines: str,
        prefix: str = "/",
        options: str = "",
        protocol: str = "fastcgi",
    ) -> None:
        super().__init__(folder)
        self.backend = backend
        self.lines = lines
        self.prefix = prefix
        self.protocol = protocol
        self.options = options

    def configure(self) -> None:
        if self.backend.startswith("unix:"):
            backend = f'"socket" => "{self.backend[5:]}"'
        else:
            host, port = self.backend.rsplit(":", 1)
            backend = f'"host" => "{host}", "port" => {port}'
        text = MAIN.format(
            port=self.port,
            root=self.folder,
            folder=self.folder,
            lines="\n".join(self.lines),
            prefix=self.prefix,
            protocol=self.protocol,
            backend=backend,
            options="".join(f",\n    {line}" for line in self.options.splitlines()),
        )
        (self.folder / "lighttpd.conf").write_text(text)

    def command(self) -> list[str]:
        return ["lighttpd", "-D", "-f", f"{self.folder}/lighttpd.conf"]


class LighttpdNext(Lighttpd):
    """A lighttpd that carries WebSockets: of Debian's next release, where this one's is too old."""

    program: ClassVar[str] = "lighttpd-next"

    def command(self) -> list[str]:
        return ["lighttpd-next", "-D", "-f", f"{self.folder}/lighttpd.conf"]
