"""The reactor's driver: the suite for all drivers, on a reactor in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import DeferredList
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.threads import blockingCallFromThread
from twisted.python.threadpool import ThreadPool

from fulgate.twisted import FastCGIFactory
from tests.driver_suite import *  # noqa: F403
from tests.driver_suite.ahead import *  # noqa: F403
from tests.driver_suite.beside import *  # noqa: F403
from tests.driver_suite.kit import App, Log, MakeServer, until
from tests.raw import PATIENCE
from tests.test_drivers import descriptors, log  # noqa: F401


class Loop:
    """A reactor that runs in a thread."""

    def __init__(self) -> None:
        self.reactor: Any = EPollReactor()  # type: ignore[no-untyped-call]
        self.thread = threading.Thread(
            target=self.reactor.run, kwargs={"installSignalHandlers": False}, daemon=True
        )
        self.thread.start()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in it, and give the result, also of a Deferred."""
        return blockingCallFromThread(self.reactor, function, *arguments)

    def stop(self) -> None:
        self.reactor.callFromThread(self.reactor.stop)
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.stop()


class Running:
    def __init__(self, loop: Loop, factory: FastCGIFactory, ports: list[Any], path: Path) -> None:
        self.loop = loop
        self.factory = factory
        self.ports = ports
        self.address = str(path)
        address = ports[1].getHost()
        self.tcp = (address.host, address.port)

    def stop(self, timeout: float = PATIENCE) -> bool:
        clean: bool = self.loop(self._stop, timeout)
        return clean

    def _stop(self, timeout: float) -> Any:
        closed = []
        for port in self.ports:
            if port.connected and not port.disconnecting:
                for _ in range(100):  # who is in the queue of the socket; else Twisted drops them
                    port.doRead()
                closed.append(port.stopListening())
        drained = self.factory.drain(timeout)
        return DeferredList(closed).addCallback(lambda _: drained)

    def cut(self) -> None:
        self.loop(self.factory.cut)


@pytest.fixture
def many() -> int:
    return 5_000


@pytest.fixture
def make_server(loop: Loop, log: Log, folder: Path) -> Iterator[MakeServer]:  # noqa: F811
    before = descriptors()
    threads = set(threading.enumerate())
    started: list[tuple[Running, ThreadPool]] = []

    def make(app: App, **settings: Any) -> Running:
        path = folder / f"{len(started)}.sock"
        pool = ThreadPool(0, 20)
        pool.start()
        factory = FastCGIFactory(app, reactor=loop.reactor, threadpool=pool, **settings)
        ports = [
            loop(loop.reactor.listenUNIX, str(path), factory, 2048),
            loop(loop.reactor.listenTCP, 0, factory, 2048, "127.0.0.1"),
        ]
        running = Running(loop, factory, ports, path)
        started.append((running, pool))
        return running

    yield make
    for running, pool in started:
        running.stop(1.0)
        pool.stop()
    until(lambda: set(threading.enumerate()) <= threads, "a thread is left")
    until(lambda: descriptors() <= before, "a descriptor is left")
    assert not log.tracebacks(), log.lines()
