"""Real servers for the tests: web servers in front, and Fulgate itself as a process."""

from __future__ import annotations

from tests.servers.apache import Apache
from tests.servers.base import PATH, RealServer, Running, connect
from tests.servers.caddy import Caddy
from tests.servers.fulgate import Fulgate
from tests.servers.h2o import H2O
from tests.servers.haproxy import HAProxy
from tests.servers.lighttpd import Lighttpd, LighttpdNext
from tests.servers.nginx import Nginx

__all__ = [
    "H2O",
    "PATH",
    "Apache",
    "Caddy",
    "Fulgate",
    "HAProxy",
    "Lighttpd",
    "LighttpdNext",
    "Nginx",
    "RealServer",
    "Running",
    "connect",
]
