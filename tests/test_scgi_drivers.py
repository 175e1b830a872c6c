"""SCGI over real sockets, on each driver."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fulgate
from fulgate import ConfigError, Server
from tests import scgi
from tests.driver_suite.files import FromFile, cut_off
from tests.driver_suite.kit import (
    TEXT,
    Environ,
    Flag,
    Gate,
    Log,
    Served,
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
from tests.scgi import Peer
from tests.test_scgi import HOSTILE

PROTOCOL = "scgi"
both = WIRES[PROTOCOL].both


def ask(served: Served, data: bytes) -> scgi.Answer:
    with Peer(served.address) as peer:
        peer.send(data)
        return peer.answer()


def test_one_request_a_connection(make_server: MakeServed) -> None:
    served = make_server(hello)
    for _ in range(3):
        for peer in both(served):
            peer.send(scgi.request(), scgi.request())
            got = peer.answer()
            assert got.status == 200
            assert got.body == b"hello\n"
            assert b"Status" not in got.body


def test_what_an_application_sees(make_server: MakeServed) -> None:
    seen = list[Environ]()

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        seen.append(dict(environ, body=environ["wsgi.input"].read()))
        return answer(start)

    served = make_server(app)
    ask(served, scgi.request("/a/b", "x=1", b"body", HTTP_X_THING="thing", HTTP_PROXY="evil"))
    expected = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a/b",
        "QUERY_STRING": "x=1",
        "CONTENT_LENGTH": "4",
        "HTTP_X_THING": "thing",
        "body": b"body",
        "wsgi.input_terminated": True,
    }
    assert {name: seen[0].get(name) for name in expected} == expected
    assert "HTTP_PROXY" not in seen[0]


@pytest.mark.parametrize("size", [1, 1000, 65_536, 3_000_000])
def test_bodies(make_server: MakeServed, size: int) -> None:
    body = pattern(size)
    served = make_server(digest)
    for peer in both(served):
        peer.send(scgi.request(body=body), b"nothing of it")
        assert peer.answer().body.decode() == hashlib.sha256(body).hexdigest()


def test_a_small_body_is_waited_for_only_so_long(make_server: MakeServed) -> None:
    started, seen = Flag(), list[bytes]()

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        started.set()
        seen.append(environ["wsgi.input"].read())
        return answer(start)

    served = make_server(app, body_wait=0.1)
    with Peer(served.address) as peer:
        peer.send(scgi.head(length=10), b"01234")
        started.come()
        peer.send(b"56789")
        assert peer.answer().status == 200
    assert seen == [b"0123456789"]


def test_an_answer_before_the_body_has_come(make_server: MakeServed) -> None:
    """The web server, which sends all before it reads, gets to read it."""
    served = make_server(hello, body_wait=0.0)
    for peer in both(served):
        peer.send(scgi.head(length=4_000_000))
        for _ in range(40):
            peer.send(bytes(100_000))
        assert peer.answer().body == b"hello\n"


def test_a_client_that_goes_before_its_request_has_come(make_server: MakeServed) -> None:
    gate = Gate()
    served = make_server(gate)
    for peer in both(served):
        peer.send(scgi.head(length=3)[:-10])
    for peer in both(served):
        peer.send(scgi.head(length=3), b"ab")
    assert ask(served, scgi.request("/whole")).body == b"/whole"
    assert "/whole" in gate.paths


def test_limits_are_answered(make_server: MakeServed) -> None:
    served = make_server(hello, limit_params_size=1000, limit_request_body=10, limit_params=20)
    large = scgi.request(HTTP_COOKIE="x" * 2000)
    names = {f"HTTP_X{n}": "" for n in range(20)}
    many = scgi.request("/", "", b"", **names)
    twice = scgi.netstring(
        scgi.block([(b"CONTENT_LENGTH", b"0"), (b"SCGI", b"1"), (b"CONTENT_LENGTH", b"5")])
    )
    for data, status in ((large, 431), (many, 431), (scgi.request(body=bytes(11)), 413),
                         (twice, 400), (scgi.request(body=bytes(10)), 200)):  # fmt: skip
        for peer in both(served):
            peer.send(data)
            assert peer.answer().status == status
    # One that sends on gets to read it, too.
    with Peer(served.address) as peer:
        peer.send(scgi.head(length=1_000_000), bytes(1_000_000))
        assert peer.answer().status == 413


def test_a_repeated_header_of_two_minds_is_a_bad_request(make_server: MakeServed) -> None:
    served = make_server(hello)
    pairs = [(b"CONTENT_LENGTH", b"0"), (b"SCGI", b"1"), (b"REQUEST_URI", b"/")]
    pairs += [(b"HTTP_X_USER", b"me"), (b"HTTP_X_USER", b"root")]
    assert ask(served, scgi.netstring(scgi.block(pairs))).status == 400


def test_hostile_bytes_cost_a_line_and_a_connection(make_server: MakeServed, log: Log) -> None:
    served = make_server(hello)
    for name, data in HOSTILE.items():
        for peer in both(served):
            before = len(log.lines())
            peer.send(data)
            assert peer.closed(), name
            assert len(log.lines()) == before + 1, name
    assert ask(served, scgi.request()).body == b"hello\n"


def test_an_answer_that_breaks_does_not_pass_for_whole(make_server: MakeServed, log: Log) -> None:
    """Over TCP. A Unix socket has no reset: there it is the length that tells."""

    def app(environ: Environ, start: Start) -> Iterator[bytes]:
        start("200 OK", [*TEXT, ("Content-Length", "100")])
        yield b"first"
        raise LookupError("broken")

    served = make_server(app)
    with Peer(served.tcp) as peer:
        peer.send(scgi.request())
        with pytest.raises(ConnectionResetError):
            peer.answer()
    with Peer(served.address) as peer:
        peer.send(scgi.request())
        assert len(peer.answer().body) < 100
    until(lambda: log.tracebacks() or None, "it was not logged")


def test_a_file_that_is_cut_off_while_it_is_sent(make_server: MakeServed, log: Log) -> None:
    """Over TCP its answer breaks; of a length that it does not reach it does so everywhere."""
    app = FromFile(pattern(20_000_000))
    served = make_server(app)
    for peer in both(served):
        peer.send(scgi.request("/file"))
        peer.until(b"\r\n\r\n")
        cut_off(20_000_000, 300_000)
        if peer.socket.family == socket.AF_UNIX:
            assert len(peer.answer().body) < 20_000_000
        else:
            with pytest.raises(ConnectionResetError):
                peer.answer()
    until(lambda: len(log.lines()) == 2, "it was not logged")
    assert ask(served, scgi.request("/hello")).body == b"hello"


def test_stop_serves_who_had_connected_before(make_server: MakeServed) -> None:
    served = make_server(hello, threads=2)
    peers = [Peer(served.address) for _ in range(20)]
    for peer in peers:
        peer.send(scgi.request())
    assert served.stop(PATIENCE) is True
    for peer in peers:
        with peer:
            assert peer.answer().body == b"hello\n"


@pytest.mark.parametrize("driver", SEVERAL_AT_ONCE)
def test_the_deadline_of_stop_cuts(make_server: MakeServed) -> None:
    begun, go = Flag(), Flag()

    def app(environ: Environ, start: Start) -> Iterator[bytes]:
        start("200 OK", TEXT)
        yield b"a part"
        begun.set()
        until(lambda: go.is_set() or environ["fulgate.aborted"](), "it goes on")
        yield b"the rest"

    served = make_server(app)
    with Peer(served.tcp) as peer:
        peer.send(scgi.request())
        peer.until(b"a part")
        begun.come()
        stopper = Stopper(served, 0.2)
        with pytest.raises(ConnectionResetError):
            peer.answer()
        go.set()
        assert stopper.result() is False


def test_both_protocols_in_one_process(folder: Path) -> None:
    endpoints = (f"unix:{folder}/f", f"scgi+unix:{folder}/s", "scgi+tcp:127.0.0.1:0")
    with Server(hello, bind=endpoints) as server:
        assert server.endpoints[:2] == list(endpoints[:2])
        for _ in range(3):
            with Raw(f"{folder}/f") as raw, Peer(f"{folder}/s") as peer:
                assert raw.request().body == b"hello\n"
                peer.send(scgi.request())
                assert peer.answer().body == b"hello\n"
                assert raw.request().body == b"hello\n"
        with Raw(server.listeners[2].getsockname()) as raw:
            raw.send(b"\x01\x01\x00\x01\x00\x08\x00\x00")
            assert raw.closed()
        with Peer(f"{folder}/f") as peer:
            peer.send(scgi.request())
            assert peer.closed()


def test_the_status_and_pings_have_paths(folder: Path) -> None:
    settings: dict[str, Any] = {"status_path": "/status", "ping_path": "/ping"}
    with Server(hello, bind=(f"scgi+unix:{folder}/s",), **settings):
        for path, words in (("/ping", b"pong"), ("/status", b"requests"), ("/other", b"hello")):
            with Peer(f"{folder}/s") as peer:
                peer.send(scgi.request(path))
                got = peer.answer()
                assert got.status == 200
                assert words in got.body


def test_an_authorizer_is_for_fastcgi(folder: Path) -> None:
    authorizer = fulgate.authorizer(lambda request: fulgate.Allow())
    server = Server(authorizer, bind=(f"scgi+unix:{folder}/s",))
    with pytest.raises(ConfigError, match="for FastCGI alone"):
        server.start()


def test_a_request_that_takes_too_long(folder: Path) -> None:
    go = Flag()

    def app(environ: Environ, start: Start) -> Iterator[bytes]:
        start("200 OK", TEXT)
        if environ["PATH_INFO"] == "/begun":
            yield b"a part"
        until(lambda: go.is_set() or environ["fulgate.aborted"](), "it goes on")
        yield b"the rest"

    with Server(app, bind=("scgi+tcp:127.0.0.1:0",), request_timeout=1.0) as server:
        address = server.listeners[0].getsockname()
        with Peer(address) as peer:
            peer.send(scgi.request("/silent"))
            assert peer.answer().status == 504
        with Peer(address) as peer:
            peer.send(scgi.request("/begun"))
            with pytest.raises(ConnectionResetError):
                peer.answer()
