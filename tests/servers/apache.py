"""Apache httpd with mod_proxy_fcgi, or mod_proxy_scgi, in front of an application."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from tests.servers.base import RealServer

MODULES = Path("/usr/lib/apache2/modules")

MAIN = """\
ServerRoot {folder}
PidFile {folder}/httpd.pid
DefaultRuntimeDir {folder}
Listen 127.0.0.1:{port}
ServerName localhost
ErrorLog {folder}/error.log
LogLevel info
{user}
{modules}
StartServers 1
ServerLimit 1
ThreadsPerChild 8
MaxRequestWorkers 8
MinSpareThreads 1
MaxSpareThreads 8
DocumentRoot {root}
<Directory />
    Require all granted
</Directory>
{lines}
"""


class Apache(RealServer):
    """`lines` are the directives that hand requests over, such as a ProxyPass.

    `modules` are loaded beside those that are always there.
    """

    program: ClassVar[str] = "apache2"

    def __init__(
        self, folder: Path, *lines: str, root: Path | None = None, modules: tuple[str, ...] = ()
    ) -> None:
        super().__init__(folder)
        self.modules = modules
        self.lines = lines
        self.root = root or folder

    def configure(self) -> None:
        modules = [
            f"LoadModule {name}_module {MODULES}/mod_{name}.so"
            for name in (
                *("mpm_event", "authz_core", "setenvif", "env"),
                *("proxy", "proxy_fcgi", "proxy_scgi", "proxy_ajp"),
                *self.modules,
            )
        ]
        text = MAIN.format(
            folder=self.folder,
            port=self.port,
            # It refuses to serve as root.
            user="User www-data\nGroup www-data" if os.geteuid() == 0 else "",
            modules="\n".join(modules),
            root=self.root,
            lines="\n".join(self.lines),
        )
        (self.folder / "httpd.conf").write_text(text)

    def command(self) -> list[str]:
        return ["apache2", "-f", f"{self.folder}/httpd.conf", "-DFOREGROUND"]


def jk_lines(
    folder: Path, paths: str, port: int, secret: str = "", *, ping: bool = True
) -> list[str]:
    """Give the lines that have mod_jk pass on what matches `paths`; its worker has its own file."""
    worker = {
        "list": "app",
        "app.type": "ajp13",
        "app.host": "127.0.0.1",
        "app.port": str(port),
        "app.ping_mode": "A" if ping else "",
        "app.recovery_options": "7",  # else a request whose answer breaks is made again
    }
    if secret:
        worker["app.secret"] = secret
    lines = [f"worker.{name}={value}\n" for name, value in worker.items() if value]
    (folder / "workers.properties").write_text("".join(lines))
    return [
        f"JkWorkersFile {folder}/workers.properties",
        f"JkLogFile {folder}/mod_jk.log",
        f"JkShmFile {folder}/jk.shm",
        f"JkMount {paths} app",
    ]
