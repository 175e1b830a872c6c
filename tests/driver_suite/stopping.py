"""Stopping."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable

import pytest

from fulgate import Aborted
from tests.driver_suite.kit import (
    END,
    Environ,
    Flag,
    Gate,
    Log,
    MakeServer,
    Served,
    Start,
    answer,
    ask,
    hello,
    reports,
    until,
)
from tests.model import STDIN
from tests.raw import PATIENCE, Raw, head, post, record


def test_stop_closes_idle_connections_at_once(make_server: MakeServer) -> None:
    served = make_server(hello)
    clients = [Raw(served.address) for _ in range(100)]
    for raw in clients:
        raw.request()
    began = time.monotonic()
    assert served.stop(PATIENCE)  # connections are kept alive for longer than that
    assert time.monotonic() - began < PATIENCE / 2
    for raw in clients:
        assert raw.closed()
        raw.socket.close()


def test_stop_lets_requests_end(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=2)
    held = gate.hold(served, 2)
    queued = [ask(served) for _ in range(3)]
    with Raw(served.address) as raw:
        raw.values(b"FCGI_MPXS_CONNS")
        stopper = Stopper(served, PATIENCE)
        assert raw.closed()
    gate.open.set()
    for one in held:
        assert one.answer().body == b"/wait"
    for one in queued:
        assert one.answer().body == b"/hello"
    for one in held + queued:
        assert one.closed()
        one.socket.close()
    assert stopper.result() is True


class Stopper(threading.Thread):
    def __init__(self, served: Served, timeout: float) -> None:
        super().__init__()
        self.served = served
        self.timeout = timeout
        self.stopped: bool | None = None
        self.start()

    def run(self) -> None:
        self.stopped = self.served.stop(self.timeout)

    def result(self) -> bool | None:
        self.join(PATIENCE)
        assert not self.is_alive(), "it does not stop"
        return self.stopped


def test_stop_serves_who_had_connected_before(make_server: MakeServer) -> None:
    for _ in range(5):
        served = make_server(hello, threads=2)
        clients = [ask(served) for _ in range(50)]  # some of them in the queue of the socket
        assert served.stop(PATIENCE) is True
        for raw in clients:
            assert raw.answer().body == b"hello\n"
            assert raw.closed()
            raw.socket.close()


def test_stop_waits_for_a_body_that_comes(make_server: MakeServer) -> None:
    started, seen = Flag(), list[bytes]()
    served = make_server(reports(started, seen), body_wait=0.0)
    waits = make_server(hello, body_wait=PATIENCE)
    with Raw(served.address) as raw, Raw(waits.address) as other:
        raw.expect()
        raw.send(head(**post(1000)), record(STDIN, 1, bytes(500)))
        started.come()
        other.expect()
        other.send(head(**post(10)))
        other.values(b"FCGI_MPXS_CONNS")
        stoppers = [Stopper(served, PATIENCE), Stopper(waits, PATIENCE)]
        raw.send(record(STDIN, 1, bytes(500)), END)
        assert raw.answer().body == b"ok\n"
        other.send(record(STDIN, 1, bytes(10)), END)
        assert other.answer().body == b"hello\n"
        assert raw.closed()
        assert other.closed()
    assert [stopper.result() for stopper in stoppers] == [True, True]
    assert seen == [bytes(1000)]


def test_the_deadline_of_stop_cuts(make_server: MakeServer, log: Log) -> None:
    gate = Gate()
    reading = Flag()

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/read":
            reading.set()
            environ["wsgi.input"].read()
        if environ["PATH_INFO"] == "/long":
            return answer(start, bytes(5_000_000))
        return gate(environ, start)

    served = make_server(app, threads=3)
    clients = gate.hold(served, 1)
    for path in ("/read", "/long"):
        raw = Raw(served.address)
        raw.expect()
        raw.send(head(path, **post(1_000_000)))
        clients.append(raw)
    reading.come()
    clients[-1].until(1, bytes(1000))
    assert served.stop(0.2) is False
    until(lambda: gate.raised == [Aborted], "the write did not raise")
    for raw in clients:
        with pytest.raises(EOFError):
            raw.answer()
        raw.socket.close()
    assert [line for line in log.lines() if "3 requests unfinished" in line]


def test_a_stop_that_waits_can_be_cut(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=1)
    (raw,) = gate.hold(served, 1)
    stopper = Stopper(served, 10 * PATIENCE)
    until(lambda: not can_connect(served), "it accepts")
    served.cut()
    assert stopper.result() is False
    with pytest.raises(EOFError):
        raw.answer()
    raw.socket.close()


def can_connect(served: Served) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(served.address) == 0


def test_stop_may_be_called_by_many(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate)
    (raw,) = gate.hold(served, 1)
    stoppers = [Stopper(served, PATIENCE) for _ in range(3)]
    until(lambda: not can_connect(served), "it accepts")
    gate.open.set()
    assert raw.answer().body == b"/wait"
    assert [stopper.result() for stopper in stoppers] == [True] * 3
    assert served.stop() is True
    raw.socket.close()


def test_an_application_may_stop_its_server(make_server: MakeServer) -> None:
    results = list[bool]()

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        results.append(served.stop(0.1))
        return answer(start)

    served = make_server(app, threads=2)
    with Raw(served.address) as raw:
        raw.expect()
        raw.send(head(), END)
        with pytest.raises(EOFError):
            raw.answer()
    until(lambda: results == [False], "stop did not return")
