"""The application's side of FastCGI: limits of what is read, and of the work that it takes."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgate.errors import LimitExceeded
from fulgate.exchange import Exchange, Limits
from fulgate.protocols.fastcgi import (
    PARAMS_PATIENCE,
    FastCGI,
)
from tests.fuzz.conversations import Cut, byte_by_byte, cuts, whole
from tests.fuzz.fed import NO_LIMITS, VALUES, Fed, read_answer
from tests.model import ABORT_REQUEST, GET_VALUES, PARAMS, STDIN
from tests.raw import begin, pair, record, stream


def limited(limits: Limits, data: bytes, cut: Cut = whole) -> Exchange:
    """Feed a single request, and give its exchange."""
    fed = Fed(limits)
    for piece in cut(data):
        fed.feed(piece)
    (exchange,) = fed.seen
    return exchange


@pytest.mark.statement("R5")
@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=40),
    st.integers(1, 60),
    st.integers(1, 300),
    cuts(),
)
def test_limits_of_params(
    some: list[tuple[bytes, bytes]], size: int, cut_at: int, cut: Cut
) -> None:
    limits = Limits(params_size=size, params=10, body=0)
    block = b"".join([pair(*one) for one in some])
    data = begin() + stream(PARAMS, 1, block, cut=cut_at) + stream(STDIN, 1, b"body")
    for way in (whole, byte_by_byte, cut):
        exchange = limited(limits, data, way)
        assert exchange.complete
        if len(block) > size or len(some) > 10:
            assert exchange.refused is not None
            assert exchange.refused.status == "431 Request Header Fields Too Large"
            assert exchange.keep  # it is the web server that closes
        else:
            assert exchange.refused is None
            assert exchange.keep
            assert exchange.pairs() == [(n.decode("latin-1"), v.decode("latin-1")) for n, v in some]


@pytest.mark.statement("R5")
@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["", "-1", "0", "9", "10", "11", "0011", "9" * 19, "1e9", "²", None]),
    st.integers(0, 25),
    st.integers(1, 25),
    cuts(),
)
def test_limit_of_the_body(length: str | None, size: int, cut_at: int, cut: Cut) -> None:
    block = b"" if length is None else pair(b"CONTENT_LENGTH", length.encode("latin-1"))
    body = bytes(range(size))
    data = begin() + stream(PARAMS, 1, block) + stream(STDIN, 1, body, cut=cut_at)
    too_long = length in ("11", "0011", "9" * 19)
    for way in (whole, byte_by_byte, cut):
        fed = Fed(Limits(body=10))
        for piece in way(data):
            fed.feed(piece)
        (exchange,) = fed.seen
        assert exchange.complete
        assert exchange.content_length == (int(length) if length in ("0", "9", "10") else -1)
        if too_long or size > 10:
            assert exchange.refused is not None
            assert exchange.refused.status == "413 Content Too Large"
            assert exchange.keep
            assert exchange.take() == b""
            assert len(fed.bodies[exchange]) <= (0 if too_long else 10)
        else:
            assert exchange.refused is None
            assert fed.bodies[exchange] == body


@pytest.mark.statement("R5")
@pytest.mark.parametrize("cut_at", [4096, 65535])
def test_params_that_do_not_end(cut_at: int) -> None:
    """They are read on a while, so that they can be answered, and nothing of them is kept."""
    limit = 2000
    fed = Fed(Limits(params_size=limit))
    piece = record(PARAMS, 1, b"x" * cut_at)
    fed.feed(begin())
    for _ in range((limit + PARAMS_PATIENCE) // cut_at):
        assert fed.feed(piece) == []
    with pytest.raises(LimitExceeded) as caught:
        fed.feed(piece)
    assert caught.value.status == "431 Request Header Fields Too Large"
    (exchange,) = fed.protocol.eof()
    assert exchange.raw == b""


@pytest.mark.statement("R5")
@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=12),
    st.sampled_from(["", "10", "11"]),
)
def test_limits_of_a_request_without_a_body(some: list[tuple[bytes, bytes]], length: str) -> None:
    """In one piece or not, it is refused for the same."""
    some.append((b"CONTENT_LENGTH", length.encode()))
    block = b"".join([pair(*one) for one in some])
    data = begin() + stream(PARAMS, 1, block) + record(STDIN, 1)
    for limits in (Limits(params_size=80, params=8, body=10), Limits(0, 0, 0)):
        ways = [limited(limits, data, way) for way in (whole, byte_by_byte)]
        one, other = [
            (str(way.refused), way.params, way.keep, way.complete, way.raw, way.content_length)
            for way in ways
        ]
        assert one == other


@pytest.mark.statement("R5")
@pytest.mark.parametrize("more", [0, 1])
def test_where_the_limits_are(more: int) -> None:
    count = begin() + stream(PARAMS, 1, b"\0\0" * (10 + more))
    assert (limited(Limits(params=10), count).refused is None) is (more == 0)
    size = begin() + stream(PARAMS, 1, pair(b"A", b"v" * (97 + more)))
    assert (limited(Limits(params_size=100), size).refused is None) is (more == 0)
    body = begin() + stream(PARAMS, 1, b"") + stream(STDIN, 1, b"v" * (100 + more))
    assert (limited(Limits(body=100), body).refused is None) is (more == 0)


@pytest.mark.statement("R5")
def test_no_limit() -> None:
    block = b"".join([pair(b"N%d" % n, b"v" * 1000) for n in range(2000)])
    data = begin() + stream(PARAMS, 1, block) + stream(STDIN, 1, b"x" * 100_000)
    exchange = limited(NO_LIMITS, data)
    assert exchange.refused is None
    assert len(exchange.params) == 2000
    assert exchange.received == 100_000


def test_a_refused_request_holds_nothing() -> None:
    fed = Fed(Limits(params_size=1000))
    protocol = fed.protocol
    fed.feed(begin() + stream(PARAMS, 1, b"\0\0" * 7000, end=False, cut=100))
    fed.feed(record(PARAMS, 1) + stream(STDIN, 1, b"x" * 100_000, end=False))
    (exchange,) = fed.seen
    assert exchange.refused is not None
    assert exchange.params == {}
    assert exchange.raw == b""
    assert exchange.take() == b""
    assert exchange.body == []
    refusal = b"".join(exchange.refuse(exchange.refused.status))
    protocol.done(exchange)
    assert protocol.idle
    assert not protocol.closing
    answer = read_answer(refusal)
    assert answer.status == "431 Request Header Fields Too Large"


@pytest.mark.statement("R6")
@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 1000, 4096, 65536])
def test_dribbled_input_is_looked_at_a_bounded_number_of_times(size: int) -> None:
    """Bytes that wait for the rest of their record are not joined anew for each piece."""
    data = begin() + stream(PARAMS, 1, pair(b"LONG", b"v" * 100_000), padding=255)
    data += stream(STDIN, 1, b"x" * 300_000, padding=255) + record(GET_VALUES, 0, b"") * 1000
    protocol = FastCGI(NO_LIMITS, VALUES)
    work = 0
    for at in range(0, len(data), size):
        piece = data[at : at + size]
        before = protocol._have
        protocol.feed(piece)
        work += len(piece)
        if before and len(protocol._parts) <= 1:  # else they were only put beside the others
            work += before
    assert work < 3 * len(data)


def test_thousands_of_requests_in_one_piece_cost_linear_work() -> None:
    """A piece that moves each of them was slow once by the square of their count."""
    count = 60_000
    protocol = FastCGI(NO_LIMITS, VALUES)
    began = time.process_time()
    moved = protocol.feed((begin(1) + record(ABORT_REQUEST, 1)) * count)
    assert len(moved) == count
    assert time.process_time() - began < 8  # it was 25 s, and is 0.3
