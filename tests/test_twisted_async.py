"""Coroutines under Twisted: ASGI applications, and handlers of FastCGISite."""

from __future__ import annotations

from pathlib import Path

import pytest

from fulgate import ConfigError
from fulgate.twisted import FastCGIService
from tests.twistd import Twistd, ask, until

APP = """\
import asyncio, threading
from pathlib import Path
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        if Path("refuse").exists():
            await send({"type": "lifespan.startup.failed", "message": "not today"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        Path("ended").touch()
        await send({"type": "lifespan.shutdown.complete"})
        return
    from twisted.internet import reactor
    if scope["path"] == "/deferred":  # of Twisted's, awaited in its loop
        await deferLater(reactor, 0.01, lambda: None).asFuture(asyncio.get_running_loop())
    body = threading.current_thread().name.encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""


@pytest.fixture
def home(folder: Path) -> Path:
    (folder / "async_app.py").write_text(APP)
    return folder


@pytest.mark.parametrize("daemon", [True, False], ids=["daemon", "foreground"])
def test_in_the_loop_of_the_reactor(home: Path, daemon: bool) -> None:
    endpoint = f"unix:{home}/app.sock"
    options = ["--reactor=asyncio", "fastcgi", "--app", "async_app:app", "--bind", endpoint]
    with Twistd(home, *([] if daemon else ["-n"]), *options) as twistd:
        for path in ("/", "/deferred", "/"):
            assert ask(endpoint, path).body == b"MainThread"
        assert twistd.end() < 10
    assert (home / "ended").exists()
    assert not (home / "app.sock").exists()
    assert "Traceback" not in twistd.text()


def test_in_a_thread_beside_another_reactor(home: Path) -> None:
    endpoint = f"unix:{home}/app.sock"
    with Twistd(home, "-n", "fastcgi", "--app", "async_app:app", "--bind", endpoint) as twistd:
        assert ask(endpoint).body == b"fulgate-loop"
        assert twistd.end() < 10
    assert (home / "ended").exists()


def test_a_startup_that_fails_ends_twistd(home: Path) -> None:
    (home / "refuse").touch()
    options = ["--bind", f"unix:{home}/app.sock"]
    with Twistd(
        home, "-n", "--reactor=asyncio", "fastcgi", "--app", "async_app:app", *options
    ) as twistd:
        until(twistd.ended, twistd.text)
        assert "the application's startup failed: not today" in twistd.text()


TAC = """\
from twisted.application import service, strports
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.web.resource import Resource
from fulgate.twisted import FastCGIService, FastCGISite
from async_app import app

class Page(Resource):
    isLeaf = True

    async def render_GET(self, request):
        await deferLater(reactor, 0.01, lambda: None)
        if request.path == b"/fails":
            raise LookupError("in a coroutine")
        request.setHeader("X-Async", "yes")
        return b"awaited"

application = service.Application("test")
strports.service("unix:site.sock", FastCGISite(Page())).setServiceParent(application)
FastCGIService("unix:app.sock", asgi=app).setServiceParent(application)
"""


def test_handlers_of_a_site_may_be_coroutines(home: Path) -> None:
    (home / "app.tac").write_text(TAC)
    with Twistd(home, "-n", "-y", "app.tac") as twistd:
        answer = ask(f"unix:{home}/site.sock")
        assert answer.body == b"awaited"
        assert ask(f"unix:{home}/site.sock", "/fails").status == 500
        until(lambda: "in a coroutine" in twistd.text(), twistd.text)
        assert ask(f"unix:{home}/app.sock").body == b"fulgate-loop"


def test_one_application_is_wanted() -> None:
    with pytest.raises(ConfigError, match="two applications"):
        FastCGIService(wsgi="a:b", asgi="a:c")
    with pytest.raises(ConfigError, match="no application"):
        FastCGIService()
