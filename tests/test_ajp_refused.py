"""What AJP does not put up with: what is over a limit, lacks the secret, or breaks the protocol."""

from __future__ import annotations

import pytest

from fulgate.errors import ProtocolError
from fulgate.exchange import Limits
from fulgate.protocols.ajp import AJP
from tests.ajp import NO_LIMITS, answers, begun, owed
from tests.ajp_model import (
    body,
    forward,
    packet,
    post,
)

# Limits, and the secret


def refused(data: bytes, limits: Limits = NO_LIMITS, secret: str = "") -> str:
    protocol = AJP(limits, secret)
    exchange = begun(data, protocol)
    if exchange.refused is None:
        return ""
    status = exchange.refused.status
    [answer] = answers(*exchange.refuse(status))
    assert f"{answer.status} {answer.reason}" == status
    assert not answer.reuse
    protocol.done(exchange)
    assert protocol.closing
    assert not protocol.out
    assert protocol.feed(b"\xff" * 100) == [], "what comes then means nothing"
    return status


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (forward(attributes=[("secret", "s3cret")]), ""),
        (forward(), "403 Forbidden"),
        (forward(attributes=[("secret", "s3cre")]), "403 Forbidden"),
        (forward(attributes=[("secret", "s3cret1")]), "403 Forbidden"),
        (forward(attributes=[("secret", "t3cret")]), "403 Forbidden"),
        (forward(attributes=[("secret", "")]), "403 Forbidden"),
        (forward(attributes=[("secret", None)]), "403 Forbidden"),
        (forward(named=[("secret", "s3cret")]), "403 Forbidden"),
        (forward(headers=[("secret", "s3cret")]), "403 Forbidden"),
        (post(5) + body(b"12345"), "403 Forbidden"),
    ],
)
def test_secret(data: bytes, status: str) -> None:
    assert refused(data, secret="s3cret") == status


def test_secret_is_in_no_variable() -> None:
    protocol = AJP(NO_LIMITS, "s3cret")
    exchange = begun(forward(attributes=[("secret", "s3cret")]), protocol)
    assert "s3cret" not in repr((exchange.params, exchange.pairs(), exchange.raw))


def test_secret_outside_ascii_is_compared_as_utf_8() -> None:
    given = "gr\u00fc\u00df".encode().decode("latin-1")
    assert refused(forward(attributes=[("secret", given)]), secret="gr\u00fc\u00df") == ""


@pytest.mark.parametrize(
    ("data", "limits", "status"),
    [
        (forward(uri="/" + "x" * 1000), Limits(params_size=1000), "431"),
        (forward(headers=[(f"x-{n}", "") for n in range(11)]), Limits(params=10), "431"),
        (forward(named=[(f"x-{n}", "") for n in range(11)]), Limits(params=10), "431"),
        (post(101), Limits(body=100), "413"),
        (post(101) + body(b"x" * 101), Limits(body=100), "413"),
        (post(10**30), Limits(body=0), "413"),
        (post(100), Limits(body=100), ""),
        (forward(headers=[("content-length", "-1")]), NO_LIMITS, "400"),
        (forward(headers=[("content-length", "")]), NO_LIMITS, "400"),
        (forward(headers=[("content-length", "5"), ("Content-Length", "6")]), NO_LIMITS, "400"),
        (forward(headers=[("content-length", "5"), ("Content-Length", "5")]), NO_LIMITS, ""),
        (
            forward(headers=[("content-length", "5"), ("transfer-encoding", "chunked")]),
            NO_LIMITS,
            "400",
        ),
    ],
)
def test_limits(data: bytes, limits: Limits, status: str) -> None:
    assert refused(data, limits)[:3] == status


def test_body_without_a_length_that_grows_too_long() -> None:
    protocol = AJP(Limits(body=10))
    exchange = begun(forward("PUT", headers=[("transfer-encoding", "chunked")]), protocol)
    protocol.feed(body(b"x" * 10))
    assert exchange.refused is None
    assert len(owed(protocol)) == 2
    assert protocol.feed(body(b"x")) == [exchange]
    assert exchange.refused is not None
    assert exchange.refused.status[:3] == "413"
    assert exchange.take() == b""
    assert protocol.out == []
    assert exchange.want(1) == []
    assert not exchange.keep


# What closes the connection

HELLO = forward()
ONE_HEADER = HELLO.index(b"\x00\x01\xa0\x0b")  # where the count of headers is


def changed(at: int, data: bytes) -> bytes:
    return HELLO[:at] + data + HELLO[at + len(data) :]


BROKEN = {
    "a packet to the web server": b"AB" + HELLO[2:],
    "no magic": b"GET / HTTP/1.1\r\n\r\n",
    "the magic the wrong way round": b"\x34\x12" + HELLO[2:],
    "an empty packet that nobody asked for": packet(b""),
    "body that nobody asked for": body(b"abc"),
    "an unknown type": packet(b"\x63"),
    "SHUTDOWN": packet(b"\x07"),
    "PING of old": packet(b"\x08"),
    "CPING with content": packet(b"\x0a\x0a"),
    "a request of one byte": packet(b"\x02"),
    "an unknown method": changed(5, b"\x1c"),
    "method 0": changed(5, b"\x00"),
    "a method that is stored nowhere": changed(5, b"\xff"),
    "a stored method that is none": forward("A B"),
    "a stored method with a line's end": forward("GET\r\n"),
    "no path": forward(uri=None),
    "a string that ends beyond its packet": changed(6, b"\x7f\xff"),
    "a string without its NUL": changed(6, b"\x00\x07"),
    "a string up to the very end": packet(b"\x02\x02\x00\x03abc"),
    "more headers than there are": changed(ONE_HEADER, b"\x00\x02"),
    "65,535 headers": changed(ONE_HEADER, b"\xff\xff"),
    "fewer headers than there are": changed(ONE_HEADER, b"\x00\x00"),
    "an unknown header": changed(ONE_HEADER + 2, b"\xa0\x0f"),
    "header 0": changed(ONE_HEADER + 2, b"\xa0\x00"),
    "a header without a name": changed(ONE_HEADER + 2, b"\xff\xff"),
    "an unknown attribute": HELLO[:-1] + b"\x0e",
    "no end of the attributes": packet(HELLO[4:-1]),
    "an attribute cut short": packet(HELLO[4:-1] + b"\x03"),
    "an attribute without a name": packet(HELLO[4:-1] + b"\x0a\xff\xff\xff\xff\xff"),
    "a key size cut short": packet(HELLO[4:-1] + b"\x0b\x01"),
    "the user twice": forward(attributes=[("remote_user", "a"), ("remote_user", "root")]),
    "the key size twice": packet(HELLO[4:-1] + b"\x0b\x01\x00" * 2 + b"\xff"),
    "the secret twice": forward(attributes=[("secret", "a"), ("secret", "b")]),
    "something behind the end": packet(HELLO[4:] + b"\x00"),
    "a second request before the answer": HELLO + HELLO,
    "body behind a request that has none": HELLO + body(b"abc"),
    "more body than its length": post(3) + body(b"abcd"),
    "more body than asked for": post(3) + body(b"abc") + body(b"d"),
    "a packet of body that says more": post(9) + packet(b"\x00\x04abc"),
    "a packet of body that says less": post(9) + packet(b"\x00\x02abc"),
    "a packet of body that says 0xFFFF": post(9) + packet(b"\xff\xffabc"),
    "a packet of body of one byte": post(9) + packet(b"\x00"),
    "a request in place of the body": post(9) + HELLO,
}


@pytest.mark.parametrize("name", BROKEN)
def test_connection_is_given_up_for(name: str) -> None:
    with pytest.raises(ProtocolError):
        AJP(NO_LIMITS).feed(BROKEN[name])
    protocol = AJP(NO_LIMITS)
    with pytest.raises(ProtocolError):
        byte_by_byte(protocol, BROKEN[name])


def byte_by_byte(protocol: AJP, data: bytes) -> None:
    for byte in data:
        protocol.feed(bytes([byte]))


def test_what_is_incomplete_is_waited_for() -> None:
    protocol = AJP(NO_LIMITS)
    for byte in HELLO[:-1]:
        assert protocol.feed(bytes([byte])) == []
        assert not protocol.idle
    assert len(protocol.feed(HELLO[-1:])) == 1
