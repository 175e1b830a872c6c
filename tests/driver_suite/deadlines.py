"""Deadlines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

import pytest

from fulgate import Aborted
from tests.driver_suite.kit import (
    END,
    Environ,
    Flag,
    MakeServer,
    Start,
    answer,
    hello,
    shut,
    silent,
    until,
)
from tests.model import STDIN
from tests.raw import PATIENCE, Raw, begin, head, post, record


@pytest.mark.statement("R6")
@pytest.mark.parametrize("data", [b"", begin(), head()[:-8]], ids=["nothing", "begin", "params"])
def test_a_request_that_does_not_arrive_is_closed(make_server: MakeServer, data: bytes) -> None:
    served = make_server(hello, arrival_timeout=0.2)
    with Raw(served.address) as raw:
        raw.send(data)
        assert raw.closed()


def test_dribbling_does_not_move_the_deadline(make_server: MakeServer) -> None:
    served = make_server(hello, arrival_timeout=0.3)
    with Raw(served.address) as raw, contextlib.suppress(BrokenPipeError):
        for byte in head(X="x" * 20_000):
            raw.send(bytes([byte]))
            if not silent(raw):
                break
            time.sleep(0.01)
        else:
            pytest.fail("it could dribble on")


def test_an_idle_connection_is_closed(make_server: MakeServer) -> None:
    served = make_server(hello, keep_alive=0.2)
    with Raw(served.address) as raw:
        raw.request()
        assert raw.closed()


@pytest.mark.statement("R6")
def test_a_body_that_does_not_come(make_server: MakeServer) -> None:
    raised = list[type]()

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            raised.append(type(error))
            raise
        return answer(start)

    served = make_server(app, body_timeout=0.2, body_wait=0.0)
    with Raw(served.address) as raw:
        raw.expect()
        raw.send(head(**post(1000)), record(STDIN, 1, bytes(10)))
        assert raw.closed()
    until(lambda: raised == [Aborted], "the read did not raise")


@pytest.mark.parametrize("keep", [True, False], ids=["keep", "close"])
@pytest.mark.parametrize("size", [700_000, 5_000_000], ids=["behind", "beyond"])
def test_a_client_that_does_not_read_is_closed(
    make_server: MakeServer, size: int, keep: bool
) -> None:
    served = make_server(lambda environ, start: answer(start, bytes(size)), send_timeout=0.2)
    with Raw(served.address) as raw:
        raw.expect()
        raw.send(head(keep=keep), END)
        shut(raw)
        with pytest.raises(EOFError):
            raw.answer()


def test_the_wait_for_a_body_is_not_stretched_by_an_answer_that_leaves_slowly(
    make_server: MakeServer,
) -> None:
    started = Flag()

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "POST":
            started.set()
            return answer(start, environ["wsgi.input"].read())
        return answer(start, bytes(900_000))

    served = make_server(app, body_wait=0.3)
    with Raw(served.address) as raw:
        first = raw.expect(1)
        second = raw.expect(2)
        raw.send(head(), END)
        raw.until(1, b"\r\n\r\n")
        raw.send(head(id=2, **post(10)), record(STDIN, 2, b"01234"))
        while not started.is_set() and not first.ended:
            raw.receive(time.monotonic() + PATIENCE)
            time.sleep(0.02)
        started.come()
        raw.send(record(STDIN, 2, b"56789"), record(STDIN, 2))
        assert len(raw.answer(1).body) == 900_000
        assert raw.answer(2).body == second.body == b"0123456789"
