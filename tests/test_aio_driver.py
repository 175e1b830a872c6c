"""The asyncio driver: the suite for all drivers, on each loop that is installed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fulgate import Server
from fulgate.drivers.aio_thread import AioThread
from tests.driver_suite import *  # noqa: F403
from tests.driver_suite.ahead import *  # noqa: F403
from tests.driver_suite.beside import *  # noqa: F403
from tests.driver_suite.kit import App, Gate, Log, MakeServer, until
from tests.model import PARAMS
from tests.on_loop import InThreads
from tests.raw import begin, environ, pairs, record
from tests.test_drivers import Running, descriptors, log  # noqa: F401


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    if kind == "uvloop":
        uvloop = pytest.importorskip("uvloop")
        uvloop.new_event_loop().close()  # libuv keeps a pipe for as long as the process lives
    return kind


@pytest.fixture
def many() -> int:
    return 2_000


class Threaded(Server):
    """Serves WSGI applications, in threads, on the asyncio driver."""

    def _make_driver(self) -> AioThread:
        self._protocols.serve_several(True)
        return AioThread(
            self.listeners,
            self._protocols.make,
            InThreads(self._gateway(multithread=True), self.config),
            self.config,
            ended=self._ended,
            allowed=self._filter,
        )


@pytest.fixture
def make_server(loop: str, log: Log, folder: Path) -> Iterator[MakeServer]:  # noqa: F811
    before = descriptors()
    threads = set(threading.enumerate())
    started: list[Server] = []

    def make(app: App, **settings: Any) -> Running:
        path = folder / f"{len(started)}.sock"
        server = Threaded(app, bind=(f"unix:{path}", "tcp:127.0.0.1:0"), loop=loop, **settings)
        server.start()
        started.append(server)
        return Running(server, path)

    yield make
    for server in started:
        server.stop(1.0)
    until(lambda: set(threading.enumerate()) <= threads, "a thread is left")
    until(lambda: descriptors() <= before, "a descriptor is left")
    assert not log.tracebacks(), log.lines()


@pytest.mark.statement("R6")
def test_a_deadline_of_before_others_came_is_none_of_theirs(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=3, arrival_timeout=0.5)
    assert isinstance(served, Running)
    (raw,) = gate.hold(served, 1)  # the time for its arrival is watched still
    raw.expect(2)
    raw.send(begin(2), record(PARAMS, 2, pairs(environ())))
    time.sleep(0.1)  # it has come
    driver = served.server._driver
    assert isinstance(driver, AioThread)
    driver.aio.loop.call_soon_threadsafe(time.sleep, 1.5)  # so that all deadlines pass at once
    assert raw.answer(2).app_status == 1
    gate.open.set()
    assert raw.answer(1).body == b"/wait"
    raw.socket.close()
