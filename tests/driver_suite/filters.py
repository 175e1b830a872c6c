"""The role of the Filter: STDIN, and DATA behind it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from fulgate import Filtered, FilterRequest, Roles, filter
from tests.driver_suite.kit import (
    TEXT,
    Environ,
    Flag,
    Log,
    MakeServer,
    Start,
    answer,
    hello,
    pattern,
    settle,
    until,
)
from tests.model import DATA, PARAMS, STDIN, UNKNOWN_ROLE, Answer
from tests.raw import PATIENCE, Raw, begin, environ, pairs, record, stream

FILTER = 3
MODIFIED = 1_700_000_000


def asked(length: int = 0, data_length: int = 0, keep: bool = True, role: int = FILTER) -> bytes:
    """BEGIN_REQUEST and PARAMS of a filter's request."""
    params = environ("/page")
    params += [("CONTENT_LENGTH", str(length)), ("FCGI_DATA_LENGTH", str(data_length))]
    params += [("FCGI_DATA_LAST_MOD", str(MODIFIED))]
    return begin(1, role, keep) + stream(PARAMS, 1, pairs(params))


def exchange(raw: Raw, body: bytes, data: bytes, cut: int = 65535) -> Answer:
    raw.expect()
    raw.send(asked(len(body), len(data)))
    raw.send(stream(STDIN, 1, body, cut=cut), stream(DATA, 1, data, cut=cut))
    return raw.answer()


def digests(*streams: Any) -> bytes:
    found = []
    for one in streams:
        sha256 = hashlib.sha256()
        while piece := one.read(50_000):
            sha256.update(piece)
        found.append(sha256.hexdigest())
    return " ".join(found).encode()


def first_body(request: FilterRequest) -> Iterable[Any]:
    return request.body, request.data


def first_data(request: FilterRequest) -> Iterable[Any]:
    return reversed((request.body, request.data))


@pytest.mark.statement("28")
@pytest.mark.parametrize("order", [first_body, first_data])
@pytest.mark.parametrize("size", [0, 1, 65_536, 3_000_000])
def test_both_streams_can_be_read_in_any_order(
    make_server: MakeServer, size: int, order: Callable[[FilterRequest], Iterable[Any]]
) -> None:
    @filter
    def handle(request: FilterRequest) -> Filtered:
        assert request.data_modified == datetime.fromtimestamp(MODIFIED, UTC)
        told = f"{request.method} {request.body_length} {request.data_length} ".encode()
        return Filtered(told + digests(*order(request)), TEXT)

    served = make_server(handle)  # type: ignore[arg-type]
    body, data = pattern(size + 1)[1:], pattern(size)
    expected = [hashlib.sha256(one).hexdigest() for one in (body, data)]
    if order is first_data:
        expected.reverse()
    for address in (served.address, served.tcp):
        with Raw(address) as raw:
            for cut in (65535, 8000):
                found = exchange(raw, body, data, cut)
                assert found.body == f"GET {size} {size} {' '.join(expected)}".encode()
                assert found.app_status == 0


@pytest.mark.statement("28")
def test_streams_that_are_read_by_turns(make_server: MakeServer) -> None:
    @filter
    def handle(request: FilterRequest) -> Filtered:
        found = [request.body.read(3), request.data.readline(), request.body.read(), b"|"]
        found += [*request.data, request.body.read(), request.data.read()]
        return Filtered(iter(found), TEXT)

    with Raw(make_server(handle).address) as raw:  # type: ignore[arg-type]
        for cut in (65535, 1):
            answered = exchange(raw, b"abcdef", b"one\ntwo\nthree", cut)
            assert answered.body == b"abcone\ndef|two\nthree"


@pytest.mark.statement("28")
def test_a_wsgi_application_is_a_filter_too(make_server: MakeServer) -> None:
    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        data = environ.get("fulgate.data")
        role = b"responder" if data is None else b"filter of " + data.read()
        return answer(start, role + b", " + environ["wsgi.input"].read())

    served = make_server(Roles(app, filter=app))
    with Raw(served.address) as raw:
        assert exchange(raw, b"body", b"page").body == b"filter of page, body"
        assert raw.request(body=b"body").body == b"responder, body"
        assert exchange(raw, b"", b"").body == b"filter of , "


@pytest.mark.statement("28")
def test_the_answer_may_begin_before_data_has(make_server: MakeServer) -> None:
    """6.4: STDIN is to be read first, DATA need not be."""

    @filter
    def handle(request: FilterRequest) -> Filtered:
        def pieces() -> Iterator[bytes]:
            yield request.body.read() + b"; "
            yield request.data.read()

        return Filtered(pieces(), TEXT)

    with Raw(make_server(handle, body_wait=0).address) as raw:  # type: ignore[arg-type]
        raw.expect()
        raw.send(asked(4, 4), stream(STDIN, 1, b"body"))
        raw.until(1, b"body; ")
        raw.send(stream(DATA, 1, b"page"))
        assert raw.answer().body == b"body; page"


@pytest.mark.statement("26")
@pytest.mark.statement("28")
def test_streams_that_end_early_can_be_told(make_server: MakeServer) -> None:
    @filter
    def handle(request: FilterRequest) -> Filtered:
        missing = (request.data_length or 0) - len(request.data.read())
        return Filtered(f"{missing} {10 - len(request.body.read())}".encode(), TEXT)

    with Raw(make_server(handle).address) as raw:  # type: ignore[arg-type]
        raw.expect()
        raw.send(asked(10, 20), stream(STDIN, 1, b"short"), stream(DATA, 1, b"shorter"))
        assert raw.answer().body == b"13 5"


@pytest.mark.parametrize("unread", ["both", "data"])
def test_what_is_not_read_does_no_harm(make_server: MakeServer, unread: str) -> None:
    @filter
    def handle(request: FilterRequest) -> Filtered:
        return Filtered(b"early" if unread == "both" else request.body.read(5), TEXT)

    served = make_server(handle)  # type: ignore[arg-type]
    with Raw(served.address) as raw:
        for _ in range(2):
            raw.expect()
            raw.send(asked(5, 100_000), stream(STDIN, 1, b"early"), record(DATA, 1, bytes(50_000)))
            assert raw.answer().body == b"early"
            raw.send(stream(DATA, 1, bytes(50_000)))  # of no request any more
    with Raw(served.address) as raw:
        raw.expect()
        raw.send(asked(5, 300_000, keep=False), stream(STDIN, 1, b"early"))
        raw.send(stream(DATA, 1, bytes(300_000)))  # lingers: the answer is not lost
        assert raw.answer().body == b"early"


@pytest.mark.statement("R5")
@pytest.mark.parametrize("order", [first_body, first_data])
def test_data_counts_against_the_limit_of_a_body(
    make_server: MakeServer, order: Callable[[FilterRequest], Iterable[Any]]
) -> None:
    @filter
    def handle(request: FilterRequest) -> Filtered:
        return Filtered(digests(*order(request)), TEXT)

    served = make_server(handle, limit_request_body=100_000)  # type: ignore[arg-type]
    with Raw(served.address) as raw:
        assert exchange(raw, bytes(50_000), bytes(50_000)).stdout.startswith(b"Status: 200")
    with Raw(served.address) as raw:
        raw.expect()
        raw.send(asked(50_000, 60_000), stream(STDIN, 1, bytes(50_000)))
        raw.send(record(DATA, 1, bytes(60_000)))
        assert raw.answer().stdout.startswith(b"Status: 413")
    with Raw(served.address) as raw:
        raw.expect()
        raw.send(asked(0, 100_001))
        assert raw.answer().stdout.startswith(b"Status: 413")


@pytest.mark.parametrize(
    "wrong",
    [
        record(DATA, 1, b"x"),
        record(STDIN, 1, b"x") + record(DATA, 1, b"x"),
        stream(STDIN, 1, b"x") + record(DATA, 1, b"x") + record(STDIN, 1, b"x"),
        stream(STDIN, 1, b"x") + stream(DATA, 1, b"x") + record(DATA, 1),
    ],
)
def test_streams_out_of_order_close_the_connection(
    make_server: MakeServer, log: Log, wrong: bytes
) -> None:
    held = Flag()

    @filter
    def handle(request: FilterRequest) -> Filtered:
        held.wait(1.0)  # were it to answer at once, what comes then would be of no request
        request.data.read()
        return Filtered(b"", TEXT)

    with Raw(make_server(handle, threads=2).address) as raw:  # type: ignore[arg-type]
        raw.send(asked(1, 1), wrong)
        assert raw.closed()
    held.set()
    until(lambda: any("closed a connection" in line for line in log.lines()), "no line of it")


def test_data_of_a_responder_means_nothing(make_server: MakeServer) -> None:
    served = make_server(Roles(hello, filter=hello))
    with Raw(served.address) as raw:
        raw.expect()
        raw.send(asked(role=1), record(DATA, 1, b"x"), record(DATA, 1), record(STDIN, 1))
        assert raw.answer().body == b"hello\n"


@pytest.mark.statement("20")
def test_a_filter_alone_serves_no_other_role(make_server: MakeServer) -> None:
    @filter
    def handle(request: FilterRequest) -> Filtered:
        return Filtered(request.data.read(), TEXT)

    with Raw(make_server(handle).address) as raw:  # type: ignore[arg-type]
        for role in (1, 2):
            raw.expect()
            raw.send(asked(role=role), record(STDIN, 1))
            assert raw.answer().protocol_status == UNKNOWN_ROLE
        assert exchange(raw, b"", b"page").body == b"page"


@pytest.mark.parametrize("wrong", [None, b"bytes", "exit", "late"])
def test_what_goes_wrong_in_a_filter(make_server: MakeServer, log: Log, wrong: Any) -> None:
    @filter
    def handle(request: FilterRequest) -> Filtered:
        if wrong == "exit":
            raise SystemExit(7)
        if wrong == "late":
            raise LookupError(request.data.read())
        return wrong  # type: ignore[no-any-return]

    with Raw(make_server(handle).address) as raw:  # type: ignore[arg-type]
        for _ in range(2):
            found = exchange(raw, b"body", b"page")
            assert found.stdout.startswith(b"Status: 500 ")
    until(lambda: log.tracebacks() or wrong == "exit", "nothing was logged")


def test_a_web_server_that_goes_away_is_told(make_server: MakeServer) -> None:
    raised = Flag()
    started = Flag()

    @filter
    def handle(request: FilterRequest) -> Filtered:
        started.set()
        try:
            request.data.read()
        except ConnectionError:
            raised.set()
            raise
        return Filtered(b"", TEXT)

    served = make_server(handle, body_wait=0, body_timeout=PATIENCE)  # type: ignore[arg-type]
    with Raw(served.address) as raw:
        raw.send(asked(1, 9), stream(STDIN, 1, b"x"), record(DATA, 1, b"page"))
        started.come()
    raised.come()
    with Raw(served.address) as raw:
        settle(raw)
