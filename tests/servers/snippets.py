"""Web servers run with the lines that a page of the manual shows, at a port that is given."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import ClassVar

from tests.servers.apache import Apache
from tests.servers.base import RealServer
from tests.servers.nginx import STOCK_PARAMS, STOCK_SCGI_PARAMS

__all__ = ["SNIPPETS", "Snippet"]


class Snippet(RealServer):
    """A web server that is run with what a page says, in the frame that every page leaves out."""

    file: ClassVar[str]
    frame: ClassVar[str]
    arguments: ClassVar[list[str]]
    as_root: ClassVar[str] = ""  # what keeps root's privileges, so that it may use our sockets

    def __init__(self, folder: Path, text: str, port: int) -> None:
        super().__init__(folder)
        self.text = text
        self.fixed_port = port

    def configure(self) -> None:
        text = self.frame
        for name, value in {
            "@folder": str(self.folder),
            "@port": str(self.port),
            "@root": self.as_root if os.geteuid() == 0 else "",
            "@text": self.text,
        }.items():
            text = text.replace(name, value)
        (self.folder / self.file).write_text(text)

    def command(self) -> list[str]:
        folder = str(self.folder)
        return [self.program, *(a.replace("@folder", folder) for a in self.arguments)]


class Nginx(Snippet):
    program = "nginx"
    as_root = "user root root;"
    file = "nginx.conf"
    arguments: ClassVar[list[str]] = [
        *("-p", "@folder/", "-c", "@folder/nginx.conf", "-e", "@folder/error.log")
    ]
    frame = """\
@root
daemon off;
pid @folder/nginx.pid;
error_log @folder/error.log info;
events {}
http {
    access_log off;
    client_body_temp_path @folder/body;
    proxy_temp_path @folder/proxy;
    fastcgi_temp_path @folder/fastcgi;
    uwsgi_temp_path @folder/uwsgi;
    scgi_temp_path @folder/scgi;
    @text
}
"""

    def configure(self) -> None:
        shutil.copy(STOCK_PARAMS, self.folder)
        shutil.copy(STOCK_SCGI_PARAMS, self.folder)
        super().configure()


class Lighttpd(Snippet):
    program = "lighttpd"
    file = "lighttpd.conf"
    arguments: ClassVar[list[str]] = ["-D", "-f", "@folder/lighttpd.conf"]
    frame = """\
server.bind = "127.0.0.1"
server.port = @port
server.document-root = "@folder"
server.errorlog = "@folder/error.log"
server.upload-dirs = ("@folder")
@text
"""


class Caddy(Snippet):
    program = "caddy"
    file = "Caddyfile"
    arguments: ClassVar[list[str]] = [
        *("run", "--adapter", "caddyfile", "--config", "@folder/Caddyfile")
    ]
    frame = "{\n    admin off\n    auto_https off\n}\n@text"

    def environment(self) -> dict[str, str]:
        folder = str(self.folder)
        return {**super().environment(), "XDG_DATA_HOME": folder, "XDG_CONFIG_HOME": folder}


class HAProxy(Snippet):
    program = "haproxy"
    file = "haproxy.cfg"
    arguments: ClassVar[list[str]] = ["-db", "-f", "@folder/haproxy.cfg"]
    frame = """\
global
    log stderr format raw local0
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
@text
"""


class H2O(Snippet):
    program = "h2o"
    file = "h2o.yaml"
    arguments: ClassVar[list[str]] = ["-m", "worker", "-c", "@folder/h2o.yaml"]
    frame = """\
@root
listen:
  host: 127.0.0.1
  port: @port
pid-file: @folder/h2o.pid
error-log: @folder/error.log
@text
"""
    as_root = "user: root"


class FixedApache(Apache):
    def __init__(self, folder: Path, text: str, port: int) -> None:
        super().__init__(folder, text, modules=("jk",) if "JkMount" in text else ())
        self.fixed_port = port


SNIPPETS = {
    "nginx": Nginx,
    "apache": FixedApache,
    "lighttpd": Lighttpd,
    "caddy": Caddy,
    "haproxy": HAProxy,
    "h2o": H2O,
}
