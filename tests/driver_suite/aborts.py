"""The web server gives a request up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from fulgate import Aborted
from tests.driver_suite.kit import (
    END,
    TEXT,
    Environ,
    Flag,
    Gate,
    MakeServer,
    Start,
    answer,
    until,
)
from tests.model import ABORT_REQUEST, CANT_MPX_CONN, END_REQUEST, PARAMS, STDIN, Reader
from tests.raw import PATIENCE, Raw, begin, environ, head, pairs, post, record


@pytest.mark.statement("15")
def test_an_abort_before_params_have_ended(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate)
    with Raw(served.address) as raw:
        raw.expect()
        raw.send(begin(), record(PARAMS, 1, pairs(environ())), record(ABORT_REQUEST, 1))
        assert not raw.answer().stdout
        assert raw.request().body == b"/hello"
    assert gate.paths == ["/hello"]


@pytest.mark.statement("15")
def test_an_abort_while_a_body_is_waited_for(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, body_wait=PATIENCE)
    with Raw(served.address) as raw:
        raw.expect()
        raw.send(head(**post(10)), record(ABORT_REQUEST, 1))
        assert not raw.answer().stdout
        assert raw.request().body == b"/hello"
    assert gate.paths == ["/hello"]


@pytest.mark.statement("16")
def test_an_abort_while_the_application_runs(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=2)
    (raw,) = gate.hold(served, 1)
    raw.send(record(ABORT_REQUEST, 1))
    assert raw.answer().protocol_status == 0
    # The same id, while the thread may still be in the application that was aborted.
    assert raw.request().body == b"/hello"
    until(lambda: gate.raised == [Aborted], "the write did not raise")
    assert raw.request().body == b"/hello"  # a second END_REQUEST would have been seen
    raw.socket.close()


@pytest.mark.statement("16")
def test_a_connection_that_is_not_kept_closes_after_an_abort(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=2)
    with Raw(served.address) as raw:
        raw.expect()
        raw.send(head("/wait", keep=False), END)
        until(lambda: gate.inside, "it did not start")
        raw.send(record(ABORT_REQUEST, 1))
        raw.answer()
        assert raw.closed()


@pytest.mark.statement("17")
@pytest.mark.parametrize("how", ["record", "close", "half"])
def test_an_abort_while_the_application_reads(make_server: MakeServer, how: str) -> None:
    reading = Flag()
    raised = list[type]()

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "POST":
            return answer(start)
        environ["wsgi.input"].read(10)
        reading.set()
        for _ in range(2):  # and it raises again
            try:
                environ["wsgi.input"].read()
            except OSError as error:
                raised.append(type(error))
        return answer(start)

    served = make_server(app, threads=1)
    with Raw(served.address) as raw:
        raw.expect()
        raw.send(head(**post(100_000)), record(STDIN, 1, bytes(10)))
        reading.come()
        if how == "record":
            raw.send(record(ABORT_REQUEST, 1))
            assert not raw.answer().stdout
            assert raw.request().body == b"ok\n"
        elif how == "half":
            raw.end()
            assert raw.closed()
    until(lambda: len(raised) == 2, "a read did not raise")
    assert raised == [Aborted, Aborted]


@pytest.mark.statement("17")
def test_a_request_right_behind_an_abort_is_served(make_server: MakeServer) -> None:
    reading = [Flag() for _ in range(10)]
    go = [Flag() for _ in range(10)]

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "POST":
            turn = int(environ["QUERY_STRING"])
            reading[turn].set()
            try:
                environ["wsgi.input"].read()
            except Aborted:
                go[turn].come()  # an application that does not care
        return answer(start)

    served = make_server(app, threads=2)
    with Raw(served.address) as raw:
        for turn in range(10):
            raw.expect()
            raw.send(head(query=str(turn), **post(100_000)))
            reading[turn].come()
            raw.expect(2)
            raw.send(record(ABORT_REQUEST, 1), head(id=2), record(STDIN, 2))
            raw.answer(1)
            assert raw.answer(2).body == b"ok\n"
            go[turn].set()


@pytest.mark.statement("15")
def test_a_request_and_its_abort_in_one_piece(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate)
    with Raw(served.address) as raw:
        for data in (head() + END, head(**post(10)), head("/wait", **post(100_000))):
            raw.expect()
            raw.send(data + record(ABORT_REQUEST, 1))
            assert not raw.answer().stdout
            assert raw.request("/next").body == b"/next"
        raw.expect()
        raw.send(head(keep=False), END, record(ABORT_REQUEST, 1))
        assert not raw.answer().stdout
        assert raw.closed()
    assert set(gate.paths) == {"/next"}


def test_the_end_of_an_abort_comes_before_the_next_answer(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=1, queue=0)
    (raw,) = gate.hold(served, 1)
    raw.send(record(ABORT_REQUEST, 1), head(), END)
    got = [record.kind for record in Reader().records(raw.socket.recv(65_536))]
    assert got[0] == END_REQUEST
    raw.socket.close()


def test_a_client_that_goes_while_it_is_answered(make_server: MakeServer) -> None:
    raised = Flag()

    def app(environ: Environ, start: Start) -> Iterator[bytes]:
        start("200 OK", TEXT)
        try:
            while True:
                yield bytes(100_000)
        finally:
            if environ["fulgate.aborted"]():
                raised.set()

    served = make_server(app, write_behind=200_000)
    for address in (served.address, served.tcp):
        raised.clear()
        with Raw(address) as raw:
            raw.expect()
            raw.send(head(), END)
            raw.until(1, bytes(1000))
        raised.come()


@pytest.mark.statement("18")
def test_where_it_is_not_wanted_a_request_beside_another_is_refused(
    make_server: MakeServer,
) -> None:
    gate = Gate()
    served = make_server(gate, threads=2, multiplex=False)
    (raw,) = gate.hold(served, 1)
    assert raw.values(b"FCGI_MPXS_CONNS") == {b"FCGI_MPXS_CONNS": b"0"}
    raw.expect(2)
    raw.send(head(id=2), record(STDIN, 2))
    assert raw.answer(2).protocol_status == CANT_MPX_CONN
    gate.open.set()
    assert raw.answer(1).body == b"/wait"
    raw.socket.close()


@pytest.mark.statement("13")
def test_values_are_given_while_the_application_runs(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=1)
    (raw,) = gate.hold(served, 1)
    assert raw.values(b"FCGI_MAX_REQS") == {b"FCGI_MAX_REQS": b"1025"}
    gate.open.set()
    assert raw.answer(1).body == b"/wait"
    raw.socket.close()
