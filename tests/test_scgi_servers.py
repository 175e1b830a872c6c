"""Fulgate over SCGI behind nginx, Apache's mod_proxy_scgi and lighttpd's mod_scgi."""

# ruff: noqa: F403

from __future__ import annotations

from dataclasses import replace

import pytest
from _pytest.mark import ParameterSet

from tests.alone import free_port
from tests.http_suite import *
from tests.http_suite import APP, MakeSite, Site, shown
from tests.pages import Shown
from tests.servers import Fulgate, Nginx, Running
from tests.servers.nginx import scgi_location
from tests.servers.snippets import SNIPPETS
from tests.servers.web import request

PAGE = "scgi.md"
PASS = "scgi_pass fulgate;"
SOCKET = "/run/fulgate/app.sock"

SHOWN = {
    "nginx": Shown(
        PAGE, "nginx", "upstream", ("nginx",),
        {PASS: f"{PASS}\nscgi_buffering off;\nclient_max_body_size 2g;"},
    ),
    "apache": Shown(
        PAGE, "apache", 'ProxyPass "/"', ("apache2", "mod_proxy_scgi"),
        {'localhost/"': 'localhost/" flushpackets=on'}, {"chunked": 411},
    ),
    "lighttpd": Shown(
        PAGE, "lighttpd", "fix-root-scriptname", ("lighttpd",),
        {"server.modules": "server.stream-response-body = 1\nserver.modules"},
    ),
}  # fmt: skip
# What stands in the place of the socket, where the application is on a port.
OVER_TCP = {
    "nginx": {f"server unix:{SOCKET};": "server 127.0.0.1:9000;"},
    "apache": {f"unix:{SOCKET}|scgi://localhost/": "scgi://127.0.0.1:9000/"},
    "lighttpd": {f'"socket" => "{SOCKET}"': '"host" => "127.0.0.1", "port" => 9000'},
}
SITES = {
    **{f"{web}-unix": one for web, one in SHOWN.items()},
    **{
        f"{web}-tcp": replace(one, more={**one.more, **OVER_TCP[web]}) for web, one in SHOWN.items()
    },
}
MOUNTS = {
    "nginx": replace(
        SHOWN["nginx"],
        more={"location / {": "location /app/ {", PASS: f"scgi_param SCRIPT_NAME /app;\n{PASS}"},
    ),
    "apache": Shown(PAGE, "apache", 'ProxyPass "/app/"', SHOWN["apache"].needs),
    "lighttpd": replace(SHOWN["lighttpd"], more={'"/"': '"/app"'}),
}


def cases(shown: dict[str, Shown]) -> list[ParameterSet]:
    return [
        pytest.param(name, marks=pytest.mark.requires_server(*one.needs))
        for name, one in shown.items()
    ]


@pytest.mark.requires_server("nginx")
def test_a_host_that_is_set_again_wins(running: Running) -> None:
    """Debian's scgi_params set HTTP_HOST, and nginx sends both; it does not name itself."""
    fulgate = running(Fulgate, APP, protocol="scgi")
    location = scgi_location("/", "scgi_param HTTP_HOST www.example;")
    nginx = running(Nginx, fulgate.backend, location)
    got = request(nginx.port, "/")
    assert got.status == 200
    assert shown(got.body)["HTTP_HOST"] == "www.example"


@pytest.mark.parametrize("web", cases(MOUNTS))
def test_an_application_at_a_prefix(running: Running, web: str) -> None:
    fulgate = running(Fulgate, APP, protocol="scgi")
    port = free_port()
    running(SNIPPETS[web], MOUNTS[web].text(str(fulgate.folder), port), port)
    for target, info in {"/app/x/y": "/x/y", "/app/": "/", "/app/caf%C3%A9": "/cafÃ©"}.items():
        environ = shown(request(port, target).body)
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/app", info)


@pytest.fixture(params=cases(SITES))
def site(running: Running, request: pytest.FixtureRequest) -> MakeSite:
    one = SITES[request.param]
    over_tcp = request.param.endswith("-tcp")

    def make(*options: str) -> Site:
        backend, port = free_port(), free_port()
        tcp = ("--bind", f"scgi+tcp:127.0.0.1:{backend}")
        fulgate = running(Fulgate, APP, *tcp, *options, protocol="scgi")
        server = running(SNIPPETS[one.web], one.text(str(fulgate.folder), port, backend), port)
        return Site(server, fulgate, sees_breaks=over_tcp, **one.facts)

    return make


@pytest.mark.parametrize("one", [*SITES.values(), *MOUNTS.values()])
def test_what_is_added_stands_on_the_page(one: Shown) -> None:
    assert one.unsaid() == []
