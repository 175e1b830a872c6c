"""Thousands of server-sent streams in one process, each noticed when its client goes.

What it took stands in the test's output (`pytest -rP`); asserted is only what a machine that stalls
keeps.
"""

from __future__ import annotations

import json
import resource
import selectors
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver_suite.kit import END, until
from tests.raw import head
from tests.servers import Fulgate, Nginx, Running
from tests.servers.nginx import location
from tests.servers.web import request

pytestmark = pytest.mark.slow

MANY = 2000
THROUGH_NGINX = 400  # its worker has 1024 connections, two for each
ONE_BY_ONE = 200
BOUND = 10.0  # seconds; on an idle machine it is less than one
APP = "tests.frameworks.streams:app"


@pytest.fixture
def descriptors() -> Iterator[None]:
    """As many as the streams have; the server inherits them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Streams:
    """Clients of streams that are open, and what the application says of them.

    The application notes when it was told that a client had gone, by the clock of the machine
    (CLOCK_MONOTONIC), which all its processes share.
    """

    def __init__(self, folder: Path, ask_port: int) -> None:
        self.folder = folder
        self.port = ask_port
        self.clients: dict[str, socket.socket] = {}
        self.closed: dict[str, float] = {}
        self.counted: set[str] = set()

    def gone(self) -> dict[str, float]:
        found: dict[str, float] = json.loads(request(self.port, "/gone").body)
        return found

    def add(self, name: str, address: str | tuple[str, int]) -> None:
        client = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        client.settimeout(60.0)
        client.connect(address)
        self.clients[name] = client
        if isinstance(address, str):
            client.sendall(head(f"/stream/{name}") + END)
        else:
            client.sendall(f"GET /stream/{name} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    def all_have_begun(self) -> None:
        with selectors.DefaultSelector() as selector:
            for client in self.clients.values():
                selector.register(client, selectors.EVENT_READ)
            deadline = time.monotonic() + 60
            seen: dict[int, bytes] = {}
            while selector.get_map() and time.monotonic() < deadline:
                for key, _ in selector.select(1.0):
                    seen[key.fd] = seen.get(key.fd, b"") + key.fileobj.recv(65536)  # type: ignore[union-attr]
                    if b"data: 0\n\n" in seen[key.fd]:
                        selector.unregister(key.fileobj)
            assert not selector.get_map(), "a stream did not begin"

    def close(self, name: str) -> None:
        self.closed[name] = time.monotonic()
        self.clients.pop(name).close()

    def noticed(self, what: str) -> None:
        """Wait until all that were closed were noticed; say how long that took, and assert it."""
        until(lambda: self.closed.keys() <= self.gone().keys(), "one was not noticed")
        gone = self.gone()
        new = self.closed.keys() - self.counted
        self.counted |= new
        took = sorted(gone[name] - self.closed[name] for name in new)
        middle, last = took[len(took) // 2], took[-1]
        print(f"{what}: {len(took)}, median {middle * 1000:.1f} ms, longest {last * 1000:.1f} ms")
        assert set(gone) == set(self.closed)  # and no other
        assert 0 < last < BOUND


@pytest.mark.requires_server("nginx")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("where", ["direct", "nginx"])
def test_each_stream_is_missed(running: Running, descriptors: None, where: str, loop: str) -> None:
    options = ("--loop", loop, "--worker-connections", "4000")
    fulgate = running(Fulgate, APP, *options)
    nginx = running(Nginx, fulgate.backend, location("/", "fastcgi_buffering off;"))
    streams = Streams(fulgate.folder, nginx.port)
    count = MANY if where == "direct" else THROUGH_NGINX
    address = str(fulgate.socket) if where == "direct" else ("127.0.0.1", nginx.port)
    for number in range(count):
        streams.add(str(number), address)
    streams.all_have_begun()
    assert not streams.gone()
    step = count // ONE_BY_ONE
    for number in range(0, count, step):
        name = str(number)
        streams.close(name)
        until(lambda: name in streams.gone(), "it was not noticed")  # noqa: B023
    streams.noticed(f"{where}, {loop}, one by one")
    for name in list(streams.clients):
        streams.close(name)
    streams.noticed(f"{where}, {loop}, the rest at once")
    assert request(nginx.port, "/open").body == b"0"
