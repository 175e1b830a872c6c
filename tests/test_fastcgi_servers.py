"""Fulgate over FastCGI behind each web server, run with the lines that the manual shows for it."""

# ruff: noqa: F403

from __future__ import annotations

import pytest

from tests.alone import free_port
from tests.http_suite import *
from tests.http_suite import APP, MakeSite, Site
from tests.pages import Shown
from tests.servers import Fulgate, Running
from tests.servers.snippets import SNIPPETS

OTHERS = "other-servers.md"
PASS = "fastcgi_pass fulgate;"
SHOWN = {
    "nginx": Shown(
        "nginx.md", "nginx", "upstream", ("nginx",),
        {PASS: f"{PASS}\nfastcgi_buffering off;\nclient_max_body_size 2g;"},
    ),
    "nginx, uploads": Shown(
        "nginx.md", "nginx", "fastcgi_request_buffering off", ("nginx",),
        {PASS: f"{PASS}\nfastcgi_buffering off;"},
    ),
    "mod_proxy_fcgi": Shown(
        OTHERS, "apache", 'ProxyPass "/"', ("apache2",),
        {'localhost/"': 'localhost/" flushpackets=on'},
    ),
    "lighttpd": Shown(
        OTHERS, "lighttpd", "fix-root-scriptname", ("lighttpd",),
        {"server.modules": "server.stream-response-body = 1\nserver.modules"},
    ),
    "Caddy": Shown(
        OTHERS, "caddy", ":", ("caddy",),
        {"transport": "flush_interval -1\n        transport"},
        # It takes the end of the connection for the answer's, and reads on without a client.
        {"sees_breaks": False, "tells_of_leaving": False},
    ),
    "HAProxy": Shown(OTHERS, "haproxy", "fcgi-app", ("haproxy",), facts={"chunked": 400}),
    "HAProxy, several at once": Shown(
        OTHERS, "haproxy", "mpxs-conns", ("haproxy",),
        facts={"chunked": 400},
    ),
    "H2O": Shown(OTHERS, "h2o", '"/"', ("h2o",), facts={"sees_breaks": False}),
}  # fmt: skip


@pytest.fixture(
    params=[
        pytest.param(one, id=name, marks=pytest.mark.requires_server(*one.needs))
        for name, one in SHOWN.items()
    ]
)
def site(running: Running, request: pytest.FixtureRequest) -> MakeSite:
    one: Shown = request.param

    def make(*options: str) -> Site:
        fulgate = running(Fulgate, APP, *options)
        port = free_port()
        text = one.text(str(fulgate.folder), port)
        return Site(running(SNIPPETS[one.web], text, port), fulgate, **one.facts)

    return make


@pytest.mark.parametrize("name", SHOWN)
def test_what_is_added_stands_on_the_page(name: str) -> None:
    assert SHOWN[name].unsaid() == []
