"""Aborts and refusals: statements 15 to 18 and 20."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.apps import wait_for
from tests.model import ABORT_REQUEST, CANT_MPX_CONN, PARAMS, REQUEST_COMPLETE, STDIN, UNKNOWN_ROLE
from tests.raw import Raw, begin, environ, head, pairs, post, record, stream
from tests.servers import Fulgate, Running
from tests.statements import APP, eventually, query, statement, still_serves, written


@statement("15")
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("sent", [0, 10, 10_000], ids=["no PARAMS", "some PARAMS", "all PARAMS"])
def test_abort_before_params_have_ended(served: Fulgate, keep: bool, sent: int) -> None:
    with Raw(served.socket) as raw:
        raw.expect()
        block = pairs(environ())[:sent]
        raw.send(begin(keep=keep), stream(PARAMS, 1, block, end=False), record(ABORT_REQUEST, 1))
        answer = raw.answer()
        assert answer.protocol_status == REQUEST_COMPLETE
        assert answer.stdout == b""
        if keep:
            assert raw.request().body == b"Hello, world!\n"
        else:
            assert raw.closed()


@statement("16")
@pytest.mark.parametrize("keep", [True, False])
def test_abort_while_the_application_runs(served: Fulgate, keep: bool, tmp_path: Path) -> None:
    began, report = tmp_path / "began", tmp_path / "report"
    with Raw(served.socket) as raw:
        raw.expect()
        text = query(began=began, report=report)
        raw.send(head("/patient", text, keep=keep), record(STDIN, 1))
        wait_for(began)
        raw.send(record(ABORT_REQUEST, 1))
        answer = raw.answer()
        assert answer.protocol_status == REQUEST_COMPLETE
        assert answer.stdout == b""
        assert written(report) == "aborted=True"
        if keep:
            assert raw.request().body == b"Hello, world!\n"
        else:
            assert raw.closed()


@statement("16")
def test_abort_of_an_application_that_does_not_look(served: Fulgate, tmp_path: Path) -> None:
    """END_REQUEST comes although the application goes on; its id is free, its answer is lost."""
    go = tmp_path / "go"
    with Raw(served.socket) as raw:
        answer = raw.expect()
        raw.send(head("/stream", query(go=go)), record(STDIN, 1))
        raw.until(1, b"first\n")
        raw.send(record(ABORT_REQUEST, 1))
        assert raw.answer().protocol_status == REQUEST_COMPLETE
        raw.expect()
        raw.send(head("/echo", **post(3)), stream(STDIN, 1, b"new"))
        assert raw.values(b"FCGI_MPXS_CONNS")
        assert not go.exists()
        go.touch()
        assert raw.answer().body == b"new"
        assert answer.body == b"first\n"


@statement("16")
def test_abort_while_the_application_writes(served: Fulgate, tmp_path: Path) -> None:
    report = tmp_path / "report"
    with Raw(served.socket) as raw:
        raw.expect()
        raw.send(head("/endless", query(report=report)), record(STDIN, 1))
        raw.until(1, b"xxxx")
        raw.send(record(ABORT_REQUEST, 1))
        assert raw.answer().protocol_status == REQUEST_COMPLETE
        assert written(report) == "closed, aborted=True"
        assert raw.request().body == b"Hello, world!\n"


@statement("16")
@pytest.mark.parametrize("keep", [True, False])
def test_abort_of_an_answer_that_is_not_read(served: Fulgate, keep: bool) -> None:
    """What was written before the abort still comes, the rest does not, and then END_REQUEST."""
    with Raw(served.socket) as raw:
        raw.expect()
        raw.send(head("/sized", "size=50000000", keep=keep), record(STDIN, 1))
        raw.until(1, b"\r\n\r\n")
        raw.send(record(ABORT_REQUEST, 1))
        assert len(raw.answer().body) < 50_000_000
        if keep:
            assert raw.request().body == b"Hello, world!\n"
        else:
            assert raw.closed()


@statement("17")
@pytest.mark.parametrize("keep", [True, False])
def test_abort_while_the_application_reads(served: Fulgate, keep: bool, tmp_path: Path) -> None:
    began, report = tmp_path / "began", tmp_path / "report"
    with Raw(served.socket) as raw:
        raw.expect()
        text = query(began=began, report=report)
        raw.send(head("/reader", text, keep=keep, **post(100_000)), record(STDIN, 1, b"a part"))
        wait_for(began)
        raw.send(record(ABORT_REQUEST, 1))
        answer = raw.answer()
        assert answer.protocol_status == REQUEST_COMPLETE
        assert answer.stdout == b""
        assert written(report) == "Aborted"
        if keep:
            assert raw.request().body == b"Hello, world!\n"
        else:
            assert raw.closed()


@statement("17")
def test_abort_while_a_small_body_is_waited_for(running: Running, tmp_path: Path) -> None:
    server = running(Fulgate, APP, "--threads", "1", "--body-wait", "60")
    began, report = tmp_path / "began", tmp_path / "report"
    with Raw(server.socket) as raw:
        raw.expect()
        raw.send(head("/reader", query(began=began, report=report), **post(10)))
        raw.send(record(STDIN, 1, b"a part"), record(ABORT_REQUEST, 1))
        assert raw.answer().protocol_status == REQUEST_COMPLETE
        assert raw.request().body == b"Hello, world!\n"
    assert not began.exists()


@statement("16")
@statement("17")
def test_aborts_leave_nothing_in_the_log(running: Running, tmp_path: Path) -> None:
    server = running(Fulgate, APP, "--threads", "1")
    eventually(lambda: " serves " in server.log(), "it says that it serves")
    before = server.log()
    for path in ("/patient", "/reader", "/endless"):
        began, report = tmp_path / "began", tmp_path / "report"
        for how in (record(ABORT_REQUEST, 1), b""):
            with Raw(server.socket) as raw:
                raw.expect()
                raw.send(head(path, query(began=began, report=report), **post(100_000)))
                if path == "/endless":
                    raw.until(1, b"xxxx")
                else:
                    wait_for(began)
                if how:
                    raw.send(how)
                    raw.answer()
            written(report)
            began.unlink(missing_ok=True)
            report.unlink()
    still_serves(server)
    assert server.log() == before


@statement("18")
def test_concurrent_ids_are_served(running: Running, tmp_path: Path) -> None:
    server = running(Fulgate, APP, "--threads", "2")
    go = tmp_path / "go"
    with Raw(server.socket) as raw:
        raw.expect(1)
        raw.send(begin(1))
        for id in (2, 65535):  # while PARAMS come
            assert raw.request(id=id).body == b"Hello, world!\n"
        raw.send(stream(PARAMS, 1, pairs(environ("/stream", query(go=go)))), record(STDIN, 1))
        raw.until(1, b"first\n")
        assert raw.request(id=2).body == b"Hello, world!\n"  # while the application runs
        go.touch()
        assert raw.answer(1).body == b"first\nsecond\n"
        assert raw.request(id=2).body == b"Hello, world!\n"


@statement("18")
def test_concurrent_ids_are_refused_where_that_is_wanted(running: Running, tmp_path: Path) -> None:
    served = running(Fulgate, APP, "--threads", "1", "--no-multiplex")
    go = tmp_path / "go"
    with Raw(served.socket) as raw:
        raw.expect(1)
        raw.send(begin(1))
        for id in (2, 65535):  # while PARAMS come
            raw.expect(id)
            raw.send(head(id=id), stream(STDIN, id, b"ignored"))
            assert raw.answer(id).protocol_status == CANT_MPX_CONN
        raw.send(stream(PARAMS, 1, pairs(environ("/stream", query(go=go)))), record(STDIN, 1))
        raw.until(1, b"first\n")
        raw.expect(2)  # while the application runs
        raw.send(head(id=2), record(STDIN, 2))
        refusal = raw.answer(2)
        assert refusal.protocol_status == CANT_MPX_CONN
        assert refusal.stdout == b""
        go.touch()
        assert raw.answer(1).body == b"first\nsecond\n"
        assert raw.request(id=2).body == b"Hello, world!\n"


@statement("20")
@pytest.mark.parametrize("role", [0, 2, 3, 4, 256, 257, 65535])
def test_unknown_roles(served: Fulgate, role: int) -> None:
    with Raw(served.socket) as raw:
        for _ in range(2):
            raw.expect()
            raw.send(begin(role=role), stream(PARAMS, 1, pairs(environ())), record(STDIN, 1))
            answer = raw.answer()
            assert answer.protocol_status == UNKNOWN_ROLE
            assert answer.stdout == b""
        assert raw.request().body == b"Hello, world!\n"
    with Raw(served.socket) as raw:
        raw.expect()
        raw.send(begin(role=role, keep=False))
        assert raw.answer().protocol_status == UNKNOWN_ROLE
        assert raw.closed()


@statement("20")
def test_unknown_role_behind_replies_that_are_not_read(served: Fulgate) -> None:
    """The refusal waits with them to be sent, and the end of the connection behind it."""
    with Raw(served.socket) as raw:
        raw.expect()
        raw.send(record(99, 0) * 20_000, begin(role=3, keep=False))
        for _ in range(10):  # in the meantime it reads all that
            still_serves(served)
        assert raw.answer().protocol_status == UNKNOWN_ROLE
        assert raw.closed()
        assert len(raw.reader.management) == 20_000
