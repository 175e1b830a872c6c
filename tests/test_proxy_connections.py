"""How FastCGIProxy treats its connections, and both sides' slowness and absence."""

from __future__ import annotations

import contextlib
import json
import threading

import pytest

from fulgate.protocols.fastcgi_records import (
    ABORT_REQUEST,
    STDOUT,
    record,
)
from tests.responder import END, PATIENCE, Peer, serve_params
from tests.web import Web, web

__all__ = ["web"]

# connections


def test_connections_are_kept(web: Web) -> None:
    web(serve_params)
    numbers = [json.loads(web.ask("GET", "/").read())["connection"] for _ in range(3)]
    assert numbers == [1, 1, 1]
    # A POST could not be sent again: it takes no connection that may be closing.
    assert json.loads(web.ask("POST", "/", b"x").read())["connection"] == 2
    assert json.loads(web.ask("PUT", "/", b"x").read())["connection"] in (1, 2)


def test_no_connection_is_kept_unless_wanted(web: Web) -> None:
    web(serve_params, keep_alive=0)
    numbers = [json.loads(web.ask("GET", "/").read())["connection"] for _ in range(3)]
    assert numbers == [1, 2, 3]


def test_idle_connections_are_closed_in_time(web: Web) -> None:
    def behave(peer: Peer) -> None:
        serve_params(peer)
        one.said.put("closed")

    one = web(behave, keep_alive_timeout=0.05)
    assert web.ask("GET", "/").status == 200
    assert one.hear() == "closed"


def test_a_connection_that_the_application_closed_is_not_used(web: Web) -> None:
    def behave(peer: Peer) -> None:
        exchange = peer.request()
        assert exchange is not None
        peer.answer(exchange, b"%d" % peer.number, X="y")

    web(behave)
    assert [web.ask("GET", "/").read() for _ in range(5)] == [b"1", b"2", b"3", b"4", b"5"]


@pytest.mark.parametrize(
    ("method", "body", "status"),
    [("GET", b"", 200), ("PUT", b"small", 200), ("PUT", bytes(100_000), 502), ("POST", b"x", 200)],
)
def test_a_stale_connection_is_tried_again_once(
    web: Web, method: str, body: bytes, status: int
) -> None:
    def behave(peer: Peer) -> None:
        exchange = peer.request()
        assert exchange is not None
        peer.answer(exchange, exchange.take(), X=str(peer.number))
        if peer.request():  # takes the second one, and goes
            one.said.put("gone")

    one = web(behave)
    assert web.ask("GET", "/").headers["X"] == "1"
    answer = web.ask(method, "/", body)
    assert answer.status == status
    if method != "POST":  # which took a new connection from the start
        assert one.hear() == "gone"
    if status == 200:
        assert answer.headers["X"] == "2"
        assert answer.read() == body


def test_a_new_connection_is_not_tried_again(web: Web) -> None:
    def behave(peer: Peer) -> None:
        one.said.put(peer.number)
        peer.request()

    one = web(behave)
    assert web.ask("GET", "/").status == 502
    assert one.hear() == 1
    assert one.said.empty()


def test_what_nobody_asked_for_spoils_a_connection(web: Web) -> None:
    extra = record(STDOUT, 1, b"X: poison\r\n\r\n") + END

    def behave(peer: Peer) -> None:
        exchange = peer.request()
        assert exchange is not None
        exchange.start("200 OK", [("X", str(peer.number))])
        peer.send([b"".join([*exchange.finish(b"body"), extra])])  # so that it comes with the end
        while peer.receive():
            pass

    web(behave)
    for n in (b"1", b"2", b"3"):
        answer = web.ask("GET", "/")
        assert (answer.headers["X"], answer.read()) == (n.decode(), b"body")


def test_many_at_once(web: Web) -> None:
    web(serve_params)
    statuses: list[int] = []

    def ask() -> None:
        for _ in range(5):
            statuses.append(web.ask("GET", "/").status)

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert statuses == [200] * 80


@pytest.mark.parametrize("when", ["before the head", "while it streams", "while it uploads"])
def test_a_client_that_goes_away_aborts_the_request(web: Web, when: str) -> None:
    def behave(peer: Peer) -> None:
        exchange = peer.request(whole=False)
        assert exchange is not None
        if when == "while it streams":
            exchange.start("200 OK", [("X", "y")])
            peer.send(exchange.send(b"first"))
        one.said.put("there")
        while peer.receive():
            pass
        one.said.put(peer.got)

    one = web(behave)
    length = b"Content-Length: 100\r\n" if when == "while it uploads" else b""
    sock = web.raw(b"GET / HTTP/1.1\r\nHost: h\r\n" + length + b"\r\n")
    assert one.hear() == "there"
    if when == "while it streams":
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
    sock.close()
    assert one.hear().endswith(record(ABORT_REQUEST, 1))  # type: ignore[attr-defined]


def test_a_client_that_does_not_read_stops_the_application(web: Web) -> None:
    size = 256 << 20

    def behave(peer: Peer) -> None:
        exchange = peer.request()
        assert exchange is not None
        exchange.start("200 OK", [("Content-Length", str(size))])
        peer.socket.settimeout(1.0)
        sent = 0
        try:
            while sent < size:
                peer.send(exchange.send(bytes(1 << 20)))
                sent += 1 << 20
        except OSError:
            pass
        one.said.put(sent)

    one = web(behave)
    web.raw(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert one.hear() < size / 2  # type: ignore[operator]


def test_an_application_that_does_not_read_stops_the_client(web: Web) -> None:
    done = threading.Event()

    def behave(peer: Peer) -> None:
        assert peer.request(whole=False)
        assert done.wait(PATIENCE)

    web(behave)
    size = 256 << 20
    sock = web.raw(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size)
    sock.settimeout(1.0)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < size:
            sent += sock.send(bytes(1 << 20))
    done.set()
    assert sent < size / 2
