"""nginx in front of a FastCGI application."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import indent
from typing import ClassVar

from tests.servers.base import RealServer

STOCK_PARAMS = Path("/etc/nginx/fastcgi_params")
STOCK_SCGI_PARAMS = Path("/etc/nginx/scgi_params")

MAIN = """\
{user}daemon off;
worker_processes {workers};
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 0;
    large_client_header_buffers 8 32k;
    default_type application/octet-stream;
    upstream app {{
        server {backend};
{keepalive}
    }}
    server {{
        listen 127.0.0.1:{port};
        server_name localhost;
        root {root};
{locations}
    }}
}}
"""


def location(prefix: str = "/", *lines: str, params: str = "stock") -> str:
    """Give a location block that passes `prefix` on.

    `params` is "stock" for the file that nginx comes with, "port" for that without the line that
    takes the port out of HTTP_HOST, as Debian's has since 2026, or lines of one's own.
    """
    if params == "stock":
        params = f"include {STOCK_PARAMS};"
    elif params == "port":
        lines_of_stock = STOCK_PARAMS.read_text().splitlines()
        params = "\n".join(line for line in lines_of_stock if "HTTP_HOST" not in line)
    body = "\n".join(["fastcgi_pass app;", params, *lines])
    return f"location {prefix} {{\n{indent(body, '    ')}\n}}"


def scgi_location(prefix: str = "/", *lines: str) -> str:
    """Give a location block that passes `prefix` on over SCGI, with the file nginx comes with."""
    body = "\n".join(["scgi_pass app;", f"include {STOCK_SCGI_PARAMS};", *lines])
    return f"location {prefix} {{\n{indent(body, '    ')}\n}}"


class Nginx(RealServer):
    """`backend` is "unix:/path" or "127.0.0.1:port"; `keepalive` keeps FastCGI connections."""

    program: ClassVar[str] = "nginx"

    def __init__(
        self,
        folder: Path,
        backend: str,
        *locations: str,
        keepalive: bool = False,
        buffer_requests: bool = True,
        workers: int = 1,
        root: Path | None = None,
    ) -> None:
        super().__init__(folder)
        self.backend = backend
        self.locations = locations or (location("/"),)
        self.keepalive = keepalive
        self.buffer_requests = buffer_requests
        self.workers = workers
        self.root = root or folder

    def configure(self) -> None:
        common = []
        if self.keepalive:
            common.append("fastcgi_keep_conn on;")
        if not self.buffer_requests:
            common.append("fastcgi_request_buffering off;")
        blocks = "\n".join([*common, *self.locations])
        text = MAIN.format(
            # As root the workers would turn into nobody, who may not connect to our sockets.
            user="user root root;\n" if os.geteuid() == 0 else "",
            workers=self.workers,
            folder=self.folder,
            backend=self.backend,
            keepalive="        keepalive 16;" if self.keepalive else "",
            port=self.port,
            root=self.root,
            locations=indent(blocks, "        "),
        )
        (self.folder / "nginx.conf").write_text(text)

    def command(self) -> list[str]:
        folder = self.folder
        return [
            "nginx",
            "-p",
            f"{folder}/",
            "-c",
            f"{folder}/nginx.conf",
            "-e",
            f"{folder}/error.log",
        ]
