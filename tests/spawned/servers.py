"""The web servers that start a script: Apache with mod_fcgid and mod_cgid, lighttpd, spawn-fcgi."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import ClassVar

from tests.servers import Apache, Lighttpd
from tests.servers.apache import MODULES
from tests.servers.base import RealServer
from tests.spawned import Account, environment

HTACCESS = """\
Options +ExecCGI
AddHandler fcgid-script .fcgi
"""


def fcgid(folder: Path, account: Account, *lines: str) -> Apache:
    """Apache that runs scripts by mod_fcgid, for an account that may write a .htaccess."""
    loaded = [
        f"LoadModule {name}_module {MODULES}/mod_{name}.so"
        for name in ("mime", "rewrite", "dir", "fcgid", "cgid")
    ]
    return Apache(
        folder,
        *loaded,
        "TypesConfig /dev/null",
        f"FcgidIPCDir {folder}/ipc",
        f"FcgidProcessTableFile {folder}/fcgid.shm",
        f"ScriptSock {folder}/cgid.sock",
        # How soon it stops and clears away what it started.
        "FcgidErrorScanInterval 1",
        "FcgidMaxProcesses 1",
        "FcgidMaxRequestLen 16777216",
        *lines,
        f"<Directory {account.www}>",
        "AllowOverride Options FileInfo Indexes",
        "</Directory>",
        root=account.www,
    )


def lighttpd(folder: Path, account: Account, script: Path) -> Lighttpd:
    """lighttpd that starts the script by itself (bin-path), and hands it all requests."""
    user = 'server.username = "www-data"' if os.geteuid() == 0 else ""
    folder.chmod(0o777)  # it makes the socket as that user
    options = f'"bin-path" => "{script}"\n"max-procs" => 1\n"fix-root-scriptname" => "enable"'
    return Lighttpd(folder, f"unix:{folder}/app.sock", user, options=options)


class SpawnFCGI(RealServer):
    """spawn-fcgi -n becomes the script, with the listening socket on descriptor 0."""

    program: ClassVar[str] = "spawn-fcgi"

    def __init__(self, folder: Path, script: Path, unix: bool = False) -> None:
        super().__init__(folder)
        self.script = script
        self.unix = unix

    @property
    def endpoint(self) -> str:
        return f"unix:{self.folder}/app.sock" if self.unix else f"tcp:127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        if self.unix:
            where = ["-s", f"{self.folder}/app.sock"]
        else:
            where = ["-a", "127.0.0.1", "-p", str(self.port)]
        return ["spawn-fcgi", "-n", *where, "--", str(self.script)]

    def accepts(self) -> bool:
        if not self.unix:
            return super().accepts()
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(f"{self.folder}/app.sock")
            except OSError:
                return False
        return True


def cgi(
    script: Path, body: bytes = b"", env: dict[str, str] | None = None, **streams: int
) -> subprocess.CompletedProcess[bytes]:
    """Run the script as a web server runs a CGI script (RFC 3875)."""
    variables = {
        **environment(),
        "GATEWAY_INTERFACE": "CGI/1.1",
        "REQUEST_METHOD": "POST" if body else "GET",
        "REQUEST_URI": "/cgi-bin/app.fcgi/x?y=1",
        "SCRIPT_NAME": "/cgi-bin/app.fcgi",
        "PATH_INFO": "/x",
        "QUERY_STRING": "y=1",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_SOFTWARE": "a test",
        **({"CONTENT_LENGTH": str(len(body))} if body else {}),
        **(env or {}),
    }
    given = {} if "stdin" in streams else {"input": body}
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [str(script)], env=variables, timeout=30, capture_output=True, **given, **streams
    )
