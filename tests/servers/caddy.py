"""Caddy in front of a FastCGI application."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent
from typing import ClassVar

from tests.servers.base import RealServer

MAIN = """\
{{
    admin off
    auto_https off
}}
http://:{port} {{
    bind 127.0.0.1
    root * {root}
{lines}
}}
"""


class Caddy(RealServer):
    """`lines` are the directives that hand requests over, such as reverse_proxy."""

    program: ClassVar[str] = "caddy"

    def __init__(self, folder: Path, *lines: str, root: str = "/srv/www") -> None:
        super().__init__(folder)
        self.lines = lines
        self.root = root

    def configure(self) -> None:
        text = MAIN.format(
            port=self.port, root=self.root, lines=indent("\n".join(self.lines), "    ")
        )
        (self.folder / "Caddyfile").write_text(text)

    def environment(self) -> dict[str, str]:
        return {
            **super().environment(),
            "XDG_DATA_HOME": str(self.folder),
            "XDG_CONFIG_HOME": str(self.folder),
        }

    def command(self) -> list[str]:
        return ["caddy", "run", "--adapter", "caddyfile", "--config", f"{self.folder}/Caddyfile"]
