"""The application's side of FastCGI reads what the model in tests/model.py reads."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgate.errors import Aborted, LimitExceeded, ProtocolError
from fulgate.exchange import Limits, Role
from fulgate.protocols.fastcgi import (
    FastCGI,
)
from fulgate.protocols.fastcgi_records import (
    decode_pairs,
)
from tests import model
from tests.fuzz.conversations import (
    Cut,
    Segments,
    byte_by_byte,
    conversations,
    cuts,
    damaged,
    disordered,
    encode,
    texts,
    whole,
)
from tests.fuzz.fed import NO_LIMITS, VALUES, Fed, complete, writes
from tests.model import (
    ABORT_REQUEST,
    BEGIN_REQUEST,
    DATA,
    END_REQUEST,
    GET_VALUES,
    GET_VALUES_RESULT,
    PARAMS,
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

# What comes of it


@dataclass
class Outcome:
    broken: bool = False
    active: list[object] = field(default_factory=list)
    ended: list[object] = field(default_factory=list)  # not compared when broken: that feed is lost
    owed: list[Record] = field(default_factory=list)
    closing: bool = False
    idle: bool = False


def by_model(segments: Segments, multiplex: bool, most: int) -> Outcome:
    application = model.Application(
        {name.encode(): value.encode() for name, value in VALUES.items()}, multiplex, most
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


def by_protocol(segments: Segments, cut: Cut, multiplex: bool, most: int) -> Outcome:
    fed = Fed(multiplex=multiplex, max_requests=most)
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


def agree(segments: Segments, cut: Cut, multiplex: bool, most: int = 65535) -> Outcome:
    expected = by_model(segments, multiplex, most)
    if expected.broken:
        expected.idle = False
    for way in (whole, byte_by_byte, cut):
        assert by_protocol(segments, way, multiplex, most) == expected, way
    return expected


# What a driver reads


@settings(max_examples=200, deadline=None)
@given(conversations().map(encode), cuts(), st.booleans())
def test_reads_what_the_model_reads(segments: Segments, cut: Cut, multiplex: bool) -> None:
    agree(segments, cut, multiplex)


@pytest.mark.statement("18")
@pytest.mark.statement("19")
@settings(max_examples=200, deadline=None)
@given(conversations().map(encode), cuts(), st.integers(1, 3))
def test_takes_as_many_at_once_as_the_model(segments: Segments, cut: Cut, most: int) -> None:
    agree(segments, cut, True, most)


@settings(max_examples=400, deadline=None)
@given(disordered() | damaged(), cuts(), st.booleans())
def test_is_as_strict_as_the_model(segments: Segments, cut: Cut, multiplex: bool) -> None:
    agree(segments, cut, multiplex)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(texts, texts), max_size=4),
    st.sampled_from([1, 1, 63, 64, 256, 65535, 0]),
    st.sampled_from([1, 1, 1, 2, 256]),
    st.sampled_from([0, 1, 254, 255]),
    st.sampled_from([0, 0, 5, 255]),
    st.none() | st.tuples(st.integers(-16, 30), st.integers(0, 255)),
)
def test_a_request_without_a_body_in_one_piece(
    some: list[tuple[bytes, bytes]],
    id: int,
    role: int,
    flags: int,
    padding: int,
    wrong: tuple[int, int] | None,
) -> None:
    """This is how web servers send a GET, and it is read by a way of its own."""
    block = b"".join([pair(*one) for one in some])
    data = bytearray(
        record(BEGIN_REQUEST, id, bytes([role >> 8, role & 255, flags, 1, 2, 3, 4, 5]))
    )
    data += record(PARAMS, id, block, padding) + record(PARAMS, id) + record(STDIN, id)
    if wrong is not None and wrong[0] < len(data):
        data[wrong[0]] = wrong[1]  # in one of the headers
    agree([bytes(data), complete(), bytes(data)], whole, multiplex=False)


@pytest.mark.parametrize("place", [*range(24), *range(-16, 0)])
def test_each_byte_of_a_request_in_one_piece_is_looked_at(place: int) -> None:
    for value in (0, 1, 2, 3, 9, 255):
        data = bytearray(begin() + stream(PARAMS, 1, pair(b"A", b"1")) + record(STDIN, 1))
        data[place] = value
        agree([bytes(data), complete(), bytes(data)], whole, multiplex=False)


@pytest.mark.parametrize("id", [1, 2])
@pytest.mark.parametrize("multiplex", [True, False])
def test_a_request_in_one_piece_beside_another(id: int, multiplex: bool) -> None:
    data = begin(1) + begin(id) + stream(PARAMS, id, pair(b"A", b"1")) + record(STDIN, id)
    outcome = agree([data], lambda data: [data[:16], data[16:]], multiplex)
    assert outcome.broken is (id == 1)


def test_roles_are_looked_at_in_a_request_in_one_piece() -> None:
    protocol = FastCGI(NO_LIMITS, VALUES, roles=frozenset({Role.AUTHORIZER}))
    data = begin() + stream(PARAMS, 1, pair(b"A", b"1")) + record(STDIN, 1)
    assert protocol.feed(data) == []
    assert b"".join(protocol.out) == record(
        END_REQUEST, 1, bytes([0, 0, 0, 0, UNKNOWN_ROLE, 0, 0, 0])
    )


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


@pytest.mark.parametrize("cut", [4096, 32768, 65535])
@pytest.mark.parametrize("first", [700, 5000, 40_000, 98_304])
def test_a_long_body_is_bytes_however_it_is_cut(cut: int, first: int) -> None:
    body = bytes(range(256)) * 300
    data = begin() + stream(PARAMS, 1, pair(b"A", b"B")) + stream(STDIN, 1, body, cut=cut)
    fed = Fed()
    fed.feed(data[:first])
    fed.feed(data[first:])
    (exchange,) = fed.seen
    assert type(fed.bodies[exchange]) is bytes
    assert fed.bodies[exchange] == body
    protocol = FastCGI(NO_LIMITS, VALUES)
    (exchange,) = protocol.feed(data[:first]) or protocol.feed(data[first:])
    taken = exchange.take()
    assert type(taken) is bytes
    assert body.startswith(taken)


def test_a_small_piece_does_not_keep_what_came_with_it() -> None:
    """A peer cannot have us hold 64 KiB for each byte of a body by what else it sends."""
    start = begin() + stream(PARAMS, 1, pair(b"A", b"B")) + stream(STDIN, 1, b"x" * 5000, end=False)
    (exchange,) = FastCGI(NO_LIMITS, VALUES).feed(start + stream(STDIN, 2, b"y" * 60_000))
    assert [type(piece) for piece in exchange.body] == [bytes]
    (exchange,) = FastCGI(NO_LIMITS, VALUES).feed(start)
    assert [type(piece) for piece in exchange.body] == [memoryview]


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
    early = begin(role=3) + stream(PARAMS, 1, b"") + record(STDIN, 1, b"in")
    data = early + record(STDIN, 1)
    (one,) = protocol.feed(data + record(DATA, 1, b"fi"))
    assert not one.complete
    assert protocol.feed(record(DATA, 1, b"le") + record(DATA, 1)) == [one]
    assert b"".join(one.data) == b"file"
    assert one.complete
    with pytest.raises(ProtocolError):
        protocol.feed(record(DATA, 1, b"more"))


def test_kinds_that_are_not_for_an_application_mean_nothing() -> None:
    data = complete()[:-8]
    for kind in (END_REQUEST, STDOUT, STDERR, GET_VALUES, 0, 99, 255):
        data += record(kind, 1, b"content")
    outcome = agree([data + record(STDIN, 1)], whole, False)
    assert outcome.owed == []
    assert len(outcome.ended) == 1
