"""appStatus carries the exit status of what is served, in each role and on each driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fulgate import FilterRequest, Roles, Server, authorizer, filter
from fulgate.gateways.roles import AuthorizerRequest
from tests.driver_suite.kit import Log
from tests.every_driver import MakeServed, driver, log, loop, make_server
from tests.model import DATA, PARAMS, STDIN, Answer
from tests.raw import Raw, begin, environ, pairs, stream

__all__ = ["driver", "log", "loop", "make_server"]

PROTOCOL = "fastcgi"
RESPONDER, AUTHORIZER, FILTER = 1, 2, 3

# Those that serve roles. In an event loop there is ASGI alone, which is a responder's.
DRIVERS = ["threads", "inline", "twisted"]

# What the application exits with, and the appStatus that is.
EXITS: dict[str, tuple[Any, int]] = {
    "number": (7, 7),
    "none": (None, 0),
    "zero": (0, 0),
    "true": (True, 1),
    "text": ("a word", 1),
    "negative": (-1, 0xFFFFFFFF),
    "large": (2**32 + 5, 5),
}


def leave(path: str) -> None:
    raise SystemExit(EXITS[path.strip("/")][0])


def responds(environ: dict[str, Any], start: Any) -> list[bytes]:
    leave(environ["PATH_INFO"])
    raise AssertionError


@authorizer
def check(request: AuthorizerRequest) -> Any:
    leave(request.params["REQUEST_URI"])


@filter
def handle(request: FilterRequest) -> Any:
    leave(request.params["PATH_INFO"])


def ask(raw: Raw, role: int, path: str) -> Answer:
    raw.expect()
    raw.send(begin(1, role), stream(PARAMS, 1, pairs(environ(path, FCGI_DATA_LENGTH="4"))))
    if role != AUTHORIZER:
        raw.send(stream(STDIN, 1, b""))
    if role == FILTER:
        raw.send(stream(DATA, 1, b"page"))
    return raw.answer()


@pytest.mark.statement("25")
@pytest.mark.parametrize("driver", DRIVERS, indirect=True)
@pytest.mark.parametrize("role", [RESPONDER, AUTHORIZER, FILTER])
def test_the_exit_status_of_each_role(make_server: MakeServed, role: int, log: Log) -> None:
    served = make_server(Roles(responds, check, handle))
    with Raw(served.address) as raw:
        for name, (_, app_status) in EXITS.items():
            answer = ask(raw, role, f"/{name}")
            assert answer.app_status == app_status, name
            assert answer.stdout.startswith(b"Status: 500 "), name
    assert log.tracebacks()


@pytest.mark.statement("25")
@pytest.mark.parametrize("driver", DRIVERS, indirect=True)
@pytest.mark.parametrize("role", [RESPONDER, FILTER])
def test_an_exit_once_the_answer_has_begun_breaks_it(
    make_server: MakeServed, role: int, log: Log
) -> None:
    """No END_REQUEST tells it then: web servers would take the half for the whole."""

    def late(environ: dict[str, Any], start: Any) -> Any:
        start("200 OK", [("Content-Type", "text/plain")])
        yield b"written"
        raise SystemExit(3)

    served = make_server(Roles(late, check, late))
    with Raw(served.address) as raw:
        with pytest.raises(EOFError, match="written"):
            ask(raw, role, "/")
    assert log.tracebacks()


@pytest.mark.statement("25")
@pytest.mark.parametrize("loop_name", ["asyncio", "uvloop"])
def test_the_exit_status_of_an_asgi_application(folder: Path, loop_name: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            leave(scope["path"])
        assert (await receive())["type"] == "lifespan.startup"
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    path = folder / "sock"
    server = Server(app, bind=(f"unix:{path}",), loop=loop_name)
    server.start()
    try:
        with Raw(path) as raw:
            for name, (_, app_status) in EXITS.items():
                answer = ask(raw, RESPONDER, f"/{name}")
                assert answer.app_status == app_status, name
                assert answer.stdout.startswith(b"Status: 500 "), name
    finally:
        server.stop(1.0)
