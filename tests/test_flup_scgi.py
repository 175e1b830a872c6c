"""flup's SCGI servers, with their names and arguments."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from fulgate.errors import ConfigError
from fulgate.flup.request import Request
from fulgate.flup.server import NoDefault, scgi, scgi_fork
from fulgate.flup.server.scgi_base import BaseSCGIServer
from tests import flup
from tests import scgi as wire
from tests.alone import free_port
from tests.apps import app
from tests.flup import Program, reachable, serving, until
from tests.scgi import Answer, Peer
from tests.statements import query

KINDS = ["scgi", "scgi_fork"]


def ask(address: Any, path: str = "/hello", **params: str) -> Answer:
    with Peer(address) as peer:
        peer.send(wire.request(path, "", b"", **params))
        return peer.answer()


def about(program: Program) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(ask(program.address, "/about").body)
    return facts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("number", "returned"), [(signal.SIGTERM, False), (signal.SIGHUP, True)])
def test_it_serves_until_a_signal(folder: Path, kind: str, number: int, returned: bool) -> None:
    with flup.server(folder, kind) as program:
        for _ in range(3):
            assert ask(program.address).body == b"Hello, world!\n"
        facts = about(program)
        assert facts["multithread"] is (kind == "scgi")
        assert facts["multiprocess"] is (kind == "scgi_fork")
        assert (facts["pid"] in program.children()) is (kind == "scgi_fork")
        assert program.ends(number) == 0
        assert program.log() == f"returned {returned}\n"
    assert not (folder / "flup.sock").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_that_runs_is_finished_at_the_end(folder: Path, kind: str) -> None:
    go = folder / "go"
    with flup.server(folder, kind) as program, Peer(program.address) as peer:
        peer.send(wire.request("/stream", query(go=go)))
        peer.until(b"first\n")
        program.kill(signal.SIGTERM)
        until(lambda: not reachable(program.address), "it stops to listen")
        go.touch()
        assert peer.answer().body == b"first\nsecond\n"
        assert program.ends() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_who_may_connect(folder: Path, kind: str) -> None:
    cases: list[tuple[list[str] | None, bool]]
    cases = [(None, True), (["127.0.0.1"], True), (["10.0.0.0/8"], False), ([], False)]
    for allowed, answers in cases:
        address = ("127.0.0.1", free_port())
        with flup.server(folder, kind, address, allowedServers=allowed) as program:
            if answers:
                assert ask(address).body == b"Hello, world!\n"
            else:
                with Peer(address) as peer:
                    assert peer.closed()
            assert program.ends(signal.SIGTERM) == 0
    with flup.server(folder, kind, allowedServers=[]) as program:
        assert ask(program.address).status == 200  # a Unix socket has its permissions


def shows(environ: dict[str, Any], start: Any) -> Iterable[Any]:
    start(b"200 OK", [(b"Content-Type", b"text/plain")])
    names = ("SCRIPT_NAME", "PATH_INFO", "SITE", "wsgi.url_scheme")
    return [json.dumps({name: environ.get(name) for name in names})]  # text, as flup takes it


def seen(folder: Path, path: str, params: dict[str, str], **arguments: Any) -> dict[str, Any]:
    address = str(folder / "s")
    with serving(scgi.WSGIServer(shows, bindAddress=address, **arguments), address):
        facts: dict[str, Any] = json.loads(ask(address, path, **params).body)
        return facts


def test_what_the_application_sees(folder: Path) -> None:
    facts = seen(folder, "/a/b", {"HTTPS": "on"}, environ={"SITE": "here"})
    assert facts == {
        "SCRIPT_NAME": "", "PATH_INFO": "/a/b", "SITE": "here", "wsgi.url_scheme": "https",
    }  # fmt: skip
    for name in ("", "/", NoDefault):
        assert seen(folder, "/a/b", {}, scriptName=name)["PATH_INFO"] == "/a/b"
    for name in ("/a", "/a/", "a"):
        facts = seen(folder, "/a/b", {}, scriptName=name)
        assert (facts["SCRIPT_NAME"], facts["PATH_INFO"]) == ("/a", "/b")
    # As it comes, whatever REQUEST_URI says.
    params = {"REQUEST_URI": "/y/x", "SERVER_SOFTWARE": "Apache"}
    facts = seen(folder, "/x", params, scriptName=None)
    assert (facts["SCRIPT_NAME"], facts["PATH_INFO"]) == ("", "/x")


def test_methods_that_programs_override(folder: Path) -> None:
    requests = list[Request]()

    class Mine(Request):
        pass

    class Handles(scgi.WSGIServer):
        requestClass = Mine

        def handler(self, request: Any) -> None:
            requests.append(request)
            if request.environ["PATH_INFO"] == "/fails":
                raise LookupError("broken")
            body = request.stdin.read()
            request.stdout.write("Status: 201 Created\r\nContent-Type: text/plain\r\n\r\n")
            request.stdout.write(body)

        def error(self, request: Any) -> None:
            request.stdout.write(b"Status: 503 Sorry\r\nContent-Type: text/plain\r\n\r\nsorry")

    address = str(folder / "s")
    with serving(Handles(app, bindAddress=address), address):
        with Peer(address) as peer:
            peer.send(wire.request(body=b"a body"))
            got = peer.answer()
        assert (got.status, got.body) == (201, b"a body")
        got = ask(address, "/fails")
        assert (got.status, got.body) == (503, b"sorry")
    assert {type(request) for request in requests} == {Mine}


def test_a_request_that_takes_too_long(folder: Path) -> None:
    with flup.server(folder, "scgi_fork", timeout=1) as program:
        assert ask(program.address, "/sleep").status == 500
        assert "TimeoutException: the request took longer than 1 s" in program.log()
        assert ask(program.address).status == 200


def test_a_pool_of_ones_own_gets_jobs(folder: Path) -> None:
    class Own(scgi.WSGIServer):
        jobs = 0

        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            pool = self._threadPool
            outer = self

            class Pool:
                def addJob(self, job: Any, allowQueuing: bool = True) -> bool:
                    outer.jobs += 1
                    return bool(pool.addJob(job, allowQueuing))

                shutdown = pool.shutdown

            self._threadPool = Pool()

    address = str(folder / "s")
    server = Own(app, bindAddress=address)
    with serving(server, address):
        for _ in range(3):
            assert ask(address).body == b"Hello, world!\n"
    assert server.jobs >= 3


def test_defaults_and_mistakes() -> None:
    for module in (scgi, scgi_fork):
        server = module.WSGIServer(app)
        assert server._bindAddress == ("localhost", 4000)
        assert server.scriptName is NoDefault
        with pytest.raises(ConfigError, match="allowed_clients"):
            module.WSGIServer(app, allowedServers=["nonsense"])
    assert not BaseSCGIServer(app)._isClientAllowed(("192.0.2.1", 1))
    assert BaseSCGIServer(app)._isClientAllowed(("127.0.0.1", 1))
