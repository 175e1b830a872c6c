"""The threads driver: the suite for all drivers with each poller, and what is its own."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fulgate import Server
from fulgate.drivers import connection as connection_module
from fulgate.drivers import poller as pollers
from fulgate.drivers.connection import Connection
from fulgate.drivers.poller import END as PEER_END
from fulgate.drivers.poller import GONE, READ, WRITE
from tests.driver_suite import *  # noqa: F403
from tests.driver_suite.ahead import *  # noqa: F403
from tests.driver_suite.beside import *  # noqa: F403
from tests.driver_suite.kit import (
    END,
    TEXT,
    App,
    Environ,
    Flag,
    Gate,
    Log,
    MakeServer,
    Start,
    answer,
    ask,
    hello,
    until,
)
from tests.kqueue import FakeSelect
from tests.model import STDIN
from tests.raw import PATIENCE, Raw, head, post, record


class Running:
    def __init__(self, server: Server, path: Path) -> None:
        self.server = server
        self.address = str(path)
        host, port = server.endpoints[1].removeprefix("tcp:").split(":")
        self.tcp = (host, int(port))

    def stop(self, timeout: float = PATIENCE) -> bool:
        return self.server.stop(timeout)

    def cut(self) -> None:
        self.server.cut()


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def lines(self) -> list[str]:
        return [record.getMessage() for record in self.records]

    def tracebacks(self) -> int:
        found = [record for record in self.records if record.exc_info]
        self.records = [record for record in self.records if not record.exc_info]
        return len(found)


def descriptors() -> set[tuple[int, str]]:
    """The sockets, pipes and such that are open here."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the one that lists them
        if target.startswith(("socket:", "pipe:", "anon_inode:", "/proc/")):
            found.add((int(name), target))
    return found


@pytest.fixture
def log() -> Iterator[Log]:
    records = Records()
    logger = logging.getLogger("fulgate")
    logger.addHandler(records)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield records
    logger.removeHandler(records)
    logger.setLevel(level)


@pytest.fixture(params=["epoll", "poll", "kqueue"])
def poller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    kind: str = request.param
    if kind == "kqueue":
        # kqueue(2) is not on this system; its stand-in is under the real KqueuePoller.
        monkeypatch.setattr(pollers, "make", lambda _: pollers.KqueuePoller(FakeSelect()))
        return "auto"
    return kind


@pytest.fixture
def many(poller: str) -> int:
    """Requests that are many."""
    return 10_000 if poller == "epoll" else 1_000


@pytest.fixture
def make_server(poller: str, log: Log, folder: Path) -> Iterator[MakeServer]:
    before = descriptors()
    threads = set(threading.enumerate())
    started: list[Server] = []

    def make(app: App, **settings: Any) -> Running:
        path = folder / f"{len(started)}.sock"
        server = Server(
            app, bind=(f"unix:{path}", "tcp:127.0.0.1:0"), **{"poller": poller, **settings}
        )
        server.start()
        started.append(server)
        return Running(server, path)

    yield make
    for server in started:
        server.stop(1.0)
    until(lambda: set(threading.enumerate()) <= threads, "a thread is left")
    until(lambda: descriptors() <= before, "a descriptor is left")
    assert not log.tracebacks(), log.lines()


# Leader and followers


def spin(flag: Flag) -> None:
    deadline = time.monotonic() + PATIENCE
    while not flag.is_set() and time.monotonic() < deadline:
        sum(range(1000))


@pytest.mark.parametrize("kind", ["sleep", "compute", "read", "write"])
def test_whoever_stays_in_the_application_loses_the_lead(
    make_server: MakeServer, kind: str
) -> None:
    go, inside = Flag(), Flag()

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/stay":
            return answer(start)
        inside.set()
        if kind == "sleep":
            go.come()
        elif kind == "compute":
            spin(go)
        elif kind == "read":
            environ["wsgi.input"].read()
        else:
            return answer(start, bytes(20_000_000))
        return answer(start)

    served = make_server(app, threads=2)
    with Raw(served.address) as raw:
        for _ in range(3):  # whichever of the two it is
            go.clear()
            inside.clear()
            stays = Raw(served.address)
            stays.expect()
            stays.send(head("/stay", **post(100_000)))
            if kind != "read":
                stays.send(END)
            inside.come()
            for _ in range(5):
                assert raw.request().body == b"ok\n"
            go.set()
            if kind == "read":
                stays.send(END)
            if kind == "write":
                stays.socket.close()  # 20 MB are too much for the plain reader
                continue
            assert stays.answer().body == b"ok\n"
            stays.socket.close()


@pytest.mark.replaces_internals
def test_a_request_that_is_queued_while_a_worker_takes_the_lead_is_served(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control thread is slow between its poll and the queue; meanwhile the only worker comes
    back, finds nothing, and polls."""
    ready = Connection.ready

    def slowly(connection: Connection, mask: int) -> None:
        if threading.current_thread().name == "fulgate-control":
            gate.open.set()
            time.sleep(0.2)
        ready(connection, mask)

    gate = Gate()
    served = make_server(gate, threads=1)
    held = gate.hold(served, 1)
    with Raw(served.address) as raw:
        raw.values(b"FCGI_MPXS_CONNS")
        monkeypatch.setattr(Connection, "ready", slowly)
        assert raw.request().body == b"/hello"
        assert held[0].answer().body == b"/wait"
    held[0].socket.close()


def test_the_control_thread_leaves_the_poll_to_the_worker_that_comes_back(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deadlines are its affair: were it left behind in the poll, nobody would keep them."""
    gate = Gate()
    served = make_server(gate, threads=1, body_wait=0.1)
    for turn in range(8):
        (held,) = gate.hold(served, 1)
        time.sleep(0.02)  # it rests in the poll
        gate.open.set()
        assert held.answer().body == b"/wait"
        held.socket.close()
        gate.open.clear()
        gate.inside = 0
        with Raw(served.address) as raw:
            raw.expect()
            raw.send(head(f"/{turn}", **post(10)))
            assert raw.until(1, b"/").body == f"/{turn}".encode()


@pytest.mark.replaces_internals
def test_no_descriptor_is_closed_under_who_receives(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread waits for a body while the server is cut: its descriptor's number may not be another
    connection's before it comes back."""
    wait = connection_module._wait
    inside = Flag()
    open_still = list[bool]()

    def slowly(fd: int, events: int, seconds: float) -> bool:
        inside.set()
        came = wait(fd, events, seconds)  # shut down by who cuts
        time.sleep(0.1)  # time for that one to go on
        open_still.append(os.fstat(fd) is not None)
        return came

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        environ["wsgi.input"].read()
        return answer(start)

    monkeypatch.setattr(connection_module, "_wait", slowly)
    served = make_server(app, threads=1, body_wait=0)
    with Raw(served.address) as raw:
        raw.send(head(**post(10)))
        inside.come()
        assert not served.stop(0)
    until(lambda: open_still == [True], "it was closed, or its reader did not come back")


def test_a_late_event_of_another_descriptor_does_no_harm(make_server: MakeServer) -> None:
    """An event that says that the peer is gone may be of the one that had the number before."""
    gate = Gate()
    served = make_server(gate, threads=2)
    (held,) = gate.hold(served, 1)
    (connection,) = served.server._driver.connections.values()  # type: ignore[attr-defined]
    connection.watch()  # as the control thread does after a tick: whoever polls may receive
    for mask in (READ, GONE, READ | GONE, PEER_END, WRITE):
        connection.ready(mask)
    gate.open.set()
    assert held.answer().body == b"/wait"
    held.socket.close()


def test_what_nobody_takes_is_told_once(make_server: MakeServer) -> None:
    """Another request comes while the application has the first: the poller tells of what is
    ready again and again, and whoever polls must not spin."""
    gate = Gate()
    served = make_server(gate, threads=2, body_wait=0)
    polls = [0]
    poller = served.server._driver.poller  # type: ignore[attr-defined]
    poll = poller.poll

    class Counted:
        def poll(self, timeout: float) -> list[tuple[int, int]]:
            polls[0] += 1
            found: list[tuple[int, int]] = poll(timeout)
            return found

        def __getattr__(self, name: str) -> Any:
            return getattr(poller, name)

    served.server._driver.poller = Counted()  # type: ignore[attr-defined]
    with Raw(served.address) as raw:
        began = time.monotonic()
        raw.send(head("/wait", **post(200_000)))
        until(lambda: gate.inside, "it does not start")
        raw.send(record(STDIN, 1, bytes(60_000)) * 3)
        time.sleep(0.1)
        # One with each tick, of which there are 200 in a second; who spins has thousands.
        assert polls[0] < 50 + 400 * (time.monotonic() - began)
        gate.open.set()
    assert served.stop()


def test_requests_that_wait_are_run_side_by_side(make_server: MakeServer) -> None:
    together = threading.Barrier(4, timeout=PATIENCE)

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        together.wait()
        return answer(start)

    served = make_server(app, threads=4)
    for _ in range(20):
        clients = [ask(served) for _ in range(4)]
        for raw in clients:
            assert raw.answer().body == b"ok\n"
            raw.socket.close()


def test_threads_have_names_and_are_as_many_as_was_said(make_server: MakeServer) -> None:
    make_server(hello, threads=3)
    names = {t.name for t in threading.enumerate() if t.name.startswith("fulgate")}
    assert names == {"fulgate-1", "fulgate-2", "fulgate-3", "fulgate-control"}


def test_one_thread_is_enough(make_server: MakeServer) -> None:
    def app(environ: Environ, start: Start) -> Iterator[bytes]:
        start("200 OK", TEXT)
        yield environ["wsgi.input"].read(5)
        yield environ["wsgi.input"].read()

    served = make_server(app, threads=1)
    with Raw(served.address) as raw:
        for _ in range(5):
            assert raw.request(body=bytes(200_000)).body == bytes(200_000)


def test_a_request_beside_others_that_takes_too_long(make_server: MakeServer) -> None:
    over = Flag()

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/late":
            return answer(start)
        until(environ["fulgate.aborted"], "it is not aborted")
        over.set()
        return []

    served = make_server(app, threads=3, request_timeout=1.0)
    with Raw(served.address) as raw:
        assert raw.values(b"FCGI_MPXS_CONNS") == {b"FCGI_MPXS_CONNS": b"1"}
        raw.expect(1)
        raw.send(head("/late", id=1), END)
        assert raw.request(id=2).body == b"ok\n"
        assert raw.answer(1).status == "504 Gateway Timeout"
        over.come()
        assert raw.request(id=1).body == b"ok\n"


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="the kernel does not tell")
def test_the_lead_is_handed_on_while_requests_wait_and_no_longer(make_server: MakeServer) -> None:
    waits = True

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if waits:
            time.sleep(0.002)
        return answer(start)

    served = make_server(app)
    driver: Any = served.server._driver  # type: ignore[attr-defined]
    with Raw(served.address) as raw:

        def hands_on() -> bool:
            raw.request()
            return bool(driver._hand_on)

        until(hands_on, "it is not handed on")
        waits = False
        until(lambda: not hands_on(), "it is handed on for ever")
