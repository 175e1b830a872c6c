"""Servers on each driver, for what is spoken on their sockets.

A module imports the fixtures, and names what is spoken: `PROTOCOL = "scgi"`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.python.threadpool import ThreadPool

from fulgate import Server
from fulgate.twisted import FastCGIFactory
from tests import test_inline, test_twisted_driver
from tests.driver_suite.kit import App, Log, Served, until
from tests.test_aio_driver import Threaded
from tests.test_drivers import Running, descriptors, log
from tests.test_twisted_driver import Loop, loop

__all__ = ["SEVERAL_AT_ONCE", "MakeServed", "driver", "log", "loop", "make_server"]

MakeServed = Callable[..., Served]


class OverThreads(Running):
    def __init__(self, server: Server, path: Path) -> None:
        self.server = server
        self.address = str(path)
        self.tcp = server.listeners[1].getsockname()


class OverInline(test_inline.Running):
    """As there, but for the addresses."""

    def __init__(self, server: Server, path: Path) -> None:
        tcp = server.listeners[1].getsockname()
        plain = type("Plain", (), {"endpoints": ["", "tcp:x:0"], "inline": server.inline})
        super().__init__(plain(), path)
        self._server = server
        self.tcp = tcp


# With one thread nobody is there who could turn a request away, or end one that is held.
SEVERAL_AT_ONCE = ["threads", "asyncio", "twisted"]


@pytest.fixture(params=["threads", "inline", "asyncio", "uvloop", "twisted"])
def driver(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    if kind == "uvloop":
        uvloop = pytest.importorskip("uvloop")
        uvloop.new_event_loop().close()  # libuv keeps a pipe for as long as the process lives
    return kind


@pytest.fixture
def make_server(
    request: pytest.FixtureRequest, driver: str, log: Log, folder: Path, loop: Loop
) -> Iterator[MakeServed]:
    protocol: str = request.module.PROTOCOL
    before = descriptors()
    threads = set(threading.enumerate())
    started: list[Served] = []
    pools: list[ThreadPool] = []

    def make(app: App, **settings: Any) -> Served:
        path = folder / f"{len(started)}.sock"
        binds = (f"{protocol}+unix:{path}", f"{protocol}+tcp:127.0.0.1:0")
        served: Served
        if driver == "twisted":
            pools.append(ThreadPool(0, 20))
            pools[-1].start()
            factory = FastCGIFactory(
                app, reactor=loop.reactor, threadpool=pools[-1], protocol=protocol, **settings
            )
            ports = [
                loop(loop.reactor.listenUNIX, str(path), factory, 2048),
                loop(loop.reactor.listenTCP, 0, factory, 2048, "127.0.0.1"),
            ]
            served = test_twisted_driver.Running(loop, factory, ports, path)
        elif driver == "inline":
            server = Server(app, bind=binds, **settings)
            server.bind()
            served = OverInline(server, path)
        else:
            if driver != "threads":
                settings["loop"] = driver
            kind = Server if driver == "threads" else Threaded
            server = kind(app, bind=binds, **settings)
            server.start()
            served = OverThreads(server, path)
        started.append(served)
        return served

    yield make
    for served in started:
        served.stop(1.0)
    for pool in pools:
        pool.stop()
    until(lambda: set(threading.enumerate()) <= threads, "a thread is left")
    until(lambda: descriptors() <= before, "a descriptor is left")
    assert not log.tracebacks(), log.lines()
