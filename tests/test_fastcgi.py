"""The application's side of FastCGI, held to the model in tests/model.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgate.errors import Aborted, LimitExceeded, ProtocolError
from fulgate.exchange import Buffer, Exchange, Limits, Role
from fulgate.protocols.fastcgi import PARAMS_PATIENCE, FastCGI, decode_pairs
from tests import model
from tests.model import (
    ABORT_REQUEST,
    BEGIN_REQUEST,
    CANT_MPX_CONN,
    DATA,
    END_REQUEST,
    GET_VALUES,
    GET_VALUES_RESULT,
    PARAMS,
    REQUEST_COMPLETE,
    STDERR,
    STDIN,
    STDOUT,
    UNKNOWN_ROLE,
    UNKNOWN_TYPE,
    Broken,
    Record,
    Request,
)
from tests.raw import begin, pair, record, stream

VALUES = {"FCGI_MAX_CONNS": "100", "FCGI_MAX_REQS": "200", "FCGI_MPXS_CONNS": "0"}
NO_LIMITS = Limits(params_size=0, params=0, body=0)

Segments = list[bytes]  # all that is complete is answered after each of them
Cut = Callable[[bytes], Iterable[bytes]]


# What a web server may send, and what it may not


ids = st.sampled_from([1, 2, 3, 255, 256, 65535])
texts = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b"CONTENT_LENGTH", b"5", b"-1", b"", b"x" * 127, b"y" * 128, b"z" * 300]),
)
paddings = st.sampled_from([0, 0, 0, 1, 7, 8, 255])
kinds = st.integers(0, 255) | st.integers(1, 12)


Part = tuple[int, int, bytes, int]  # a record's kind, id, content and padding


@st.composite
def pieces(draw: st.DrawFn, kind: int, id: int, data: bytes) -> list[Part]:
    """A stream in records, cut anywhere, with its end."""
    places = draw(st.lists(st.integers(0, len(data)), max_size=4))
    cuts = itertools.pairwise(sorted({0, len(data), *places}))
    parts = [data[start:stop] for start, stop in cuts]
    return [(kind, id, part, draw(paddings)) for part in [*parts, b""]]


@st.composite
def requests(draw: st.DrawFn) -> list[Part]:
    """The records of one request, or of the first part of one."""
    id = draw(ids)
    role = draw(st.sampled_from([1, 1, 1, 1, 1, 2, 3, 0, 257, 65535]))
    block = b"".join([pair(*one) for one in draw(st.lists(st.tuples(texts, texts), max_size=5))])
    flags = draw(st.sampled_from([0, 1, 1, 255, 254]))
    content = role.to_bytes(2, "big") + bytes([flags]) + draw(st.binary(min_size=5, max_size=5))
    parts = [(BEGIN_REQUEST, id, content, draw(paddings))]
    parts += draw(pieces(PARAMS, id, block))
    parts += draw(pieces(STDIN, id, draw(st.binary(max_size=30))))
    if draw(st.integers(0, 3)) == 0:
        place = draw(st.integers(1, len(parts)))
        parts[place:] = [(ABORT_REQUEST, id, b"", draw(paddings))]
    elif draw(st.integers(0, 5)) == 0:
        parts = parts[: draw(st.integers(1, len(parts)))]
    return parts


@st.composite
def others(draw: st.DrawFn) -> list[Part]:
    """A management record, or one that may be for no request."""
    padding = draw(paddings)
    if draw(st.booleans()):
        names = draw(st.lists(st.sampled_from([*VALUES, "FCGI_OTHER", ""]), max_size=4))
        return [(GET_VALUES, 0, b"".join([pair(n.encode(), b"") for n in names]), padding)]
    kind = draw(kinds.filter(lambda k: k not in (BEGIN_REQUEST, PARAMS, STDIN, GET_VALUES)))
    return [(kind, draw(st.sampled_from([0, 4, 1, 2])), draw(st.binary(max_size=9)), padding)]


@st.composite
def conversations(draw: st.DrawFn) -> list[list[Part]]:
    """Requests that interleave, with other records between them."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        parts = draw(st.lists(requests() | others(), min_size=1, max_size=3))
        turns = [n for n, part in enumerate(parts) for _ in part]
        order = draw(st.permutations(turns)) if draw(st.booleans()) else turns
        left = [iter(part) for part in parts]
        found.append([next(left[n]) for n in order])
    return found


def encode(conversation: list[list[Part]]) -> Segments:
    return [b"".join([record(*part) for part in segment]) for segment in conversation]


@st.composite
def disordered(draw: st.DrawFn) -> Segments:
    """Records that are lost, that come twice or elsewhere, or with more or less in them."""
    conversation = draw(conversations())
    for _ in range(draw(st.integers(1, 2))):
        segment = draw(st.sampled_from(conversation))
        if segment:
            at = draw(st.integers(0, len(segment) - 1))
            kind, id, content, padding = segment[at]
            how = draw(st.sampled_from(["lost", "twice", "again", "empty", "short", "long"]))
            if how == "lost":
                del segment[at]
            elif how == "twice":
                segment.insert(at, segment[at])
            elif how == "again":
                segment.insert(draw(st.integers(at, len(segment))), segment[at])
            elif how == "empty":
                segment.insert(at + 1, (kind, id, b"", padding))
            elif how == "short":
                segment[at] = (kind, id, content[: draw(st.integers(0, len(content)))], padding)
            else:
                segment[at] = (kind, id, content + draw(st.binary(max_size=5)), padding)
    return encode(conversation)


@st.composite
def damaged(draw: st.DrawFn) -> Segments:
    """A few bytes changed, lost or added."""
    found = encode(draw(conversations()))
    for _ in range(draw(st.integers(1, 2))):
        n = draw(st.integers(0, len(found) - 1))
        data = found[n]
        at = draw(st.integers(0, len(data)))
        upto = at + draw(st.sampled_from([0, 1, 1, 2, 8, 16]))
        found[n] = data[:at] + draw(st.binary(max_size=9)) + data[upto:]
    return found


# How the bytes come


def whole(data: bytes) -> Iterable[bytes]:
    return [data] if data else []


def byte_by_byte(data: bytes) -> Iterable[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@st.composite
def cuts(draw: st.DrawFn) -> Cut:
    """Cut each segment at random, the same way whenever it is the same segment."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=10))

    def cut(data: bytes) -> Iterator[bytes]:
        at = 0
        for size in itertools.cycle(sizes):
            if at >= len(data):
                return
            yield data[at : at + size]
            at += size

    return cut


# What comes of it


@dataclass
class Outcome:
    broken: bool = False
    active: list[object] = field(default_factory=list)
    ended: list[object] = field(default_factory=list)  # not compared when broken: that feed is lost
    owed: list[Record] = field(default_factory=list)
    closing: bool = False
    idle: bool = False


def by_model(segments: Segments, multiplex: bool) -> Outcome:
    application = model.Application(
        {name.encode(): value.encode() for name, value in VALUES.items()}, multiplex
    )
    outcome = Outcome()
    try:
        for segment in segments:
            application.read(segment)
            for request in list(application.active.values()):
                if request.complete:
                    application.ended(request.id)
    except Broken:
        outcome.broken = True
    active = list(application.active.values())
    gone = [request for request in application.begun if request not in active]
    outcome.active = sorted(map(facts_of_request, active), key=repr)
    outcome.ended = [] if outcome.broken else sorted(map(facts_of_request, gone), key=repr)
    outcome.owed = application.owed
    outcome.closing = application.closing
    outcome.idle = not active and not application.data
    return outcome


def facts_of_request(request: Request) -> object:
    pairs = model.read_pairs(request.block) if request.params_ended else []
    texts = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in pairs]
    return (
        request.id, request.keep, request.params_ended, texts, dict(texts),
        len(dict(texts)) != len(texts), request.stdin, request.stdin_ended, request.aborted,
    )  # fmt: skip


class Fed:
    """A connection of the fast parser, whose exchanges are answered when they are complete."""

    def __init__(self, limits: Limits = NO_LIMITS, multiplex: bool = False) -> None:
        self.protocol = FastCGI(limits, VALUES, multiplex=multiplex)
        self.seen: list[Exchange] = []
        self.bodies: dict[Exchange, bytes] = {}
        self.states: dict[Exchange, object] = {}

    def feed(self, data: bytes) -> list[Exchange]:
        moved = self.protocol.feed(data)
        assert len(set(moved)) == len(moved)
        for exchange in moved:
            if exchange not in self.seen:
                self.seen.append(exchange)
            self.bodies[exchange] = self.bodies.get(exchange, b"") + exchange.take()
            state = self.state(exchange)
            assert self.states.get(exchange) != state, "nothing has moved"
            self.states[exchange] = state
        return moved

    def answer(self) -> None:
        for exchange in self.seen:
            if exchange.complete and not exchange.aborted and not exchange.ended:
                exchange.start("200 OK", [])
                exchange.finish()
                self.protocol.done(exchange)

    @staticmethod
    def state(exchange: Exchange) -> object:
        return (
            exchange.params_ended, exchange.stdin_ended, exchange.received, exchange.aborted,
            exchange.refused is not None,
        )  # fmt: skip

    def facts(self, exchange: Exchange, aborted: bool) -> object:
        pairs = exchange.pairs() if exchange.params_ended else []
        body = self.bodies.get(exchange, b"") + exchange.take()
        assert exchange.received == len(body)
        return (
            exchange.id, exchange.keep, exchange.params_ended, pairs, exchange.params,
            exchange.repeated, body, exchange.stdin_ended, aborted,
        )  # fmt: skip


def by_protocol(segments: Segments, cut: Cut, multiplex: bool) -> Outcome:
    fed = Fed(multiplex=multiplex)
    outcome = Outcome()
    protocol = fed.protocol
    try:
        for segment in segments:
            for piece in cut(segment):
                fed.feed(piece)
            fed.answer()
    except ProtocolError:
        outcome.broken = True
    owed = b"".join(protocol.out)
    outcome.owed = list(model.Reader().records(owed))
    outcome.closing = protocol.closing
    outcome.idle = not outcome.broken and protocol.idle
    reported = {exchange: fed.state(exchange) for exchange in fed.seen}
    active = protocol.eof()
    for exchange in active:
        # What moved was told, and what was not told has not moved.
        if not outcome.broken:
            assert (exchange in fed.seen) == exchange.params_ended
            if exchange in fed.seen:
                assert reported[exchange] == fed.states[exchange]
        assert exchange.aborted
    gone = [] if outcome.broken else [one for one in fed.seen if one not in active]
    outcome.active = sorted([fed.facts(one, False) for one in active], key=repr)
    outcome.ended = sorted([fed.facts(one, one.aborted) for one in gone], key=repr)
    return outcome


def agree(segments: Segments, cut: Cut, multiplex: bool) -> Outcome:
    expected = by_model(segments, multiplex)
    if expected.broken:
        expected.idle = False
    for way in (whole, byte_by_byte, cut):
        assert by_protocol(segments, way, multiplex) == expected, way
    return expected


# What a driver reads


@settings(max_examples=200, deadline=None)
@given(conversations().map(encode), cuts(), st.booleans())
def test_reads_what_the_model_reads(segments: Segments, cut: Cut, multiplex: bool) -> None:
    agree(segments, cut, multiplex)


@settings(max_examples=400, deadline=None)
@given(disordered() | damaged(), cuts(), st.booleans())
def test_is_as_strict_as_the_model(segments: Segments, cut: Cut, multiplex: bool) -> None:
    agree(segments, cut, multiplex)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda data: b"\1" + data), cuts())
def test_any_bytes(data: bytes, cut: Cut) -> None:
    agree([data], cut, multiplex=False)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(texts, texts), max_size=4),
    st.binary(max_size=6) | st.sampled_from([b"\4", b"\0", b"\x80", b"\x80\0\0\0", b"\1\x80\0\0"]),
    st.integers(0, 12),
)
def test_pairs(some: list[tuple[bytes, bytes]], more: bytes, less: int) -> None:
    block = b"".join([pair(*one) for one in some]) + more
    block = block[: max(0, len(block) - less)]
    agree([begin() + stream(PARAMS, 1, block)], whole, multiplex=False)
    texts_of = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in some]
    if not more and not less:
        assert decode_pairs(block) == texts_of


@settings(max_examples=200, deadline=None)
@given(
    disordered() | damaged() | st.lists(st.binary(max_size=100), max_size=3),
    cuts(),
    st.builds(Limits, st.integers(0, 40), st.integers(0, 4), st.integers(0, 20)),
)
def test_only_two_errors_are_raised(segments: Segments, cut: Cut, limits: Limits) -> None:
    for way in (whole, byte_by_byte, cut):
        fed = Fed(limits)
        try:
            for segment in segments:
                for piece in way(segment):
                    fed.feed(piece)
                fed.answer()
        except (ProtocolError, LimitExceeded):
            assert all(exchange.aborted for exchange in fed.protocol.eof())


def complete(id: int = 1, **options: bool) -> bytes:
    return begin(id, **options) + stream(PARAMS, id, pair(b"A", b"1")) + stream(STDIN, id, b"xyz")


@pytest.mark.statement("8")
def test_long_records_and_long_values() -> None:
    value = bytes(range(256)) * 274
    block = pair(b"LONG", value) + pair(b"N" * 128, b"v" * 127)
    data = begin() + stream(PARAMS, 1, block, padding=255)
    data += stream(STDIN, 1, b"x" * 200_000, padding=255)
    outcome = agree([data], lambda data: [data[:70_000], data[70_000:]], False)
    assert not outcome.broken
    (facts,) = outcome.ended
    assert isinstance(facts, tuple)
    assert facts[3] == [("LONG", value.decode("latin-1")), ("N" * 128, "v" * 127)]


@pytest.mark.statement("18")
def test_several_requests_at_once_are_served_where_that_is_wanted() -> None:
    fed = Fed(multiplex=True)
    assert fed.feed(begin(1) + begin(2) + begin(65535)) == []
    assert fed.feed(stream(PARAMS, 2, pair(b"A", b"2"))) == fed.seen
    (second,) = fed.seen
    fed.feed(stream(PARAMS, 1, pair(b"A", b"1")) + record(STDIN, 2, b"to 2") + record(STDIN, 1))
    fed.feed(record(STDIN, 2, b", again") + record(STDIN, 2))
    assert [one.params["A"] for one in fed.seen] == ["2", "1"]
    assert fed.bodies[second] == b"to 2, again"
    assert all(one.complete for one in fed.seen)
    assert fed.protocol.out == []
    assert not fed.protocol.alone

    # One of them ends; the others do not notice, and its id is free again.
    second.start("200 OK", [])
    second.finish()
    fed.protocol.done(second)
    fed.feed(record(ABORT_REQUEST, 65535))
    fed.feed(complete(2))
    assert [one.id for one in fed.seen] == [2, 1, 65535, 2]
    assert [one.aborted for one in fed.seen] == [False, False, True, False]
    assert [one.id for one in fed.protocol.eof()] == [1, 2]


def test_an_answer_is_cut_so_that_requests_beside_it_live() -> None:
    fed = Fed(multiplex=True)
    fed.feed(complete(1) + complete(2))
    first, second = fed.seen
    first.start("200 OK", [])
    first.send(b"abc")
    assert b"".join(first.fail()) == record(END_REQUEST, 1, b"\0\0\0\1" + bytes(4))
    assert first.keep
    fed.protocol.done(first)
    second.start("200 OK", [])
    assert second.fail() == [record(GET_VALUES_RESULT, 0)]
    assert not second.keep
    fed.protocol.done(second)
    assert fed.protocol.closing


@pytest.mark.parametrize("keep", [True, False])
def test_closing_is_told_when_the_request_has_ended(keep: bool) -> None:
    fed = Fed()
    fed.feed(complete(keep=keep))
    assert not fed.protocol.closing
    assert not fed.protocol.idle
    fed.answer()
    assert fed.protocol.closing is not keep
    assert fed.protocol.idle


def test_a_request_of_an_ended_connection_is_aborted_once() -> None:
    fed = Fed()
    fed.feed(complete()[:-4])
    (exchange,) = fed.protocol.eof()
    assert exchange is fed.seen[0]
    assert exchange.aborted
    assert fed.protocol.closing
    assert fed.protocol.idle
    assert fed.protocol.eof() == []
    exchange.start("200 OK", [])
    for write in writes(exchange):
        with pytest.raises(Aborted):
            write()
    assert exchange.log("too late") == []


def test_an_exchange_that_ended_does_not_end_the_next_one_of_its_id() -> None:
    fed = Fed()
    fed.feed(begin() + stream(PARAMS, 1, b"") + record(ABORT_REQUEST, 1) + begin())
    (aborted,) = fed.seen
    fed.protocol.done(aborted)
    assert not fed.protocol.idle
    fed.feed(stream(PARAMS, 1, b"") + record(STDIN, 1))
    assert fed.seen[1].complete


@pytest.mark.parametrize("first", [GET_VALUES, UNKNOWN_TYPE, 200])
def test_management_within_a_request(first: int) -> None:
    data = begin() + record(PARAMS, 1, pair(b"A", b"1")) + record(first, 0) + record(PARAMS, 1)
    outcome = agree([data + record(first, 0) + record(STDIN, 1)], whole, False)
    assert len(outcome.owed) == 2
    assert not outcome.broken
    assert len(outcome.ended) == 1


def test_data_is_for_filters_only() -> None:
    fed = Fed()
    fed.feed(
        complete()[:-8] + record(DATA, 1, b"file") + record(DATA, 1) + record(DATA, 1, b"more")
    )
    (exchange,) = fed.seen
    assert exchange.data == []
    protocol = FastCGI(NO_LIMITS, VALUES, roles=frozenset({Role.FILTER}))
    data = begin(role=3) + stream(PARAMS, 1, b"") + stream(STDIN, 1, b"in")
    (one,) = protocol.feed(data + record(DATA, 1, b"fi"))
    assert not one.complete
    assert protocol.feed(record(DATA, 1, b"le") + record(DATA, 1)) == [one]
    assert b"".join(one.data) == b"file"
    assert one.complete
    with pytest.raises(ProtocolError):
        protocol.feed(record(DATA, 1, b"more"))


# Limits


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
        if len(block) > size * PARAMS_PATIENCE:
            with pytest.raises(LimitExceeded) as caught:
                limited(limits, data, way)
            assert caught.value.status == "431 Request Header Fields Too Large"
            continue
        exchange = limited(limits, data, way)
        assert exchange.complete
        if len(block) > size or len(some) > 10:
            assert exchange.refused is not None
            assert exchange.refused.status == "431 Request Header Fields Too Large"
            assert not exchange.keep
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
            assert not exchange.keep
            assert exchange.take() == b""
            assert len(fed.bodies[exchange]) <= (0 if too_long else 10)
        else:
            assert exchange.refused is None
            assert fed.bodies[exchange] == body


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
    assert protocol.closing
    answer = read_answer(refusal)
    assert answer.status == "431 Request Header Fields Too Large"


# Work


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


# What goes out


def read_answer(*buffers: Buffer, id: int = 1) -> model.Answer:
    server = model.WebServer()
    answer = server.expect(id)
    server.read(b"".join(buffers))
    assert server.data == b"", "the last record is cut short"
    return answer


def writes(exchange: Exchange) -> list[Callable[[], object]]:
    """All that writes to the answer."""
    return [lambda: exchange.send(b"x"), exchange.finish, exchange.fail]


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


def test_kinds_that_are_not_for_an_application_mean_nothing() -> None:
    data = complete()[:-8]
    for kind in (END_REQUEST, STDOUT, STDERR, GET_VALUES, 0, 99, 255):
        data += record(kind, 1, b"content")
    outcome = agree([data + record(STDIN, 1)], whole, False)
    assert outcome.owed == []
    assert len(outcome.ended) == 1
