"""Fulgate over FastCGI behind each web server, run with the lines that the manual shows for it."""

# ruff: noqa: F403

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.alone import free_port
from tests.http_suite import *
from tests.http_suite import APP, MakeSite, Site
from tests.pages import configuration
from tests.servers import Fulgate, Running
from tests.servers.fulgate import ROOT
from tests.servers.snippets import SNIPPETS


@dataclass(frozen=True)
class Shown:
    """A configuration of a page: the first one of the web server's that holds `holds`.

    `more` are what is added to it, each a text of it and what stands there then: lines that the
    page names, without which this server collects an answer or refuses a large upload.
    """

    page: str
    web: str
    holds: str
    needs: tuple[str, ...]
    more: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


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
        text = configuration(one.page, one.web, one.holds, str(fulgate.folder), port)
        for old, new in one.more.items():
            assert text.count(old) == 1
            text = text.replace(old, new)
        return Site(running(SNIPPETS[one.web], text, port), fulgate, **one.facts)

    return make


def test_what_is_added_stands_on_the_page() -> None:
    for one in SHOWN.values():
        page = (ROOT / "docs" / one.page).read_text()
        for old, new in one.more.items():
            for line in new.splitlines():
                words = line.replace(old, "").strip().rstrip(";")
                assert words in page, words
