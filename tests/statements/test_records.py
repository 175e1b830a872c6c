"""Records, streams, pairs and management: statements 3 to 14."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.model import (
    ABORT_REQUEST,
    GET_VALUES,
    GET_VALUES_RESULT,
    PARAMS,
    REQUEST_COMPLETE,
    STDIN,
    UNKNOWN_ROLE,
    UNKNOWN_TYPE,
    Record,
)
from tests.raw import Raw, begin, environ, head, pair, pairs, post, record, stream, values
from tests.servers import Fulgate, Running
from tests.statements import APP, query, statement


@statement("3")
@pytest.mark.parametrize("padding", [0, 1, 7, 8, 128, 255])
def test_padding_is_skipped(served: Fulgate, padding: int) -> None:
    with Raw(served.socket) as raw:
        for _ in range(2):
            answer = raw.request("/echo", body=b"0123456789" * 10, padding=padding, cut=33)
            assert answer.body == b"0123456789" * 10
        raw.send(values(b"FCGI_MPXS_CONNS", padding=padding))
        assert raw.management().kind == GET_VALUES_RESULT
        raw.expect()
        raw.send(begin(padding=padding), record(ABORT_REQUEST, 1, b"", padding))
        assert raw.answer().protocol_status == REQUEST_COMPLETE


@statement("4")
@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 1_000_000])
def test_records_that_are_sent(served: Fulgate, size: int) -> None:
    """The reader takes no other version; a length above 65,535 does not fit in its field."""
    with Raw(served.socket) as raw:
        answer = raw.request("/sized", f"size={size}")
    assert answer.body == (bytes(range(256)) * (size // 256 + 1))[:size]
    assert raw.reader.data == b""
    assert len(answer.records) <= 3 + 2 * (size // 65528 + 1)


@statement("5")
@pytest.mark.parametrize("id", [1, 2, 255, 256, 257, 32768, 65535])
def test_request_id_is_echoed(served: Fulgate, id: int) -> None:
    with Raw(served.socket) as raw:
        assert raw.request(id=id).body == b"Hello, world!\n"
        assert {one.id for one in raw.reader.order} == {id}
        # The reader takes no id but those that it expects.
        raw.expect(id)
        raw.send(begin(id, role=3))
        assert raw.answer(id).protocol_status == UNKNOWN_ROLE
        raw.expect(id)
        raw.send(begin(id), record(ABORT_REQUEST, id))
        assert raw.answer(id).protocol_status == REQUEST_COMPLETE


@statement("6")
def test_records_of_inactive_ids_are_ignored(served: Fulgate) -> None:
    noise = b"".join([record(kind, 7, b"noise") for kind in (*range(2, 13), 200, 255)])
    with Raw(served.socket) as raw:
        raw.send(noise)
        assert raw.request().body == b"Hello, world!\n"
        raw.expect()
        raw.send(head("/echo", **post(3)), noise, record(STDIN, 1, b"abc"), noise)
        raw.send(record(STDIN, 1))
        assert raw.answer().body == b"abc"
        # The id is inactive again: what comes late for it is not for the next request.
        late = record(PARAMS, 1, b"noise") + stream(STDIN, 1, b"noise") + record(ABORT_REQUEST, 1)
        raw.send(late)
        assert raw.request("/echo", body=b"abc").body == b"abc"
        raw.send(late)
        assert set(raw.values(b"FCGI_MAX_CONNS")) == {b"FCGI_MAX_CONNS"}


@statement("7")
@pytest.mark.parametrize("cut", [1, 2, 3, 5, 50])
def test_streams_are_independent_of_records(served: Fulgate, cut: int) -> None:
    wide = {"X_LONG": "v" * 300, "X" * 130: "name"}
    with Raw(served.socket) as raw:
        answer = raw.request("/", "a=b", cut=cut, **wide)
        shown = json.loads(answer.body)
        assert {name: shown[name] for name in wide} == wide
        assert shown["QUERY_STRING"] == "a=b"
        assert raw.request("/echo", body=b"0123456789" * 20, cut=cut).body == b"0123456789" * 20


@statement("7")
def test_a_request_that_comes_in_single_bytes(served: Fulgate) -> None:
    data = head("/echo", **post(5)) + stream(STDIN, 1, b"12345")
    with Raw(served.socket) as raw:
        raw.expect()
        for at in range(len(data)):
            raw.send(data[at : at + 1])
        assert raw.answer().body == b"12345"


@statement("8")
def test_lengths_of_pairs(served: Fulgate) -> None:
    sizes = [0, 1, 126, 127, 128, 129, 255, 256, 300, 70_000]
    sent = {f"V{size}": "v" * size for size in sizes}
    sent.update({"N" * size: f"n{size}" for size in sizes if size})
    with Raw(served.socket) as raw:
        shown = json.loads(raw.request("/", **sent).body)
        assert {name: shown.get(name) for name in sent} == sent
        # Four bytes are allowed for a short length too.
        raw.expect()
        four = b"\x80\0\0\1\x80\0\0\3Xabc" + b"\1\x80\0\0\2Yde" + b"\x80\0\0\1\1Zf"
        block = pairs(environ("/")) + four
        raw.send(begin(), stream(PARAMS, 1, block), record(STDIN, 1))
        shown = json.loads(raw.answer().body)
        assert (shown["X"], shown["Y"], shown["Z"]) == ("abc", "de", "f")


# 9, 10: who closes


@statement("9")
@pytest.mark.parametrize("path", ["/hello", "/fails", "/sized?size=300000"])
def test_without_keep_conn_it_closes(served: Fulgate, path: str) -> None:
    path, _, text = path.partition("?")
    with Raw(served.socket) as raw:
        raw.request(path, text, keep=False)
        assert raw.closed()


@statement("10")
@pytest.mark.parametrize("path", ["/hello", "/fails", "/sized?size=300000"])
def test_with_keep_conn_it_does_not_close(served: Fulgate, path: str) -> None:
    path, _, text = path.partition("?")
    with Raw(served.socket) as raw:
        for _ in range(3):
            raw.request(path, text)
        assert raw.request().body == b"Hello, world!\n"
        # An answer that does not wait for the whole body leaves the connection usable as well.
        raw.expect()
        raw.send(head(**post(200_000)), record(STDIN, 1, b"the first part"))
        assert raw.answer().body == b"Hello, world!\n"
        raw.send(stream(STDIN, 1, b"x" * 199_986))
        assert raw.request().body == b"Hello, world!\n"


# 11 to 14: management records


@statement("11")
def test_get_values(running: Running) -> None:
    options = ("--threads", "3", "--queue", "20", "--worker-connections", "50")
    server = running(Fulgate, APP, *options)
    all_three = {b"FCGI_MAX_CONNS": b"50", b"FCGI_MAX_REQS": b"23", b"FCGI_MPXS_CONNS": b"1"}
    with Raw(server.socket) as raw:
        assert raw.values(*all_three) == all_three
        for name, value in all_three.items():
            assert raw.values(name) == {name: value}
        assert raw.request().body == b"Hello, world!\n"


@statement("12")
def test_unknown_names_are_left_out(served: Fulgate) -> None:
    with Raw(served.socket) as raw:
        assert list(raw.values(b"FCGI_OTHER", b"FCGI_MPXS_CONNS", b"")) == [b"FCGI_MPXS_CONNS"]
        assert raw.values(b"fcgi_mpxs_conns", b"N" * 200) == {}
        assert raw.values() == {}


@statement("13")
@statement("14")
@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (values(b"FCGI_MPXS_CONNS"), Record(GET_VALUES_RESULT, 0, pair(b"FCGI_MPXS_CONNS", b"1"))),
        (record(77, 0, b"what"), Record(UNKNOWN_TYPE, 0, bytes([77, 0, 0, 0, 0, 0, 0, 0]))),
    ],
)
def test_management_records_at_any_time(
    served: Fulgate, tmp_path: Path, asked: bytes, told: Record
) -> None:
    go = tmp_path / "go"
    steps = [
        begin(),
        record(PARAMS, 1, pairs(environ("/stream", query(go=go), **post(6)))[:50]),
        record(PARAMS, 1, pairs(environ("/stream", query(go=go), **post(6)))[50:]),
        record(PARAMS, 1),
        record(STDIN, 1, b"abc"),
        record(STDIN, 1, b"def"),
        record(STDIN, 1),
    ]
    with Raw(served.socket) as raw:
        raw.send(asked)
        assert raw.management() == told
        answer = raw.expect()
        for step in steps:
            raw.send(step, asked)
            assert raw.management() == told
        # While the application runs, on the only thread there is:
        raw.until(1, b"first\n")
        raw.send(asked)
        assert raw.management() == told
        assert not answer.ended
        go.touch()
        assert raw.answer().body == b"first\nsecond\n"
        raw.send(asked)
        assert raw.management() == told


@statement("14")
def test_unknown_management_types(served: Fulgate) -> None:
    with Raw(served.socket) as raw:
        for kind in range(256):
            if kind != GET_VALUES:
                raw.send(record(kind, 0, bytes(kind)))
                assert raw.management() == Record(UNKNOWN_TYPE, 0, bytes([kind]) + bytes(7))
        assert raw.request().body == b"Hello, world!\n"
