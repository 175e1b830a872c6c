"""Fulgate itself, as the process that `fulgate serve` starts."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import ClassVar

from tests.servers.base import RealServer

ROOT = Path(__file__).resolve().parents[2]


class Fulgate(RealServer):
    """Serves `app`, "module:attr", on a Unix socket; `options` are more of the command line.

    `protocol` is what is spoken on the socket.
    """

    program: ClassVar[str] = "fulgate"
    says: ClassVar[bytes] = b" serves "  # in its log, once it listens

    def __init__(
        self,
        folder: Path,
        app: str,
        *options: str,
        env: dict[str, str] | None = None,
        protocol: str = "fastcgi",
    ) -> None:
        super().__init__(folder)
        self.protocol = protocol
        self.app = app
        self.options = options
        self.env = env or {}
        self.socket = folder / "app.sock"

    @property
    def backend(self) -> str:
        """The endpoint as nginx and lighttpd write it."""
        return f"unix:{self.socket}"

    def command(self) -> list[str]:
        bind = f"{self.protocol}+unix:{self.socket}?mode=666"
        return [sys.executable, "-m", "fulgate", "serve", self.app, "--bind", bind, *self.options]

    def environment(self) -> dict[str, str]:
        # The tests run where warnings are errors; so does what they start.
        return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **self.env}

    def accepts(self) -> bool:
        # A moment after it listens: from then on what is in its log is of the tests' doing.
        if self.says not in (self.folder / "stdio.log").read_bytes():
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
        return True

    def status(self, field: str) -> str:
        """Give a field of the kernel's /proc/PID/status, such as "VmHWM"."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return value.strip()
        raise KeyError(field)
