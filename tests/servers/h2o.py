"""H2O in front of a FastCGI application."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import indent
from typing import ClassVar

from tests.servers.base import RealServer

MAIN = """\
{user}listen:
  host: 127.0.0.1
  port: {port}
num-threads: 1
pid-file: {folder}/h2o.pid
error-log: {folder}/error.log
hosts:
  default:
    paths:
{paths}
"""


class H2O(RealServer):
    """`backend` is "unix:/path" or "127.0.0.1:port"; `options` are more lines for the path."""

    program: ClassVar[str] = "h2o"

    def __init__(self, folder: Path, backend: str, *options: str, prefix: str = "/") -> None:
        super().__init__(folder)
        self.backend = backend
        self.options = options
        self.prefix = prefix

    def configure(self) -> None:
        kind, _, rest = self.backend.partition(":")
        if kind == "unix":
            connect = f"{{port: {rest}, type: unix}}"
        else:
            connect = f"{{host: {kind}, port: {rest}, type: tcp}}"
        lines = "\n".join([f"fastcgi.connect: {connect}", *self.options])
        text = MAIN.format(
            user="user: root\n" if os.geteuid() == 0 else "",
            port=self.port,
            folder=self.folder,
            paths=indent(f'"{self.prefix}":\n{indent(lines, "  ")}', "      "),
        )
        (self.folder / "h2o.yaml").write_text(text)

    def command(self) -> list[str]:
        return ["h2o", "-m", "worker", "-c", f"{self.folder}/h2o.yaml"]
