"""SCGI without a driver: what is read, what is refused, and what an answer looks like."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgate.errors import Aborted, LimitExceeded, ProtocolError
from fulgate.exchange import Exchange, Limits
from fulgate.protocols.scgi import SCGI
from tests import scgi
from tests.fuzz.conversations import Cut, byte_by_byte, cuts, whole
from tests.scgi import Pairs, block, netstring

NO_LIMITS = Limits(params_size=0, params=0, body=0)
LENGTH = (b"CONTENT_LENGTH", b"0")
ONE = (b"SCGI", b"1")


class Fed:
    """A connection, and what came of it."""

    def __init__(self, limits: Limits = NO_LIMITS) -> None:
        self.protocol = SCGI(limits)
        self.exchange: Exchange | None = None
        self.body = b""

    def feed(self, data: bytes, cut: Cut = whole) -> Fed:
        for piece in cut(data):
            moved = self.protocol.feed(piece)
            assert len(moved) <= 1
            for exchange in moved:
                assert self.exchange in (None, exchange)
                self.exchange = exchange
                self.body += exchange.take()
        return self


def parsed(data: bytes, cut: Cut = whole, limits: Limits = NO_LIMITS) -> Exchange:
    exchange = Fed(limits).feed(data, cut).exchange
    assert exchange is not None
    return exchange


def test_the_example_of_the_specification() -> None:
    data = (
        b"70:CONTENT_LENGTH\x0027\0SCGI\x001\0REQUEST_METHOD\0POST\0REQUEST_URI\0/deepthought\0,"
        b"What is the answer to life?"
    )
    for cut in (whole, byte_by_byte):
        fed = Fed().feed(data, cut)
        assert fed.body == b"What is the answer to life?"
        assert fed.exchange is not None
        assert fed.exchange.complete
        assert not fed.exchange.keep
        assert fed.exchange.params == {
            "CONTENT_LENGTH": "27",
            "SCGI": "1",
            "REQUEST_METHOD": "POST",
            "REQUEST_URI": "/deepthought",
        }
        assert list(fed.exchange.params.items()) == fed.exchange.pairs()


def test_a_request_is_known_by_its_headers_alone() -> None:
    protocol = SCGI(NO_LIMITS)
    assert protocol.idle
    data = scgi.head(length=3)
    assert protocol.feed(data[:-1]) == []
    assert not protocol.idle
    (exchange,) = protocol.feed(data[-1:])
    assert exchange.params_ended
    assert not exchange.complete
    assert protocol.feed(b"ab") == [exchange]
    assert not exchange.complete
    # What stands behind the body is no request, and no part of it.
    assert protocol.feed(b"cd" + scgi.request()) == [exchange]
    assert exchange.complete
    assert exchange.take() == b"abc"
    assert protocol.feed(scgi.request()) == []


def test_what_comes_behind_a_request_that_has_no_body_is_dropped() -> None:
    fed = Fed().feed(scgi.request() + scgi.request("/second"))
    assert fed.exchange is not None
    assert fed.exchange.params["PATH_INFO"] == "/hello"
    assert fed.exchange.complete
    assert fed.body == b""


HOSTILE = {
    "empty netstring": b"0:,",
    "no length": b":" + block([LENGTH, ONE]) + b",",
    "leading zero": b"0" + netstring(block([LENGTH, ONE])),
    "leading zeros": b"000000" + netstring(block([LENGTH, ONE])),
    "plus": b"+" + netstring(block([LENGTH, ONE])),
    "negative": b"-5:hello,",
    "space": b" " + netstring(block([LENGTH, ONE])),
    "space behind": b"24 :" + block([LENGTH, ONE]) + b",",
    "hexadecimal": b"0x18:" + block([LENGTH, ONE]) + b",",
    "other digits": "²4:".encode() + block([LENGTH, ONE]) + b",",
    "eleven digits": b"99999999999",
    "eleven digits and a colon": b"00000000024:" + block([LENGTH, ONE]) + b",",
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "FastCGI": b"\x01\x01\x00\x01\x00\x08\x00\x00",
    "no comma": netstring(block([LENGTH, ONE]))[:-1] + b";",
    "too short a length": b"10:" + block([LENGTH, ONE]) + b",",
    "no NUL at the end": netstring(block([LENGTH, ONE])[:-1]),
    "a name without a value": netstring(block([LENGTH, ONE]) + b"NAME\0"),
    "an empty name": netstring(block([LENGTH, ONE, (b"", b"x")])),
    "NULs alone": netstring(b"\0" * 24),
    "NUL in a value": netstring(block([LENGTH, ONE, (b"HTTP_X", b"a\0SCGI")])),
    "no headers": netstring(b""),
    "length not first": netstring(block([ONE, LENGTH])),
    "length missing": netstring(block([ONE])),
    "length in small letters": netstring(block([(b"content_length", b"0"), ONE])),
    "SCGI missing": netstring(block([LENGTH])),
    "SCGI 2": netstring(block([LENGTH, (b"SCGI", b"2")])),
    "SCGI 1, then 2": netstring(block([LENGTH, ONE, (b"SCGI", b"2")])),
    **{
        f"a length of {length!r}": netstring(block([(b"CONTENT_LENGTH", length), ONE]))
        for length in (b"", b"-1", b"+1", b" 1", b"1 ", b"1,1", b"0x1", b"1e3", b"\xb2", b"1\n")
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_request_is_an_error(name: str) -> None:
    for cut in (whole, byte_by_byte):
        fed = Fed(Limits())
        with pytest.raises(ProtocolError):
            fed.feed(HOSTILE[name], cut)
        assert fed.exchange is None
        assert fed.protocol.eof() == []


def test_what_cannot_become_a_request_is_not_waited_for() -> None:
    for data in (b"G", b"\x01", b"-", b"01", b"12345678901"):
        with pytest.raises(ProtocolError):
            Fed().feed(data)
    for data in (b"1", b"1234567890", b"100:", b"100:CONT"):
        assert Fed().feed(data).exchange is None


@pytest.mark.parametrize(
    "lengths", [(b"0", b"5"), (b"5", b"0"), (b"5", b"5"), (b"0", b"-1"), (b"0", b"")]
)
def test_two_lengths_are_a_bad_request(lengths: tuple[bytes, bytes]) -> None:
    pairs = [(b"CONTENT_LENGTH", lengths[0]), ONE, (b"CONTENT_LENGTH", lengths[1])]
    exchange = parsed(netstring(block(pairs)) + b"hello")
    assert exchange.refused is not None
    assert exchange.refused.status == "400 Bad Request"
    assert exchange.take() == b""


def test_repeated_headers_are_told() -> None:
    pairs = [LENGTH, ONE, (b"HTTP_A", b"1"), (b"HTTP_A", b"2")]
    exchange = parsed(netstring(block(pairs)))
    assert exchange.repeated
    assert exchange.refused is None
    assert exchange.pairs() == [(n.decode(), v.decode()) for n, v in pairs]


def test_the_length_of_the_headers_is_limited() -> None:
    exact = netstring(block([LENGTH, ONE, (b"A", b"x" * 73)]))
    assert exact.startswith(b"100:")
    for cut in (whole, byte_by_byte):
        assert parsed(exact, cut, Limits(params_size=100)).refused is None
        fed = Fed(Limits(params_size=99)).feed(exact, cut)
        assert fed.exchange is not None
        assert fed.exchange.refused is not None
        assert fed.exchange.refused.status == "431 Request Header Fields Too Large"
    # It is refused before it has come, and nothing of it is kept.
    fed = Fed(Limits(params_size=99)).feed(b"9999999999:")
    assert fed.exchange is not None
    assert fed.exchange.refused is not None
    assert fed.exchange.params_ended
    for _ in range(10):
        assert fed.protocol.feed(bytes(65536)) == []
    assert b"Status: 431 " in b"".join(fed.exchange.refuse(fed.exchange.refused.status))


def test_the_count_of_headers_is_limited() -> None:
    data = netstring(block([LENGTH, ONE, (b"A", b""), (b"A", b"")]))
    assert parsed(data, limits=Limits(params=4)).refused is None
    refused = parsed(data, limits=Limits(params=3)).refused
    assert refused is not None
    assert refused.status == "431 Request Header Fields Too Large"


@pytest.mark.parametrize(
    ("length", "too_large"),
    [(b"10", False), (b"0010", False), (b"11", True), (b"0011", True), (b"9" * 400, True)],
)
def test_the_length_of_the_body_is_limited(length: bytes, too_large: bool) -> None:
    data = netstring(block([(b"CONTENT_LENGTH", length), ONE])) + b"0123456789"
    fed = Fed(Limits(body=10)).feed(data)
    assert fed.exchange is not None
    if too_large:
        assert fed.exchange.refused is not None
        assert fed.exchange.refused.status == "413 Content Too Large"
        assert fed.body == b""
    else:
        assert fed.exchange.refused is None
        assert fed.exchange.complete
        assert fed.body == b"0123456789"


def test_a_peer_that_goes_is_an_abort() -> None:
    for data in (scgi.head(length=3), scgi.request()):
        fed = Fed().feed(data)
        assert fed.exchange is not None
        assert fed.protocol.eof() == [fed.exchange]
        assert fed.exchange.aborted
        assert fed.protocol.closing
        assert fed.protocol.eof() == []
        fed.exchange.start("200 OK", [])
        for write in writes(fed.exchange):
            with pytest.raises(Aborted):
                write()
    fed = Fed().feed(scgi.head()[:-3])
    assert fed.protocol.eof() == []
    assert fed.protocol.idle


def writes(exchange: Exchange) -> list[Callable[[], object]]:
    return [lambda: exchange.send(b"x"), exchange.finish, exchange.fail, lambda: exchange.frame(1)]


HEAD = b"Status: 200 OK\r\nA: b\r\n\r\n"


def test_an_answer_is_that_of_a_cgi_program() -> None:
    def begun() -> Exchange:
        exchange = parsed(scgi.request())
        exchange.start("200 OK", [("A", "b")])
        return exchange

    assert b"".join(begun().finish(b"body")) == HEAD + b"body"
    assert b"".join(begun().finish()) == HEAD
    exchange = begun()
    assert b"".join(exchange.send(b"")) == HEAD
    assert b"".join(exchange.send(b"")) == b""
    assert b"".join(exchange.send(b"one")) == b"one"
    large = bytes(100_000)
    assert b"".join(exchange.send(large)) == large
    assert b"".join(exchange.finish(b"two")) == b"two"
    assert exchange.sent == 100_006
    exchange = begun()
    assert b"".join(exchange.send(large)) == HEAD + large
    exchange = begun()
    assert exchange.frame_size > 65536
    assert exchange.frame(10) == HEAD
    assert exchange.frame(10) == b""
    assert exchange.log("nowhere to go") == []
    assert exchange.finish() == []
    assert exchange.sent == 20
    with pytest.raises(RuntimeError):
        exchange.finish()
    with pytest.raises(RuntimeError):
        parsed(scgi.request()).send(b"not started")


def test_the_connection_ends_with_the_answer() -> None:
    fed = Fed().feed(scgi.request())
    assert fed.exchange is not None
    fed.exchange.start("200 OK", [])
    fed.exchange.finish()
    assert not fed.protocol.closing
    fed.protocol.done(fed.exchange)
    assert fed.protocol.closing
    assert not fed.protocol.reset
    assert fed.protocol.eof() == []


def test_an_answer_that_breaks_ends_by_a_reset() -> None:
    fed = Fed().feed(scgi.request())
    assert fed.exchange is not None
    fed.exchange.start("200 OK", [])
    fed.exchange.send(b"a part")
    assert fed.exchange.fail() == []
    fed.protocol.done(fed.exchange)
    assert fed.exchange.broken
    assert fed.protocol.reset
    assert fed.protocol.closing
    # The same where the server cuts it; but not where nothing was sent, or all.
    for whole_answer in (False, True):
        fed = Fed().feed(scgi.request())
        assert fed.exchange is not None
        fed.exchange.start("200 OK", [])
        if whole_answer:
            fed.exchange.finish(b"x")
        else:
            fed.exchange.send(b"x")
        fed.protocol.eof()
        assert fed.protocol.reset is not whole_answer
    fed = Fed().feed(scgi.request())
    fed.protocol.eof()
    assert not fed.protocol.reset


def test_dribbled_headers_cost_linear_work() -> None:
    """A megabyte in single bytes: were each looked at anew, this would take hours."""
    data = netstring(block([LENGTH, ONE, (b"A", b"x" * 1_000_000)]))
    assert parsed(data, byte_by_byte, Limits(params_size=0)).complete


# The model

texts = st.one_of(
    st.binary(max_size=9).map(lambda b: b.replace(b"\0", b"N")),
    st.sampled_from([b"CONTENT_LENGTH", b"SCGI", b"1", b"0", b"3", b"-1", b"HTTP_A"]),
)
more = st.lists(st.tuples(texts, texts), max_size=5)


@st.composite
def sound(draw: st.DrawFn) -> bytes:
    body = draw(st.binary(max_size=20))
    length = len(body) + draw(st.sampled_from([0, 0, 0, 1, -1]))
    pairs: Pairs = [(b"CONTENT_LENGTH", b"%d" % max(0, length)), ONE, *draw(more)]
    return netstring(block(pairs)) + body


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A few bytes changed, lost or added; or the netstring's length alone."""
    data = draw(sound())
    if draw(st.booleans()):
        number, _, rest = data.partition(b":")
        size = int(number) + draw(st.integers(-3, 3))
        return draw(st.sampled_from([b"", b"0", b"-", b" "])) + b"%d:" % size + rest
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(data)))
        upto = at + draw(st.sampled_from([0, 1, 1, 2, 8]))
        data = data[:at] + draw(st.binary(max_size=4)) + data[upto:]
    return data


def check(data: bytes, cut: Cut) -> None:
    fed = Fed()
    try:
        expected = scgi.read(data)
    except scgi.Wrong:
        with pytest.raises(ProtocolError):
            fed.feed(data, cut)
        return
    fed.feed(data, cut)
    if not expected.whole:
        assert fed.exchange is None
        return
    assert fed.exchange is not None
    pairs = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in expected.pairs]
    assert fed.exchange.pairs() == pairs
    assert fed.exchange.params == dict(pairs)
    assert fed.exchange.repeated == (len(dict(pairs)) != len(pairs))
    if (
        sum(name == "CONTENT_LENGTH" for name, _ in pairs) > 1
        or len(dict(pairs)["CONTENT_LENGTH"]) > 18
    ):
        assert fed.exchange.refused is not None
        assert fed.body == b""
        return
    assert fed.exchange.refused is None
    assert fed.exchange.content_length == expected.length
    assert fed.body == expected.body
    assert fed.exchange.complete == (len(expected.body) == expected.length)


@settings(max_examples=500, deadline=None)
@given(sound(), cuts())
def test_sound_requests_are_read_as_the_model_reads_them(data: bytes, cut: Cut) -> None:
    for way in (whole, byte_by_byte, cut):
        check(data, way)


@settings(max_examples=1000, deadline=None)
@given(damaged(), cuts())
def test_damaged_requests_are_read_as_the_model_reads_them(data: bytes, cut: Cut) -> None:
    for way in (whole, byte_by_byte, cut):
        check(data, way)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 50), cuts())
def test_nothing_else_is_raised_whatever_comes(data: bytes, size: int, cut: Cut) -> None:
    fed = Fed(Limits(params_size=size, params=3, body=5))
    try:
        fed.feed(data, cut)
    except (ProtocolError, LimitExceeded):
        fed.protocol.eof()
