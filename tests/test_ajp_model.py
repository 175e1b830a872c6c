"""AJP against the model of tests/ajp_model.py, by what Hypothesis makes up."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from fulgate.errors import LimitExceeded, ProtocolError
from fulgate.exchange import Exchange, Limits
from fulgate.protocols.ajp import AJP
from fulgate.protocols.ajp_packets import Forward, decode_forward, encode_forward
from tests import ajp_model
from tests.ajp import NO_LIMITS, facts
from tests.ajp_model import (
    Broken,
    WebServer,
    body,
    forward,
    read_forward,
)
from tests.test_ajp_refused import BROKEN

texts = st.text(st.characters(max_codepoint=255, exclude_characters="\0"), max_size=20)
maybe_texts = st.none() | texts
names = st.sampled_from([*ajp_model.HEADERS, "X-Own", "x_own", "", "\xe9"]) | texts


@st.composite
def forwards(draw: st.DrawFn) -> bytes:
    """FORWARD_REQUESTs, with whatever may be in one."""
    headers = draw(st.lists(st.tuples(names, texts), max_size=5))
    known = draw(st.lists(st.sampled_from(list(ajp_model.ATTRIBUTES)), unique=True))
    known = [name for name in known if name != "stored_method"]
    return forward(
        draw(st.sampled_from([*ajp_model.METHODS, "PATCH"])),
        draw(texts),
        headers,
        [(name, draw(maybe_texts)) for name in known],
        draw(st.lists(st.tuples(texts, texts), max_size=3)),
        protocol=draw(maybe_texts),
        remote_addr=draw(maybe_texts),
        remote_host=draw(maybe_texts),
        server_name=draw(maybe_texts),
        server_port=draw(st.integers(0, 65535)),
        ssl=draw(st.booleans()),
        key_size=draw(st.integers(0, 65535)),
        coded=draw(st.booleans()),
    )


@given(forwards())
@settings(deadline=None)
def test_request_reads_as_the_model_reads_it(data: bytes) -> None:
    assert facts(data[4:]) == read_forward(data[4:])


@given(forwards(), st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_request_breaks_where_it_does_for_the_model(
    data: bytes, draw: st.DataObject
) -> None:
    content = bytearray(data[4:])
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(content) - 1))
        if draw.draw(st.booleans()):
            content[at] = draw.draw(st.integers(0, 255))
        else:
            del content[at:]
        if not content:
            return
    try:
        expected: object = read_forward(bytes(content))
    except Broken:
        expected = None
    try:
        read = facts(bytes(content))
    except ProtocolError:
        read = None
    assert read == expected


@given(forwards())
@settings(deadline=None)
def test_request_is_written_as_it_is_read(data: bytes) -> None:
    read = decode_forward(data[4:])
    again = encode_forward(read)
    assert again[:4] == data[:2] + struct.pack(">H", len(again) - 4)
    assert facts(again[4:]) == facts(data[4:])
    assert isinstance(read, Forward)


@given(st.lists(st.binary(max_size=50) | st.sampled_from(list(BROKEN.values())), max_size=6))
@settings(deadline=None)
def test_nothing_but_errors_of_ours_comes_of_any_bytes(pieces: list[bytes]) -> None:
    protocol = AJP(Limits())
    with contextlib.suppress(ProtocolError, LimitExceeded):
        for piece in pieces:
            protocol.feed(piece)


@dataclass
class Asked:
    """One request of a conversation, and what the application does with it."""

    length: str  # "known", "chunked", "none", or "http2": unknown, and its start sent unasked
    body: bytes
    read: int  # how many pieces of the body the application takes before it answers
    answer: bytes
    pieces: list[int]  # how long the packets of body are


@st.composite
def askeds(draw: st.DrawFn) -> Asked:
    length = draw(st.sampled_from(["known", "chunked", "none", "http2"]))
    size = 0 if length == "none" else draw(st.sampled_from([0, 1, 700, 8186, 8187, 30_000]))
    trap = forward(uri="/forged")[4:]  # whoever takes it for a request has been had
    return Asked(
        length,
        (trap * (size // len(trap) + 1))[:size],
        draw(st.integers(0, 12)),
        draw(st.sampled_from([b"", b"short", b"long" * 5000])),
        draw(st.lists(st.integers(1, 8186), min_size=1, max_size=4)),
    )


class Apache:
    """Sends requests one after the other, and their bodies, as mod_proxy_ajp does."""

    def __init__(self, asked: Asked, number: int) -> None:
        self.sent = b""
        self.rest = asked.body
        self.pieces = asked.pieces
        headers = {
            "known": [("content-length", str(len(asked.body)))],
            "chunked": [("transfer-encoding", "chunked")],
        }
        self.sent += forward(
            "POST",
            f"/{number}",
            headers.get(asked.length, []),
            protocol="HTTP/2.0" if asked.length == "http2" else "HTTP/1.1",
        )
        if asked.length != "chunked" and asked.body:
            self.more(8186)

    def more(self, size: int) -> None:
        size = min(size, self.pieces[0])
        self.pieces = self.pieces[1:] + self.pieces[:1]
        piece, self.rest = self.rest[:size], self.rest[size:]
        self.sent += body(piece)


@given(st.lists(askeds(), min_size=1, max_size=5), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_conversations_stay_in_step(conversation: list[Asked], random: object) -> None:
    """Whatever the application reads of the bodies, each request gets its own answer."""
    protocol = AJP(NO_LIMITS, ahead=10_000)
    for number, asked in enumerate(conversation):
        apache = Apache(asked, number)
        server = WebServer(asked=apache.more)
        exchange: Exchange | None = None
        taken = b""
        reads = asked.read
        while not server.answers:
            for cut in pieces_of(apache.sent, random):
                for moved in protocol.feed(cut):
                    assert exchange in (None, moved)
                    exchange = moved
            apache.sent = b""
            server.read(b"".join(protocol.out))
            protocol.out = []
            assert exchange is not None
            assert exchange.params["PATH_INFO"] == f"/{number}"
            if exchange.ended:
                break
            if reads and not exchange.stdin_ended:
                reads -= 1
                taken += exchange.take()
                server.read(b"".join(exchange.want(65536)))
                continue
            if apache.sent:
                continue
            taken += exchange.take()
            exchange.start("200 OK", [("X-Number", str(number))])
            server.read(b"".join(exchange.finish(asked.answer)))
            ended = exchange.stdin_ended
            protocol.done(exchange)
            assert asked.body.startswith(taken)
            assert not ended or taken == asked.body
        assert exchange is not None
        [answer] = server.answers
        assert answer.header("x-number") == str(number)
        assert (answer.body, answer.reuse) == (asked.answer, True)
        assert protocol.feed(apache.sent) == []
        server.read(b"".join(protocol.out))
        protocol.out = []
    assert protocol.idle
    assert not protocol.closing


def pieces_of(data: bytes, random: object) -> Iterator[bytes]:
    while data:
        size = random.choice([1, 3, 4, 100, 5000, 100_000])  # type: ignore[attr-defined]
        yield data[:size]
        data = data[size:]
