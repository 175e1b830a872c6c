"""Answers: statements 21 to 24 and 26."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.model import END_REQUEST, PARAMS, REQUEST_COMPLETE, STDERR, STDIN, STDOUT
from tests.raw import Raw, begin, environ, head, pairs, post, record, stream
from tests.servers import Fulgate, Running
from tests.statements import APP, query, statement, still_serves


@statement("21")
@pytest.mark.parametrize(
    ("path", "text", "method"),
    [
        ("/hello", "", "GET"),
        ("/hello", "", "HEAD"),
        ("/empty", "status=200+OK", "GET"),
        ("/empty", "status=204+No+Content", "GET"),
        ("/empty", "status=304+Not+Modified", "GET"),
        ("/sized", "size=0", "GET"),
        ("/sized", "size=65535", "GET"),
        ("/sized", "size=200000", "GET"),
        ("/fails", "", "GET"),
        ("/errors", "", "GET"),
    ],
)
def test_stdout_is_closed_by_an_empty_record(
    served: Fulgate, path: str, text: str, method: str
) -> None:
    with Raw(served.socket) as raw:
        answer = raw.request(path, text, REQUEST_METHOD=method)
    assert answer.stdout_ended
    assert answer.protocol_status == REQUEST_COMPLETE
    assert [one.kind for one in answer.records].count(END_REQUEST) == 1
    stdout = [one.content for one in answer.records if one.kind == STDOUT]
    assert stdout[-1] == b""
    assert stdout.count(b"") == 1


@statement("21")
def test_a_broken_answer_is_cut_without_an_end(served: Fulgate) -> None:
    with Raw(served.socket) as raw:
        with pytest.raises(EOFError):
            raw.request("/breaks")
        answer = raw.reader.answers[1]
        assert answer.body == b"x" * 100_000
        assert not answer.stdout_ended
        assert not answer.ended


@statement("22")
def test_stderr_between_stdout(running: Running) -> None:
    server = running(Fulgate, APP, "--stderr")
    with Raw(server.socket) as raw:
        answer = raw.request("/errors")
        assert answer.body == b"one\ntwo\n"
        assert answer.stderr == b"before one\nbefore two\nthe last\n"
        assert answer.stdout_ended
        assert answer.stderr_ended
        kinds = [one.kind for one in answer.records if one.content]
        assert kinds[:4] == [STDERR, STDOUT, STDERR, STDOUT]
        assert kinds[-2:] == [STDERR, END_REQUEST]

        failed = raw.request("/fails")
        assert failed.status == "500 Internal Server Error"
        assert b"LookupError: this application fails" in failed.stderr
        assert failed.stderr_ended
        assert b"LookupError" not in failed.stdout

        assert [one.kind for one in raw.request().records] == [STDOUT, STDOUT, END_REQUEST]


@statement("22")
def test_no_stderr_without_errors(served: Fulgate) -> None:
    with Raw(served.socket) as raw:
        for path in ("/hello", "/fails", "/errors"):
            raw.request(path)
        assert {one.kind for one in raw.reader.order} == {STDOUT, END_REQUEST}


@statement("23")
@pytest.mark.parametrize("length", ["200000", "", "-1"])
def test_the_answer_may_end_before_stdin_has(served: Fulgate, length: str) -> None:
    with Raw(served.socket) as raw:
        raw.expect()
        raw.send(head(REQUEST_METHOD="POST", CONTENT_LENGTH=length), record(STDIN, 1, b"abc"))
        answer = raw.answer()
        assert answer.body == b"Hello, world!\n"
        assert answer.protocol_status == REQUEST_COMPLETE


@statement("23")
def test_the_answer_may_start_before_stdin_has_ended(served: Fulgate) -> None:
    with Raw(served.socket) as raw:
        raw.expect()
        raw.send(head("/echo", **post(200_000)), record(STDIN, 1, b"a" * 8192))  # it reads so much
        raw.until(1, b"a" * 8192)
        raw.send(record(STDIN, 1, b"b" * 8192))
        raw.until(1, b"b" * 8192)
        raw.send(record(STDIN, 1))
        assert raw.answer().body == b"a" * 8192 + b"b" * 8192


@statement("23")
def test_the_answer_does_not_start_before_params_have_ended(
    served: Fulgate, tmp_path: Path
) -> None:
    began, report = tmp_path / "began", tmp_path / "report"
    with Raw(served.socket) as raw:
        raw.expect()
        block = pairs(environ("/reader", query(began=began, report=report)))
        raw.send(begin(), record(PARAMS, 1, block))
        assert raw.values(b"FCGI_MPXS_CONNS")  # all before it was read
        still_serves(served)  # and its only thread was free afterwards
        assert not began.exists()
        assert not raw.reader.answers[1].records
        raw.send(record(PARAMS, 1), record(STDIN, 1))
        assert raw.answer().body == b"whole\n"


@statement("24")
def test_output_is_cgi(served: Fulgate) -> None:
    with Raw(served.socket) as raw:
        for path, status in [
            ("/hello", b"Status: 200 OK"),
            ("/headers", b"Status: 302 Found"),
            ("/fails", b"Status: 500 Internal Server Error"),
        ]:
            answer = raw.request(path)
            assert answer.head[0] == status
            assert b"HTTP/1" not in answer.stdout
            for line in answer.head:
                assert re.fullmatch(rb"[A-Za-z-]+: [ -~]+", line)
            names = [line.partition(b":")[0].lower() for line in answer.head]
            assert names.count(b"status") == 1
            assert not {b"connection", b"transfer-encoding", b"date", b"server"} & set(names)
        answer = raw.request("/headers")
        assert b"Location: /elsewhere?a=1" in answer.head
        assert answer.head.count(b"Set-Cookie: a=1") == 1
        assert answer.head.count(b"Set-Cookie: b=2") == 1


@statement("26")
@pytest.mark.parametrize("length", [11, 100_000])
def test_a_body_that_is_too_short_can_be_told(served: Fulgate, length: int) -> None:
    with Raw(served.socket) as raw:
        raw.expect()
        raw.send(head("/digest", **post(length)), stream(STDIN, 1, b"0123456789"))
        facts = json.loads(raw.answer().body)
    assert facts["length"] == 10
    assert facts["content_length"] == str(length)
