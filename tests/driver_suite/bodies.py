"""Bodies, and limits of what is accepted."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable

import pytest

from tests.driver_suite.kit import (
    END,
    Environ,
    Flag,
    Gate,
    MakeServer,
    Start,
    answer,
    digest,
    hello,
    pattern,
    reports,
    until,
)
from tests.model import STDIN
from tests.raw import PATIENCE, Raw, head, post, record, stream


def test_a_small_body_is_waited_for(make_server: MakeServer) -> None:
    started, seen = Flag(), list[bytes]()
    served = make_server(reports(started, seen), body_wait=PATIENCE, threads=2)
    with Raw(served.address) as raw, Raw(served.address) as other:
        raw.expect()
        raw.send(head(**post(10)), record(STDIN, 1, b"01234"))
        # What is sent later is seen later: were the body not waited for, it would have started.
        assert other.values(b"FCGI_MPXS_CONNS")
        raw.send(record(STDIN, 1, b"56789"))
        assert other.values(b"FCGI_MPXS_CONNS")
        assert not started.is_set()
        raw.send(END)
        raw.answer()
    assert seen == [b"0123456789"]


@pytest.mark.statement("23")
@pytest.mark.statement("R6")
def test_a_small_body_is_waited_for_only_so_long(make_server: MakeServer) -> None:
    started, seen = Flag(), list[bytes]()
    served = make_server(reports(started, seen), body_wait=0.1)
    with Raw(served.address) as raw:
        raw.expect()
        raw.send(head(**post(10)), record(STDIN, 1, b"01234"))
        started.come()
        raw.send(record(STDIN, 1, b"56789"), END)
        raw.answer()
    assert seen == [b"0123456789"]


@pytest.mark.parametrize(
    "settings",
    [{"body_wait": 0.0}, {"body_buffer": 9, "body_wait": PATIENCE}],
    ids=["wait", "size"],
)
def test_a_body_that_is_not_to_be_waited_for(
    make_server: MakeServer, settings: dict[str, float]
) -> None:
    started, seen = Flag(), list[bytes]()
    served = make_server(reports(started, seen), **settings)
    with Raw(served.address) as raw:
        raw.expect()
        raw.send(head(**post(10)))
        started.come()
        raw.send(record(STDIN, 1, b"0123456789"), END)
        raw.answer()
    assert seen == [b"0123456789"]


@pytest.mark.statement("23")
def test_an_upgrade_is_not_waited_for(make_server: MakeServer) -> None:
    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        write = start("101 Switching Protocols", [])
        write(b"ready")
        while piece := environ["wsgi.input"].read(1):
            write(piece.upper())
        return []

    served = make_server(app, body_wait=PATIENCE)
    with Raw(served.address) as raw:
        raw.expect()
        raw.send(head(CONTENT_LENGTH="0", HTTP_UPGRADE="websocket", keep=False))
        raw.until(1, b"ready")
        for letter in (b"a", b"b", b"c"):
            raw.send(record(STDIN, 1, letter))
            raw.until(1, letter.upper())
        raw.send(END)
        assert raw.answer().body == b"readyABC"
        assert raw.closed()


@pytest.mark.statement("23")
def test_an_answer_may_end_before_the_body(make_server: MakeServer) -> None:
    served = make_server(hello, body_wait=0.05)
    with Raw(served.address) as raw:
        raw.expect()
        raw.send(head(**post(1_000_000)), record(STDIN, 1, bytes(1000)))
        assert raw.answer().body == b"hello\n"
        raw.send(stream(STDIN, 1, bytes(999_000)))  # too late, and no harm
        assert raw.request().body == b"hello\n"


@pytest.mark.statement("23")
def test_the_application_pulls_a_large_body(make_server: MakeServer) -> None:
    data = pattern(3_000_000)
    half = Flag()

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        body = environ["wsgi.input"]
        sha256 = hashlib.sha256(body.read(100_000))
        half.set()
        for piece in iter(lambda: body.read(8192), b""):
            sha256.update(piece)
        return answer(start, sha256.hexdigest().encode())

    served = make_server(app)
    for address in (served.address, served.tcp):
        half.clear()
        with Raw(address) as raw:
            raw.expect()
            raw.send(head(**post(len(data))), stream(STDIN, 1, data[:150_000], end=False))
            half.come()
            raw.send(stream(STDIN, 1, data[150_000:]))
            assert raw.answer().body == hashlib.sha256(data).hexdigest().encode()


def test_a_body_that_nobody_reads_waits_in_the_kernel(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=2)
    with Raw(served.address) as raw:
        raw.expect()
        raw.send(head("/wait", **post(1 << 30)))
        until(lambda: gate.inside, "it did not start")
        raw.socket.setblocking(False)
        sent = 0
        piece = stream(STDIN, 1, bytes(1 << 20), end=False)
        with contextlib.suppress(BlockingIOError):
            while sent < 100 << 20:
                sent += raw.socket.send(piece[sent % len(piece) :])
        # Beyond the socket's buffers and the few pieces that were taken, nothing was.
        assert sent < 8 << 20
        gate.open.set()
        assert raw.answer().body == b"/wait"


@pytest.mark.statement("R5")
@pytest.mark.parametrize("says", [True, False], ids=["declared", "found"])
def test_413_is_seen_by_a_client_that_still_sends(make_server: MakeServer, says: bool) -> None:
    served = make_server(digest, limit_request_body=100_000)
    params = post(5_000_000) if says else {"REQUEST_METHOD": "POST"}
    for address in (served.address, served.tcp):
        with Raw(address) as raw:
            raw.expect()
            raw.send(head(keep=False, **params), stream(STDIN, 1, bytes(5_000_000)))
            assert raw.answer().status == "413 Content Too Large"
            assert raw.closed()


@pytest.mark.statement("R5")
@pytest.mark.parametrize("says", [True, False], ids=["declared", "found"])
def test_413_leaves_a_connection_open_that_is_to_be_kept(
    make_server: MakeServer, says: bool
) -> None:
    """A web server that has sent all of the body uses it again at once, and would meet its end."""
    served = make_server(digest, limit_request_body=1000)
    for address in (served.address, served.tcp):
        with Raw(address) as raw:
            for size in (1001, 2_000_000):
                params = post(size) if says else {"REQUEST_METHOD": "POST"}
                raw.expect()
                raw.send(head(**params), stream(STDIN, 1, bytes(size)))
                assert raw.answer().status == "413 Content Too Large"
                assert raw.request(body=b"ok").status == "200 OK"


@pytest.mark.statement("R5")
def test_params_that_are_too_large_or_too_many(make_server: MakeServer) -> None:
    served = make_server(hello, limit_params_size=10_000, limit_params=50)
    for params in ({"X": "x" * 20_000}, {f"X{n}": "" for n in range(60)}):
        with Raw(served.address) as raw:
            assert raw.request(**params).status == "431 Request Header Fields Too Large"
            assert raw.request().body == b"hello\n"
    with Raw(served.address) as raw:
        assert raw.request(X="x" * 9_000).body == b"hello\n"
