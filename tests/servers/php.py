"""PHP-FPM, a FastCGI application server to hold our client against."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import ClassVar

from tests.servers.base import PATH, RealServer

CONFIG = """\
[global]
error_log = {folder}/error.log
daemonize = no
[www]
listen = {folder}/php.sock
{user}pm = static
pm.max_children = 2
catch_workers_output = yes
"""


def find_program() -> str:
    """Give the name of its newest binary, to which Debian appends PHP's version."""
    names = {
        file.name for part in PATH.split(os.pathsep) if part for file in Path(part).glob("php-fpm*")
    }
    return max(names, default="php-fpm")


PHP_FPM = find_program()


class PhpFpm(RealServer):
    """Serves the scripts below any folder that a request names in SCRIPT_FILENAME."""

    program: ClassVar[str] = PHP_FPM
    stop_signal: ClassVar[int] = signal.SIGTERM

    @property
    def endpoint(self) -> str:
        return f"unix:{self.folder}/php.sock"

    def configure(self) -> None:
        root = os.geteuid() == 0
        user = "user = nobody\ngroup = nogroup\nlisten.mode = 0666\n" if root else ""
        config = CONFIG.format(folder=self.folder, user=user)
        (self.folder / "php-fpm.conf").write_text(config)

    def command(self) -> list[str]:
        return [self.program, "--nodaemonize", "--fpm-config", str(self.folder / "php-fpm.conf")]

    def accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self.folder / "php.sock"))
            except OSError:
                return False
        return True
