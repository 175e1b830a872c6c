"""Coroutines that await Deferreds and what is asyncio's, in FastCGISite, under twistd and nginx."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers import Nginx, Running, connect
from tests.servers.web import Answer, appears, request
from tests.twistd import Twistd, until

pytestmark = pytest.mark.requires_server("nginx")

TAC = """\
from twisted.application import service, strports
from fulgate.twisted import FastCGISite
from tests import async_site

application = service.Application("test")
site = FastCGISite(async_site.{kind})
strports.service("unix:site.sock:mode=666", site).setServiceParent(application)
"""
# These themselves use what Twisted deprecates.
MODULES = ("twisted.web.resource", "twisted.web.server", "twisted.web.static")
WARNINGS = ",".join(["error", *(f"ignore::DeprecationWarning:{name}" for name in MODULES)])


@dataclass
class Site:
    port: int
    twistd: Twistd
    reactor: str
    kind: str

    def ask(self, target: str, method: str = "GET") -> Answer:
        return request(self.port, target, method)

    def says(self, text: str) -> None:
        until(lambda: text in self.twistd.text(), self.twistd.text)


@pytest.fixture(params=["asyncio", "epoll"])
def reactor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["Page()", "klein"], ids=["resource", "klein"])
def site(
    folder: Path, running: Running, request: pytest.FixtureRequest, reactor: str
) -> Iterator[Site]:
    (folder / "app.tac").write_text(TAC.format(kind=request.param))
    options = ["-n", f"--reactor={reactor}", "-y", "app.tac"]
    env = {"PYTHONWARNINGS": WARNINGS}
    with Twistd(folder, *options, env=env, wait="starting on") as twistd:
        nginx = running(Nginx, f"unix:{folder}/site.sock", keepalive=True)
        yield Site(nginx.port, twistd, reactor, str(request.param))
        assert twistd.end() < 20
        text = twistd.text()
    for bad in ("Unhandled error in Deferred", "was destroyed but it is pending", "Warning"):
        assert bad not in text, text


def test_deferreds_on_any_reactor(site: Site) -> None:
    for _ in range(3):
        answer = site.ask("/deferreds")
        assert (answer.status, answer.body) == (200, b"[1, 2, 3]"), site.twistd.text()
        assert answer.headers["X-Async"] == "yes"
    head = site.ask("/deferreds", "HEAD")
    assert (head.status, head.body) == (200, b"")
    if site.kind != "klein":
        assert answer.headers["Content-Length"] == head.headers["Content-Length"] == "9"


@pytest.mark.parametrize("reactor", ["asyncio"], indirect=True)
def test_both_kinds_in_one_coroutine(site: Site) -> None:
    for _ in range(3):
        answer = site.ask("/both")
        assert (answer.status, answer.body) == (200, b"[1, 2, 3, 4, 5, 6, 1]"), site.twistd.text()
    assert site.ask("/sleep").body == b"slept"


@pytest.mark.parametrize("reactor", ["epoll"], indirect=True)
def test_without_the_loop_the_error_says_what_is_wanted(site: Site) -> None:
    pages = ("sleep", "event", "turn", "foreign")
    for page in pages:
        assert site.ask(f"/{page}").status == 500
    said = re.compile("RuntimeError: .*: asyncio's loop does not run: .*--reactor=asyncio")
    until(lambda: len(said.findall(site.twistd.text())) >= len(pages), site.twistd.text)
    assert site.ask("/deferreds").status == 200


def test_what_goes_wrong(site: Site) -> None:
    assert site.ask("/fails").status == 500
    site.says("LookupError: in a coroutine")
    if site.kind != "klein":  # which takes text, and answers for itself
        assert site.ask("/text").status == 500
        site.says("TypeError: a coroutine gives the body as bytes, not str")
        with pytest.raises(http.client.IncompleteRead):
            site.ask("/breaks")
        site.says("LookupError: in the middle")
        for target in ("/itself", "/itself?more=1"):
            assert site.ask(target).body == b"by itself"
    assert site.ask("/deferreds").status == 200


@pytest.mark.parametrize(
    ("reactor", "waits"),
    [("asyncio", "asyncio"), ("asyncio", "deferred"), ("epoll", "deferred")],
    indirect=["reactor"],
)
def test_a_client_that_goes_cancels_the_coroutine(site: Site, folder: Path, waits: str) -> None:
    for more in ("", "&fails=1"):
        report = folder / f"report{len(more)}"
        with connect(site.port) as client:
            target = f"/gone?waits={waits}&report={report}{more}"
            client.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            appears(Path(f"{report}.began"))
        kind = "asyncio.exceptions" if site.reactor == "asyncio" else "twisted.internet.defer"
        assert appears(report) == f"{kind}.CancelledError"
        if more:
            site.says("LookupError: when it cleaned up")
    assert site.ask("/deferreds").status == 200
