"""Real servers for the tests: web servers in front, and Fulgate itself as a process."""

from __future__ import annotations

from tests.servers.apache import Apache
from tests.servers.base import PATH, RealServer, Running, connect, free_port
from tests.servers.caddy import Caddy
from tests.servers.fulgate import Fulgate
from tests.servers.haproxy import HAProxy
from tests.servers.lighttpd import Lighttpd
from tests.servers.nginx import Nginx

__all__ = [
    "PATH",
    "Apache",
    "Caddy",
    "Fulgate",
    "HAProxy",
    "Lighttpd",
    "Nginx",
    "RealServer",
    "Running",
    "connect",
    "free_port",
]
