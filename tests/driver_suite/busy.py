"""Every thread is in the application, or the application does not behave."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest

from fulgate import Aborted
from tests.driver_suite.kit import (
    Environ,
    Gate,
    Log,
    MakeServer,
    Start,
    answer,
    ask,
    settle,
    silent,
    until,
)
from tests.model import ABORT_REQUEST, STDIN
from tests.raw import Raw, head, post, record, stream


def test_a_further_request_is_answered_when_a_thread_is_free(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=2)
    held = gate.hold(served, 2)
    late = [ask(served) for _ in range(5)]
    with Raw(served.address) as raw:
        assert raw.values(b"FCGI_MAX_CONNS")
    assert all(silent(raw) for raw in late)
    gate.open.set()
    for raw in held + late:
        assert raw.answer().status == "200 OK"
        raw.socket.close()


@pytest.mark.parametrize("queue", [0, 1, 3])
def test_503_when_the_queue_is_full(make_server: MakeServer, queue: int) -> None:
    gate = Gate()
    served = make_server(gate, threads=2, queue=queue)
    held = gate.hold(served, 2)
    with Raw(served.address) as raw:
        waiting = []
        for _ in range(queue):
            waiting.append(ask(served))
            settle(raw)
        for _ in range(3):
            shed = raw.request(**post(5), body=b"01234")
            assert shed.status == "503 Service Unavailable"
            assert b"Retry-After: 1" in shed.head
        assert all(silent(one) for one in waiting)
        gate.open.set()
        for one in held + waiting:
            assert one.answer().status == "200 OK"
            one.socket.close()
        until(lambda: raw.request().status == "200 OK", "it is still full")


def test_a_request_whose_body_is_late_is_shed_like_any_other(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=1, queue=0, body_wait=0.2)
    held = gate.hold(served, 1)
    body = stream(STDIN, 1, bytes(1000))
    with Raw(served.address) as raw:
        raw.expect()
        raw.send(head(**post(1000)), body[:500])  # within a record
        assert raw.answer().status == "503 Service Unavailable"
        time.sleep(0.4)  # longer than body_wait: nothing of that may be left
        raw.send(body[500:])
        assert raw.request().status == "503 Service Unavailable"
        gate.open.set()
        assert held[0].answer().body == b"/wait"
        until(lambda: raw.request().status == "200 OK", "it is still full")
    held[0].socket.close()


def test_aborts_are_noted_when_every_thread_is_busy(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=2)
    by_record, by_close = gate.hold(served, 2)
    by_close.socket.close()
    by_record.send(record(ABORT_REQUEST, 1))
    assert not by_record.answer().stdout
    until(lambda: gate.aborted == 2, "an abort was not noted")
    until(lambda: gate.raised == [Aborted, Aborted], "a write did not raise")
    assert by_record.request().body == b"/hello"
    by_record.socket.close()


def test_a_client_that_goes_while_it_is_queued_is_not_served(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=1)
    held = gate.hold(served, 1)
    gone = [ask(served, "/gone") for _ in range(5)]
    stays = ask(served, "/stays")
    with Raw(served.address) as raw:
        settle(raw)
        for one in gone:
            one.socket.close()
        time.sleep(1.0)  # long enough in the queue to be looked after
        gate.open.set()
        assert held[0].answer().body == b"/wait"
        assert stays.answer().body == b"/stays"
    assert "/gone" not in gate.paths
    for one in (*held, stays):
        one.socket.close()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError])
def test_no_exception_costs_a_thread(
    make_server: MakeServer, log: Log, error: type[BaseException]
) -> None:
    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/raise":
            raise error
        if environ["PATH_INFO"] == "/after":
            environ["fulgate.after"](after)
        return answer(start)

    def after() -> None:
        raise error

    served = make_server(app, threads=2)
    for path in ("/raise", "/after") * 4:
        with Raw(served.address) as raw:
            wanted = "500 Internal Server Error" if path == "/raise" else "200 OK"
            assert raw.request(path).status == wanted
    with Raw(served.address) as raw:
        for _ in range(5):
            assert raw.request().body == b"ok\n"
    found = 0

    def all_are_logged() -> bool:  # the last one, perhaps, only after its answer
        nonlocal found
        found += log.tracebacks()
        return found >= 8

    until(all_are_logged, "an exception was not logged")
    assert found == 8
