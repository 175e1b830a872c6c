"""The inline driver: the suite for all drivers, as far as one thread can do what it asks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fulgate import Server
from tests.driver_suite.answers import *  # noqa: F403
from tests.driver_suite.bodies import *  # noqa: F403
from tests.driver_suite.connections import *  # noqa: F403
from tests.driver_suite.deadlines import *  # noqa: F403
from tests.driver_suite.files import *  # noqa: F403
from tests.driver_suite.filters import *  # noqa: F403
from tests.driver_suite.kit import App, Log, MakeServer, until
from tests.driver_suite.stopping import *  # noqa: F403
from tests.raw import PATIENCE
from tests.test_drivers import Records, descriptors

# With one thread an answer that is not read, work after an answer and a request that is held keep
# all others waiting; and nobody else is there who could stop it, or see that a client went.
for name in (
    "test_a_reader_that_is_slower_than_that_costs_one",
    "test_a_slow_reader_costs_no_thread",
    "test_a_stop_that_waits_can_be_cut",
    "test_an_application_may_stop_its_server",
    "test_after_runs_when_the_client_has_everything",
    "test_after_waits_for_a_slow_client",
    "test_stop_lets_requests_end",
    "test_stop_may_be_called_by_many",
    "test_the_deadline_of_stop_cuts",
):
    del globals()[name]


class Running:
    def __init__(self, server: Server, path: Path) -> None:
        self.address = str(path)
        host, port = server.endpoints[1].removeprefix("tcp:").split(":")
        self.tcp = (host, int(port))
        self._server = server
        self._driver = server.inline()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._driver.run()
        finally:
            self._server.stop(0)

    def stop(self, timeout: float = PATIENCE) -> bool:
        self._driver.stop()
        self._thread.join(timeout)
        clean = not self._thread.is_alive()
        if not clean:
            self._driver.cut()
            self._thread.join(PATIENCE)
        return clean

    def cut(self) -> None:
        self._driver.cut()


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


@pytest.fixture
def many() -> int:
    return 1_000


@pytest.fixture
def make_server(log: Log, folder: Path) -> Iterator[MakeServer]:
    before = descriptors()
    threads = set(threading.enumerate())
    started: list[Running] = []

    def make(app: App, **settings: Any) -> Running:
        path = folder / f"{len(started)}.sock"
        server = Server(app, bind=(f"unix:{path}", "tcp:127.0.0.1:0"), **settings)
        server.bind()
        started.append(Running(server, path))
        return started[-1]

    yield make
    for server in started:
        server.stop(1.0)
    until(lambda: set(threading.enumerate()) <= threads, "a thread is left")
    until(lambda: descriptors() <= before, "a descriptor is left")
    assert not log.tracebacks(), log.lines()
