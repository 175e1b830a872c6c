"""flup's AJP servers, with their names and arguments."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from fulgate.flup.server import ajp, ajp_fork
from fulgate.flup.server.ajp_base import BaseAJPServer
from tests import flup
from tests.ajp_model import Answer, forward
from tests.ajp_peer import Peer
from tests.alone import free_port
from tests.apps import app
from tests.flup import reachable, serving, until
from tests.statements import query

KINDS = ["ajp", "ajp_fork"]


def ask(address: Any, path: str = "/hello", data: bytes = b"", **options: Any) -> Answer:
    with Peer(address) as peer:
        return peer.ask(path, data, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("number", "returned"), [(signal.SIGTERM, False), (signal.SIGHUP, True)])
def test_it_serves_until_a_signal(folder: Path, kind: str, number: int, returned: bool) -> None:
    with flup.server(folder, kind) as program:
        with Peer(program.address) as kept:
            for _ in range(3):
                assert kept.ask().body == b"Hello, world!\n"
                kept.ping()
        facts = json.loads(ask(program.address, "/about").body)
        assert facts["multithread"] is (kind == "ajp")
        assert facts["multiprocess"] is (kind == "ajp_fork")
        assert (facts["pid"] in program.children()) is (kind == "ajp_fork")
        body = bytes(300_000)
        assert json.loads(ask(program.address, "/digest", body).body)["length"] == len(body)
        assert program.ends(number) == 0
        assert program.log() == f"returned {returned}\n"
    assert not (folder / "flup.sock").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_end_with_a_request_that_runs_and_a_connection_that_is_kept(
    folder: Path, kind: str
) -> None:
    """flup does not even try to end: the web server has to let go of what it keeps."""
    go = folder / "go"
    with (
        flup.server(folder, kind) as program,
        Peer(program.address) as peer,
        Peer(program.address) as kept,
    ):
        assert kept.ask().body == b"Hello, world!\n"
        peer.send(forward(uri="/stream", attributes=[("query_string", query(go=go))]))
        peer.until(b"first\n")
        program.kill(signal.SIGTERM)
        until(lambda: not reachable(program.address), "it stops to listen")
        go.touch()
        assert peer.answer().body == b"first\nsecond\n"
        assert kept.closed()
        assert program.ends() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_who_may_connect(folder: Path, kind: str) -> None:
    cases: list[tuple[list[str] | None, bool]]
    cases = [(None, True), (["127.0.0.1"], True), (["10.0.0.0/8"], False)]
    for allowed, answers in cases:
        address = ("127.0.0.1", free_port())
        with flup.server(folder, kind, address, allowedServers=allowed) as program:
            if answers:
                assert ask(address).body == b"Hello, world!\n"
            else:
                with Peer(address) as peer:
                    assert peer.closed()
            assert program.ends(signal.SIGTERM) == 0


def shows(environ: dict[str, Any], start: Any) -> Iterable[Any]:
    start(b"200 OK", [(b"Content-Type", b"text/plain")])
    return [json.dumps({name: v for name, v in environ.items() if isinstance(v, str)})]


def test_what_the_application_sees(folder: Path) -> None:
    address = str(folder / "s")
    server = ajp.WSGIServer(shows, "/a", {"SITE": "here"}, bindAddress=address)
    with serving(server, address):
        facts = json.loads(
            ask(
                address,
                "/a/b%20c",
                headers=[("X-Role", "client")],
                attributes=[("context", "/c"), ("route", "r"), ("ssl_cert", "PEM"),
                            ("ssl_cipher", "AES"), ("ssl_session", "5e55")],
                named=[("ROLE", "admin"), ("SCRIPT_NAME", "other"), ("HTTP_X_ROLE", "other"),
                       ("AJP_REMOTE_PORT", "4711")],
                ssl=True,
                key_size=256,
            ).body
        )  # fmt: skip
    expected = {
        "SCRIPT_NAME": "/a",
        "PATH_INFO": "/b c",
        "SITE": "here",
        "wsgi.url_scheme": "https",
        "CONTEXT": "/c",
        "JVM_ROUTE": "r",
        "SSL_CERT": "PEM",
        "SSL_CIPHER": "AES",
        "SSL_SESSION": "5e55",
        "SSL_KEY_SIZE": "256",
        "ROLE": "admin",
        "HTTP_X_ROLE": "client",
        "AJP_REMOTE_PORT": "4711",
        "REMOTE_PORT": "4711",
    }
    assert {name: facts.get(name) for name in expected} == expected


def test_methods_that_programs_override(folder: Path) -> None:
    class Handles(ajp.WSGIServer):
        def handler(self, request: Any) -> None:
            if request.environ["PATH_INFO"] == "/fails":
                raise LookupError("broken")
            body = request.stdin.read()
            request.stdout.write("Status: 201 Created\r\nContent-Type: text/plain\r\n\r\n")
            request.stdout.write(body)

        def error(self, request: Any) -> None:
            request.stdout.write(b"Status: 503 Sorry\r\nContent-Type: text/plain\r\n\r\nsorry")

    address = str(folder / "s")
    with serving(Handles(app, bindAddress=address), address):
        got = ask(address, data=b"a body")
        assert (got.status, got.body) == (201, b"a body")
        got = ask(address, "/fails")
        assert (got.status, got.body) == (503, b"sorry")


def test_a_request_that_takes_too_long(folder: Path) -> None:
    with flup.server(folder, "ajp_fork", timeout=1) as program:
        assert ask(program.address, "/sleep").status == 500
        assert "TimeoutException: the request took longer than 1 s" in program.log()
        assert ask(program.address).status == 200


def test_defaults() -> None:
    for module in (ajp, ajp_fork):
        server = module.WSGIServer(app)
        assert server._bindAddress == ("localhost", 8009)
        assert server.scriptName == ""
    assert not BaseAJPServer(app)._isClientAllowed(("192.0.2.1", 1))
    assert BaseAJPServer(app)._isClientAllowed(("127.0.0.1", 1))
