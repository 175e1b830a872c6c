"""Fulgate over SCGI behind nginx, Apache's mod_proxy_scgi and lighttpd's mod_scgi."""

# ruff: noqa: F403

from __future__ import annotations

from typing import Any

import pytest

from tests.alone import free_port
from tests.http_suite import *
from tests.http_suite import APP, MakeSite, Site, shown
from tests.servers import Apache, Fulgate, Lighttpd, Nginx, RealServer, Running
from tests.servers.nginx import scgi_location
from tests.servers.web import request

FIX_ROOT = '"fix-root-scriptname" => "enable"'
STREAM = "server.stream-response-body = 1"

WEB = ("nginx", "apache", "lighttpd")
SITES = [
    pytest.param(
        (web, over),
        id=f"{web}-{over}",
        marks=pytest.mark.requires_server(
            *{"apache": ("apache2", "mod_proxy_scgi")}.get(web, (web,))
        ),
    )
    for web in WEB
    for over in ("unix", "tcp")
]


def start(running: Running, web: str, backend: str) -> tuple[RealServer, dict[str, Any]]:
    """Start a web server, and tell in what it differs."""
    if web == "nginx":
        location = scgi_location("/", "scgi_buffering off;")
        return running(Nginx, backend, location), {}
    if web == "apache":
        url = f"{backend}|scgi://localhost" if "/" in backend else f"scgi://{backend}"
        return running(Apache, f'ProxyPass "/" "{url}/" flushpackets=on'), {"chunked": 411}
    found = running(Lighttpd, backend, STREAM, options=FIX_ROOT, protocol="scgi")
    return found, {}


@pytest.mark.requires_server("nginx")
def test_a_host_that_is_set_again_wins(running: Running) -> None:
    """Debian's scgi_params set HTTP_HOST, and nginx sends both; it does not name itself."""
    fulgate = running(Fulgate, APP, protocol="scgi")
    location = scgi_location("/", "scgi_param HTTP_HOST www.example;")
    nginx = running(Nginx, fulgate.backend, location)
    got = request(nginx.port, "/")
    assert got.status == 200
    assert shown(got.body)["HTTP_HOST"] == "www.example"


MOUNTS = {
    "nginx": lambda f, u: Nginx(f, u, scgi_location("/app/", "scgi_param SCRIPT_NAME /app;")),
    "apache2": lambda f, u: Apache(f, f'ProxyPass "/app/" "{u}|scgi://localhost/"'),
    "lighttpd": lambda f, u: Lighttpd(f, u, prefix="/app", protocol="scgi"),
}


@pytest.mark.parametrize(
    "web", [pytest.param(web, marks=pytest.mark.requires_server(web)) for web in MOUNTS]
)
def test_an_application_at_a_prefix(running: Running, web: str) -> None:
    fulgate = running(Fulgate, APP, protocol="scgi")
    server: RealServer = running(MOUNTS[web], fulgate.backend)
    for target, info in {"/app/x/y": "/x/y", "/app/": "/", "/app/caf%C3%A9": "/cafÃ©"}.items():
        environ = shown(request(server.port, target).body)
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/app", info)


@pytest.fixture(params=SITES)
def site(running: Running, request: pytest.FixtureRequest) -> MakeSite:
    web, over = request.param

    def make(*options: str) -> Site:
        port = free_port()
        tcp = ("--bind", f"scgi+tcp:127.0.0.1:{port}")
        fulgate = running(Fulgate, APP, *tcp, *options, protocol="scgi")
        backend = fulgate.backend if over == "unix" else f"127.0.0.1:{port}"
        found, facts = start(running, web, backend)
        return Site(found, fulgate, sees_breaks=over == "tcp", **facts)

    return make
