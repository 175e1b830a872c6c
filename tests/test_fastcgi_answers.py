"""The application's side of FastCGI writes what the model of a web server reads."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgate.exchange import Buffer, Exchange
from tests import model
from tests.fuzz.fed import Fed, complete, read_answer, writes
from tests.model import CANT_MPX_CONN, END_REQUEST, PARAMS, REQUEST_COMPLETE, UNKNOWN_ROLE
from tests.raw import begin, pair, stream


def begun(id: int = 1) -> Exchange:
    fed = Fed()
    fed.feed(complete(id))
    (exchange,) = fed.seen
    return exchange


SIZES = [0, 1, 7, 8, 255, 32767, 32768, 32769, 65527, 65528, 65529, 65535, 65536, 131_073, 200_000]
sizes = st.sampled_from(SIZES) | st.integers(0, 70_000)


@pytest.mark.statement("4")
@pytest.mark.statement("5")
@pytest.mark.statement("21")
@pytest.mark.statement("22")
@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 65535),
    st.lists(st.tuples(st.sampled_from(["send", "view", "log"]), sizes), max_size=6),
    sizes,
    st.sampled_from([0, 1, 255, 1 << 31, -1]),
    st.sampled_from([0, 10, 70_000]),
)
def test_answers(
    id: int, steps: list[tuple[str, int]], last: int, app_status: int, long: int
) -> None:
    exchange = begun(id)
    exchange.start("200 OK", [("X-Long", "v" * long)])
    out: list[Buffer] = []
    body = b""
    log = ""
    for n, (how, size) in enumerate(steps):
        data = bytes([65 + n]) * size
        if how == "log":
            log += data.decode()
            out += exchange.log(data.decode())
        else:
            body += data
            out += exchange.send(data if how == "send" else memoryview(data))
    body += b"z" * last
    out += exchange.finish(b"z" * last, app_status)
    assert all(len(buffer) for buffer in out)

    answer = read_answer(*out, id=id)
    head = b"Status: 200 OK\r\nX-Long: " + b"v" * long + b"\r\n\r\n"
    assert answer.stdout == head + body
    assert answer.stderr == log.encode()
    assert answer.stdout_ended
    assert answer.stderr_ended is bool(log)
    assert answer.ended
    assert answer.app_status == app_status % (1 << 32)
    assert answer.protocol_status == REQUEST_COMPLETE
    assert answer.records[-1].kind == END_REQUEST
    assert exchange.sent == len(body)
    assert exchange.ended
    assert exchange.keep


def test_a_small_answer_is_one_buffer() -> None:
    exchange = begun()
    exchange.start("200 OK", [("A", "b")])
    (buffer,) = exchange.finish(b"Hello, world!")
    assert read_answer(buffer).body == b"Hello, world!"


def test_an_answer_ends_once() -> None:
    exchange = begun()
    with pytest.raises(RuntimeError):
        exchange.send(b"before the head")
    with pytest.raises(RuntimeError):
        exchange.finish()
    exchange.start("404 Not Found", [])
    exchange.start("200 OK", [])  # only staged until now
    out = exchange.send(b"")
    with pytest.raises(RuntimeError):
        exchange.start("500 Too Late", [])
    out += exchange.send(b"")
    out += exchange.finish()
    assert read_answer(*out).stdout == b"Status: 200 OK\r\n\r\n"
    assert exchange.log("after the end") == []
    for write in writes(exchange):
        with pytest.raises(RuntimeError):
            write()


@pytest.mark.statement("21")
def test_a_broken_answer_has_no_end() -> None:
    exchange = begun()
    exchange.start("200 OK", [])
    out = exchange.send(b"half of")
    out += exchange.fail()
    answer = read_answer(*out)
    assert answer.body == b"half of"
    assert not answer.stdout_ended
    assert not answer.ended
    assert not exchange.keep
    assert exchange.broken


def test_text_for_the_log_of_the_web_server() -> None:
    exchange = begun()
    exchange.start("200 OK", [])
    out = exchange.log("äöü \udc80\n")
    out += exchange.log("")
    out += exchange.log("ü" * 40_000)
    answer = read_answer(*out, *exchange.finish(b"x"))
    assert answer.stderr.decode() == "äöü \\udc80\n" + "ü" * 40_000
    assert answer.body == b"x"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_refusal_is_a_whole_answer(method: str) -> None:
    fed = Fed()
    fed.feed(begin() + stream(PARAMS, 1, pair(b"REQUEST_METHOD", method.encode())))
    (exchange,) = fed.seen
    answer = read_answer(*exchange.refuse("503 Service Unavailable", [("Retry-After", "1")]))
    assert answer.status == "503 Service Unavailable"
    assert b"Retry-After: 1" in answer.head
    assert b"Content-Length: 24" in answer.head
    assert answer.body == (b"" if method == "HEAD" else b"503 Service Unavailable\n")
    assert answer.stdout_ended
    assert answer.ended


@pytest.mark.statement("18")
@pytest.mark.statement("20")
@pytest.mark.parametrize("keep", [True, False])
def test_refusals_of_the_protocol(keep: bool) -> None:
    fed = Fed()
    fed.feed(begin(7, role=2, keep=keep))
    assert fed.protocol.closing is not keep
    fed.feed(begin(1) + begin(2, keep=keep) + begin(65535, role=3, keep=keep))
    owed = list(model.Reader().records(b"".join(fed.protocol.out)))
    assert owed == [
        model.end_request(7, UNKNOWN_ROLE),
        model.end_request(2, CANT_MPX_CONN),
        model.end_request(65535, UNKNOWN_ROLE),
    ]
    assert fed.protocol.closing is not keep  # not because of those beside the first
