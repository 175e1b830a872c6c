"""AJP over real sockets, on each driver."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.web.resource import Resource

from fulgate import ConfigError, Server
from fulgate.twisted import FastCGISite
from tests import ajp_model
from tests.ajp_model import body, forward, post
from tests.ajp_peer import Peer
from tests.driver_suite.kit import (
    TEXT,
    Environ,
    Flag,
    Gate,
    Log,
    Start,
    answer,
    digest,
    hello,
    pattern,
    until,
)
from tests.driver_suite.stopping import Stopper
from tests.every_driver import *  # noqa: F403
from tests.every_driver import SEVERAL_AT_ONCE, MakeServed
from tests.every_protocol import *  # noqa: F403
from tests.every_protocol import WIRES
from tests.raw import PATIENCE, Raw
from tests.test_ajp_refused import BROKEN
from tests.test_twisted_driver import Loop

PROTOCOL = "ajp"
both = WIRES[PROTOCOL].both


def test_many_requests_on_one_connection(make_server: MakeServed) -> None:
    served = make_server(hello)
    for peer in both(served):
        for _ in range(20):
            got = peer.ask()
            assert (got.status, got.reason, got.body, got.reuse) == (200, "OK", b"hello\n", True)
            peer.ping()


def test_what_an_application_sees(make_server: MakeServed) -> None:
    seen = list[Environ]()

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        seen.append(dict(environ, body=environ["wsgi.input"].read()))
        return answer(start)

    served = make_server(app)
    with Peer(served.address) as peer:
        peer.ask(
            "/a%20b",
            b"body",
            headers=[("X-Thing", "thing"), ("Proxy", "evil"), ("X_Thing", "forged")],
            attributes=[("query_string", "x=1"), ("remote_user", "ada")],
            named=[("ROLE", "admin")],
        )
    expected = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a b",
        "QUERY_STRING": "x=1",
        "CONTENT_LENGTH": "4",
        "REMOTE_USER": "ada",
        "HTTP_X_THING": "thing",
        "AJP_ROLE": "admin",
        "body": b"body",
        "wsgi.input_terminated": True,
    }
    assert {name: seen[0].get(name) for name in expected} == expected
    assert "HTTP_PROXY" not in seen[0]


@pytest.mark.parametrize("how", ["known", "chunked", "http2"])
@pytest.mark.parametrize("size", [0, 1, 1000, 65_536, 3_000_000])
def test_bodies(make_server: MakeServed, size: int, how: str) -> None:
    data = pattern(size)
    served = make_server(digest)
    for peer in both(served):
        for _ in range(2):
            got = peer.ask("/", data, how)
            assert got.body.decode() == hashlib.sha256(data).hexdigest()
            assert got.reuse


@pytest.mark.parametrize("how", ["known", "chunked", "http2"])
@pytest.mark.parametrize("buffer", [0, 20_000])
def test_a_body_is_asked_for_when_it_is_wanted(
    make_server: MakeServed,
    how: str,
    buffer: int,
) -> None:
    """Whatever is kept ahead, and however it comes."""

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        read = environ["wsgi.input"].read
        first = read(1)
        rest = read()
        return answer(start, hashlib.sha256(first + rest).hexdigest().encode())

    data = pattern(300_000)
    served = make_server(app, body_buffer=buffer, body_wait=0.0)
    with Peer(served.address, piece=3001) as peer:
        assert peer.ask("/", data, how).body.decode() == hashlib.sha256(data).hexdigest()


def test_an_answer_before_the_body_has_come_keeps_the_connection(
    make_server: MakeServed,
) -> None:
    served = make_server(hello, body_wait=0.0)
    trap = forward(uri="/forged")[4:].ljust(0x2FF, b"\0")
    for peer in both(served):
        peer.send(post(4_000_000))
        got = peer.answer()
        assert got.body == b"hello\n"
        assert got.reuse
        peer.send(body(trap))  # what is owed
        for _ in got.asked:
            peer.send(body(trap))
        assert peer.ask("/next").body == b"hello\n"
        assert len(peer.server.answers) == 2


def test_a_small_body_that_is_chunked_is_there_when_the_application_starts(
    make_server: MakeServed,
) -> None:
    """It is asked for at once: that nobody has to wait for `body_wait`."""
    served = make_server(digest, body_wait=PATIENCE)
    with Peer(served.address) as peer:
        got = peer.ask("/", b"small", "chunked")
        assert got.body.decode() == hashlib.sha256(b"small").hexdigest()


def test_limits_are_answered(make_server: MakeServed) -> None:
    served = make_server(hello, limit_params_size=1000, limit_request_body=10, limit_params=20)
    for data, status in (
        (forward(headers=[("cookie", "x" * 2000)]), 431),
        (forward(headers=[(f"x-{n}", "") for n in range(21)]), 431),
        (post(11), 413),
        (post(11) + body(bytes(11)), 413),
        (forward(headers=[("content-length", "0"), ("Content-Length", "5")]), 400),
        (post(10) + body(bytes(10)), 200),
    ):
        for peer in both(served):
            peer.send(data)
            got = peer.answer()
            assert got.status == status
            assert got.reuse == (status == 200)
    # One whose length is not told.
    for peer in both(served):
        assert peer.ask("/", bytes(100), "chunked").status == 413
        assert peer.closed()


def test_a_repeated_header_of_two_minds_is_a_bad_request(
    make_server: MakeServed,
) -> None:
    served = make_server(hello)
    with Peer(served.address) as peer:
        assert peer.ask(headers=[("X-User", "me"), ("X-User", "root")]).status == 400


def test_secret_is_required_when_set(make_server: MakeServed, log: Log) -> None:
    served = make_server(hello, ajp_secret="s3cret")
    for attributes in ([], [("secret", "wrong")]):
        for peer in both(served):
            before = len(log.lines())
            got = peer.ask(attributes=attributes)
            assert (got.status, got.reuse) == (403, False)
            assert peer.closed()
            until(lambda before=before: len(log.lines()) > before, "it is not logged")  # type: ignore[misc]
            [line] = log.lines()[before:]
            assert "the secret is wrong, or missing" in line
            assert "s3cret" not in line
    for peer in both(served):
        peer.ping()
        assert peer.ask(attributes=[("secret", "s3cret")]).body == b"hello\n"


def test_packets_of_another_size(make_server: MakeServed, log: Log) -> None:
    """The head of an answer has to fit into one."""

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        start("200 OK", [*TEXT, ("X-Large", "x" * 20_000)])
        return [bytes(100_000)]

    small = make_server(app)
    with Peer(small.address) as peer:
        assert peer.ask().status == 500
    assert log.tracebacks() == 1
    large = make_server(app, ajp_packet_size=32768)
    with Peer(large.address, size=32768) as peer:
        got = peer.ask()
        assert got.status == 200
        assert len(got.pieces[0]) == 32760
        assert got.body == bytes(100_000)


def test_hostile_bytes_cost_a_line_and_a_connection(
    make_server: MakeServed,
    log: Log,
) -> None:
    gate = Gate()
    served = make_server(gate)
    for name, data in BROKEN.items():
        for peer in both(served):
            before = len(log.lines())
            peer.send(data)
            assert peer.closed() or data.startswith((forward(), post(3))), name
            until(lambda before=before: len(log.lines()) > before, name)  # type: ignore[misc]
            assert len(log.lines()) == before + 1, (name, log.lines()[before:])
    with Peer(served.address) as peer:
        assert peer.ask("/whole").body == b"/whole"


def test_an_answer_that_breaks_does_not_pass_for_whole(
    make_server: MakeServed,
    log: Log,
) -> None:
    def app(environ: Environ, start: Start) -> Iterator[bytes]:
        start("200 OK", TEXT)
        yield b"first"
        raise LookupError("broken")

    served = make_server(app)
    for peer in both(served):
        with pytest.raises(ConnectionError):
            peer.ask()
        assert peer.server.answer.body == b"first"
    until(lambda: log.tracebacks() or None, "it was not logged")


def test_a_piece_is_flushed(make_server: MakeServed) -> None:
    go = Flag()

    def app(environ: Environ, start: Start) -> Iterator[bytes]:
        start("200 OK", TEXT)
        yield b"tick"
        go.come()
        yield b"tock"

    served = make_server(app)
    with Peer(served.address) as peer:
        peer.send(forward())
        peer.until(b"tick")
        until(lambda: peer.server.answer.pieces[-1] == b"" or peer.receive(PATIENCE), "no flush")
        go.set()
        assert peer.answer().body == b"ticktock"


@pytest.mark.parametrize("driver", SEVERAL_AT_ONCE, indirect=True)
def test_a_thread_that_is_free_again(make_server: MakeServed) -> None:
    """A connection whose request was turned away goes on."""
    gate = Gate()
    served = make_server(gate, threads=1, queue=0)
    with Peer(served.address) as held, Peer(served.address) as peer:
        held.send(forward(uri="/wait"))
        until(lambda: gate.inside == 1, "it did not start")
        peer.ping()
        assert peer.ask().status == 503
        gate.open.set()
        assert held.answer().body == b"/wait"
        until(lambda: peer.ask("/later").body == b"/later", "no thread is free")


@pytest.mark.parametrize("driver", SEVERAL_AT_ONCE, indirect=True)
def test_a_request_that_is_under_way_ends_at_a_stop(make_server: MakeServed) -> None:
    gate = Gate()
    served = make_server(gate)
    with Peer(served.address) as held, Peer(served.address) as idle:
        assert idle.ask("/a").body == b"/a"
        held.send(forward(uri="/wait"))
        until(lambda: gate.inside == 1, "it did not start")
        stopper = Stopper(served, PATIENCE)
        assert idle.closed()
        gate.open.set()
        assert held.answer().body == b"/wait"
        assert stopper.result() is True


@pytest.mark.parametrize("how", ["known", "chunked", "http2"])
@pytest.mark.parametrize("buffer", [0, 65_536])
def test_asgi(folder: Path, how: str, buffer: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        sha256 = hashlib.sha256()
        more = scope["path"] != "/at-once"
        while more:
            message = await receive()
            sha256.update(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": sha256.hexdigest().encode()})

    with Server(app, bind=(f"ajp+unix:{folder}/a",), lifespan="off", body_buffer=buffer):
        with Peer(f"{folder}/a", piece=3001) as peer:
            for size in (0, 1, 1000, 300_000):
                data = pattern(size)
                got = peer.ask("/", data, how)
                assert got.body.decode() == hashlib.sha256(data).hexdigest()
                assert peer.ask("/at-once", data, how).status == 200
            peer.ping()


def test_asgi_has_no_websockets_here(folder: Path) -> None:
    """Apache passes Upgrade on, and would not pass the frames on."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": scope["type"].encode()})

    headers = [("Upgrade", "websocket"), ("connection", "Upgrade"), ("Sec-WebSocket-Key", "a" * 24)]
    headers.append(("Sec-WebSocket-Version", "13"))
    with Server(app, bind=(f"ajp+unix:{folder}/a",), lifespan="off"), Peer(f"{folder}/a") as peer:
        assert peer.ask(headers=headers).body == b"http"


class Digest(Resource):
    isLeaf = True

    def render_POST(self, request: Any) -> bytes:
        return hashlib.sha256(request.content.read()).hexdigest().encode()


@pytest.mark.parametrize("how", ["known", "chunked", "http2"])
@pytest.mark.parametrize("buffer", [0, 65_536])
def test_site_of_twisted(loop: Loop, folder: Path, how: str, buffer: int) -> None:
    page: Any = Digest
    factory = FastCGISite(page(), reactor=loop.reactor, protocol="ajp", body_buffer=buffer)
    port = loop(loop.reactor.listenUNIX, f"{folder}/a", factory)
    try:
        with Peer(f"{folder}/a", piece=3001) as peer:
            for size in (1, 1000, 300_000):
                data = pattern(size)
                got = peer.ask("/", data, how)
                assert got.body.decode() == hashlib.sha256(data).hexdigest()
                assert got.reuse
    finally:
        loop(port.stopListening)


def test_all_protocols_in_one_process(folder: Path) -> None:
    endpoints = (f"unix:{folder}/f", f"ajp+unix:{folder}/a", "ajp+tcp:127.0.0.1:0")
    with Server(hello, bind=endpoints) as server:
        assert server.endpoints[:2] == list(endpoints[:2])
        for _ in range(3):
            with Raw(f"{folder}/f") as raw, Peer(f"{folder}/a") as peer:
                assert raw.request().body == b"hello\n"
                assert peer.ask().body == b"hello\n"
        with Raw(server.listeners[2].getsockname()) as raw:
            raw.send(b"\x01\x01\x00\x01\x00\x08\x00\x00")
            assert raw.closed()
        with Peer(f"{folder}/f") as peer:
            peer.send(ajp_model.forward())
            assert peer.closed()


def test_status_and_pings_have_paths(folder: Path) -> None:
    settings: dict[str, Any] = {"status_path": "/status", "ping_path": "/ping"}
    with Server(hello, bind=(f"ajp+unix:{folder}/a",), **settings):
        with Peer(f"{folder}/a") as peer:
            for path, words in (("/ping", b"pong"), ("/status", b"requests"), ("/x", b"hello")):
                got = peer.ask(path)
                assert got.status == 200
                assert words in got.body


def test_a_request_that_takes_too_long(folder: Path) -> None:
    go = Flag()

    def app(environ: Environ, start: Start) -> Iterator[bytes]:
        start("200 OK", TEXT)
        if environ["PATH_INFO"] == "/begun":
            yield b"a part"
        until(lambda: go.is_set() or environ["fulgate.aborted"](), "it goes on")
        yield b"the rest"

    with Server(app, bind=(f"ajp+unix:{folder}/a",), request_timeout=1.0):
        with Peer(f"{folder}/a") as peer:
            assert peer.ask("/silent").status == 504
            assert peer.closed()
        with Peer(f"{folder}/a") as peer:
            with pytest.raises(ConnectionError):
                peer.ask("/begun")


def test_an_exposed_address_is_refused() -> None:
    server = Server(hello, bind=("ajp+tcp:0.0.0.0:0",))
    with pytest.raises(ConfigError, match=r"ajp\+tcp:0\.0\.0\.0:0 would let every machine"):
        server.start()
