"""The web server's side of FastCGI 1.0: what it writes, read by a model, and what it reads."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgate.errors import ProtocolError
from fulgate.exchange import Limits, Role
from fulgate.protocols.fastcgi import (
    FastCGI,
)
from fulgate.protocols.fastcgi_client import FastCGIClient, Request, encode_pairs, stream
from fulgate.protocols.fastcgi_records import (
    ABORT_REQUEST,
    BEGIN_REQUEST,
    CANT_MPX_CONN,
    DATA,
    END_REQUEST,
    GET_VALUES,
    GET_VALUES_RESULT,
    KEEP_CONN,
    OVERLOADED,
    PARAMS,
    STDERR,
    STDIN,
    STDOUT,
    UNKNOWN_TYPE,
    encode_pair,
    record,
)


def read_records(data: bytes) -> list[tuple[int, int, bytes]]:
    """Read records as section 3.3 has them, slowly and plainly."""
    records = []
    while data:
        version, kind, id, length, padding, _ = struct.unpack(">BBHHBB", data[:8])
        assert version == 1
        assert len(data) >= 8 + length + padding
        records.append((kind, id, data[8 : 8 + length]))
        data = data[8 + length + padding :]
    return records


def read_pairs(data: bytes) -> list[tuple[bytes, bytes]]:
    """Read name-value pairs as section 3.4 has them."""
    pairs = []
    while data:
        lengths = []
        for _ in range(2):
            if data[0] >> 7:
                lengths.append(struct.unpack(">I", data[:4])[0] & 0x7FFFFFFF)
                data = data[4:]
            else:
                lengths.append(data[0])
                data = data[1:]
        name, value = lengths
        assert len(data) >= name + value
        pairs.append((data[:name], data[name : name + value]))
        data = data[name + value :]
    return pairs


def end_request(id: int = 1, app_status: int = 0, protocol_status: int = 0) -> bytes:
    return record(END_REQUEST, id, struct.pack(">IB3x", app_status, protocol_status))


def begun(client: FastCGIClient, role: Role = Role.RESPONDER) -> Request:
    return client.begin([("REQUEST_METHOD", "GET")], role)[0]


def feed_in_steps(client: FastCGIClient, data: bytes, step: int) -> None:
    for pos in range(0, len(data), step):
        client.feed(data[pos : pos + step])


# what it writes


def test_a_request_is_begin_params_and_stdin() -> None:
    client = FastCGIClient()
    request, out = client.begin({"A": "1", "NAME": "\xfc"}.items())
    assert len(out) == 1  # a GET leaves in one piece
    out += request.send(b"body")
    out += request.end()
    assert read_records(b"".join(out)) == [
        (BEGIN_REQUEST, 1, bytes((0, 1, KEEP_CONN, 0, 0, 0, 0, 0))),
        (PARAMS, 1, b"\x01\x01A1\x04\x01NAME\xfc"),
        (PARAMS, 1, b""),
        (STDIN, 1, b"body"),
        (STDIN, 1, b""),
    ]


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("keep", [False, True])
def test_begin_tells_role_and_flag(role: Role, keep: bool) -> None:
    _, out = FastCGIClient().begin([], role, keep)
    assert read_records(b"".join(out))[0][2] == bytes((0, role, keep, 0, 0, 0, 0, 0))


@pytest.mark.parametrize("size", [0, 1, 127, 128, 65_520, 65_535, 65_536, 70_000, 200_000])
def test_pairs_straddle_records(size: int) -> None:
    pairs = [("BEFORE", "1"), ("LONG", "x" * size), ("N" * (size or 1), "after")]
    _, out = FastCGIClient().begin(pairs)
    records = read_records(b"".join(out))[1:]
    assert all(kind == PARAMS and content for kind, _, content in records[:-1])
    assert records[-1] == (PARAMS, 1, b"")
    block = b"".join(content for _, _, content in records)
    assert read_pairs(block) == [(a.encode(), b.encode()) for a, b in pairs]


@settings(deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=300))))
def test_any_pairs_are_read_back(pairs: list[tuple[bytes, bytes]]) -> None:
    assert read_pairs(encode_pairs(pairs)) == pairs


def test_pairs_outside_latin_1_are_misuse() -> None:
    with pytest.raises(UnicodeEncodeError):
        FastCGIClient().begin([("NAME", "\u20ac")])


@pytest.mark.parametrize("size", [0, 1, 32_768, 32_769, 65_535, 65_536, 1_000_000])
def test_streams_are_cut_at_65535(size: int) -> None:
    data = random.Random(size).randbytes(size)
    records = read_records(b"".join(stream(STDIN, 0x1234, data)))
    assert b"".join(content for _, _, content in records) == data
    assert all(content for _, _, content in records)  # an empty one would end the stream
    assert {(kind, id) for kind, id, _ in records} <= {(STDIN, 0x1234)}


def test_a_filter_has_data_and_others_have_none() -> None:
    client = FastCGIClient()
    request = begun(client, Role.FILTER)
    out = [*request.end(), *request.send_data(b"file"), *request.end_data()]
    assert read_records(b"".join(out)) == [(STDIN, 1, b""), (DATA, 1, b"file"), (DATA, 1, b"")]
    with pytest.raises(RuntimeError):
        begun(client).send_data(b"file")


def test_streams_end_once() -> None:
    request = begun(FastCGIClient(), Role.FILTER)
    request.end()
    request.end_data()
    for call in (request.end, request.end_data):
        with pytest.raises(RuntimeError):
            call()
    for send in (request.send, request.send_data):
        with pytest.raises(RuntimeError):
            send(b"more")


def test_the_next_free_id_is_taken() -> None:
    client = FastCGIClient()
    first, second = begun(client), begun(client)
    assert (first.id, second.id) == (1, 2)
    client.feed(end_request(1))
    assert begun(client).id == 3  # what comes late for the first one is taken for no other's
    assert client.begin([], id=65_535)[0].id == 65_535
    assert begun(client).id == 1
    assert begun(client).id == 4
    for id in (1, 65_535, 65_536, -1):
        with pytest.raises(ValueError, match="in use or out of range"):
            client.begin([], id=id)


def test_nothing_leaves_for_a_request_that_ended_or_was_aborted() -> None:
    client = FastCGIClient()
    ended = begun(client, Role.FILTER)
    client.feed(end_request())
    assert ended.send(b"late") == ended.end() == ended.abort() == []
    assert ended.send_data(b"late") == ended.end_data() == []
    aborted = begun(client)
    assert read_records(b"".join(aborted.abort())) == [(ABORT_REQUEST, 2, b"")]
    assert aborted.abort() == aborted.send(b"late") == aborted.end() == []
    assert not client.idle  # its id is in use until the application says so
    client.feed(end_request(2))
    assert client.idle
    assert aborted.ended
    assert not aborted.whole


def test_get_values_asks_with_empty_values() -> None:
    client = FastCGIClient()
    (out,) = client.get_values(["FCGI_MAX_CONNS", "X"])
    assert read_records(bytes(out)) == [(GET_VALUES, 0, b"\x0e\x00FCGI_MAX_CONNS\x01\x00X")]
    assert client.values is None
    client.feed(record(GET_VALUES_RESULT, 0, encode_pair(b"FCGI_MAX_CONNS", b"7")))
    assert client.values == [("FCGI_MAX_CONNS", "7")]
    client.get_values()
    assert client.values is None
    with pytest.raises(ValueError, match="one record"):
        client.get_values(["N" * 65_535])


# what it reads


def test_an_answer() -> None:
    client = FastCGIClient()
    request = begun(client)
    assert client.feed(record(STDOUT, 1, b"Status: 200 OK\r\n\r\n")) == [request]
    assert client.feed(record(STDERR, 1, b"warning")) == [request]
    assert client.feed(record(STDOUT, 1, b"body", 255)) == [request]
    assert request.take() == b"Status: 200 OK\r\n\r\nbody"
    assert request.take_stderr() == b"warning"
    assert request.take() == request.take_stderr() == b""
    assert not request.stdout_ended
    ends = record(STDOUT, 1) + record(STDERR, 1, b"", 3) + end_request(1, 0xFFFFFFFE)
    assert client.feed(ends) == [request]
    assert request.stdout_ended
    assert request.stderr_ended
    assert request.ended
    assert request.whole
    assert request.app_status == 0xFFFFFFFE
    assert request.received == 22
    assert client.idle
    assert client.eof() == []
    assert not request.cut


def test_requests_on_one_connection_are_kept_apart() -> None:
    client = FastCGIClient()
    requests = [begun(client) for _ in range(300)]
    parts = {request: [b"%d." % n for n in range(request.id % 7)] for request in requests}
    records = [record(STDOUT, r.id, part) for r in requests for part in parts[r]]
    random.Random(1).shuffle(records)
    moved = client.feed(b"".join(records))
    assert {r.id for r in moved} == {r.id for r in requests if r.id % 7}
    for request in requests:
        assert sorted(request.stdout) == parts[request]


@pytest.mark.parametrize("status", [CANT_MPX_CONN, OVERLOADED])
def test_a_refusal_is_no_whole_answer(status: int) -> None:
    client = FastCGIClient()
    request = begun(client)
    client.feed(end_request(1, 0, status))
    assert request.ended
    assert not request.whole
    assert request.protocol_status == status


def test_an_end_without_the_end_of_stdout_is_told() -> None:
    client = FastCGIClient()
    request = begun(client)
    client.feed(record(STDOUT, 1, b"x") + end_request())
    assert request.whole
    assert not request.stdout_ended


def test_a_connection_that_closes_cuts_its_requests() -> None:
    client = FastCGIClient()
    first, second = begun(client), begun(client)
    client.feed(record(STDOUT, 1, b"x") + end_request(1) + record(STDOUT, 2, b"y") + b"\x01\x03")
    assert client.eof() == [second]
    assert (first.cut, second.cut) == (False, True)
    assert not second.whole
    assert client.idle


def test_unknown_type_is_noted() -> None:
    client = FastCGIClient()
    assert client.feed(record(UNKNOWN_TYPE, 0, bytes((200, 0, 0, 0, 0, 0, 0, 0)))) == []
    assert client.unknown_types == [200]


MALFORMED = {
    "version 0": b"\0" + record(STDOUT, 1)[1:],
    "version 2": b"\2" + record(STDOUT, 1)[1:],
    "HTTP": b"HTTP/1.1 200 OK\r\n\r\n",
    "short END_REQUEST": record(END_REQUEST, 1, bytes(7)),
    "long END_REQUEST": record(END_REQUEST, 1, bytes(9)),
    "unknown protocolStatus": end_request(1, 0, 4),
    "STDOUT of an inactive id": record(STDOUT, 2, b"x"),
    "END_REQUEST twice": end_request() + end_request(),
    "END_REQUEST of the null id": end_request(0),
    "STDOUT of the null id": record(STDOUT, 0, b"x"),
    "STDOUT after its end": record(STDOUT, 1) + record(STDOUT, 1, b"x"),
    "STDERR after its end": record(STDERR, 1) + record(STDERR, 1, b"x"),
    "BEGIN_REQUEST": record(BEGIN_REQUEST, 1, bytes(8)),
    "STDIN": record(STDIN, 1, b"x"),
    "unknown type": record(99, 1),
    "unknown management type": record(99, 0),
    "GET_VALUES": record(GET_VALUES, 0),
    "UNKNOWN_TYPE of no content": record(UNKNOWN_TYPE, 0),
    "a cut pair": record(GET_VALUES_RESULT, 0, encode_pair(b"NAME", b"value")[:-1]),
    "a cut length": record(GET_VALUES_RESULT, 0, b"\x80\0"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_input_is_a_protocol_error(name: str) -> None:
    data = MALFORMED[name]
    for step in (len(data), 1):
        client = FastCGIClient()
        begun(client)
        with pytest.raises(ProtocolError):
            feed_in_steps(client, data, step)


kinds = st.sampled_from([*range(1, 12), STDOUT, STDERR, END_REQUEST, 99])
contents = st.one_of(st.binary(max_size=20), st.just(bytes(8)))
records = st.builds(record, kinds, st.integers(0, 3), contents, st.integers(0, 255))


@settings(deadline=None)
@given(st.lists(st.one_of(records, st.binary(max_size=30))), st.randoms())
def test_any_bytes_parse_or_raise_the_one_error(parts: list[bytes], cuts: random.Random) -> None:
    data = b"".join(parts)

    def run(pieces: list[bytes]) -> tuple[object, ...]:
        client = FastCGIClient()
        requests = [begun(client) for _ in range(2)]
        failed = False
        try:
            for piece in pieces:
                client.feed(piece)
        except ProtocolError:
            failed = True
        seen = [
            (r.take(), r.take_stderr(), r.ended, r.stdout_ended, r.app_status) for r in requests
        ]
        return failed, client.values, client.unknown_types, seen

    at = sorted(cuts.randrange(len(data) + 1) for _ in range(5))
    pieces = [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]
    whole = run([data])
    assert run(pieces) == whole
    assert run([data[n : n + 1] for n in range(len(data))]) == whole


def test_dribbled_input_is_linear() -> None:
    client = FastCGIClient()
    request = begun(client)
    data = record(STDOUT, 1, bytes(65_535)) * 4
    for n in range(len(data)):
        client.feed(data[n : n + 1])
    assert len(request.take()) == 4 * 65_535


# both sides together


@settings(deadline=None)
@given(
    st.dictionaries(st.text("ABC_", min_size=1, max_size=200), st.text("xyz\xff", max_size=300)),
    st.lists(st.binary(max_size=100)),
    st.lists(st.binary(max_size=100)),
    st.integers(0, 0xFFFFFFFF),
    st.booleans(),
)
def test_both_sides_understand_one_another(
    params: dict[str, str], body: list[bytes], answer: list[bytes], app_status: int, keep: bool
) -> None:
    client = FastCGIClient()
    server = FastCGI(Limits(), {"FCGI_MPXS_CONNS": "0"})
    request, out = client.begin(params.items(), keep=keep)
    for piece in body:
        out += request.send(piece)
    out += request.end()
    out += client.get_values()
    (exchange,) = server.feed(b"".join(out))
    assert exchange.complete
    assert exchange.params == params
    assert exchange.take() == b"".join(body)
    assert exchange.keep is keep
    exchange.start("200 OK", [("X", "y")])
    back = list(server.out)
    for piece in answer:
        back += exchange.send(piece)
    back += exchange.finish(b"", app_status)
    assert client.feed(b"".join(back)) == [request]
    assert request.whole
    assert request.take() == b"Status: 200 OK\r\nX: y\r\n\r\n" + b"".join(answer)
    assert request.app_status == app_status
    assert client.values == [("FCGI_MPXS_CONNS", "0")]


def test_an_abort_is_acknowledged() -> None:
    client = FastCGIClient()
    server = FastCGI(Limits(), {})
    request, out = client.begin([("A", "b")])
    (exchange,) = server.feed(b"".join(out))
    assert server.feed(b"".join(request.abort())) == [exchange]
    assert exchange.aborted
    client.feed(b"".join(server.out))
    assert request.ended
    assert not request.whole


def test_ids_are_used_up_and_had_again() -> None:
    client = FastCGIClient()
    requests = [client.begin([])[0] for _ in range(65_535)]
    with pytest.raises(RuntimeError, match="all request ids"):
        client.begin([])
    client.feed(end_request(requests[4241].id))
    assert client.begin([])[0].id == 4242
