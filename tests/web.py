"""FastCGIProxy under a real uvicorn, in front of whatever a test starts."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from fulgate.client.proxy import FastCGIProxy
from tests.responder import PATIENCE, Peer, Responder, responder

Behave = Callable[[Peer], None]


@contextlib.contextmanager
def uvicorn_serves(app: Any) -> Iterator[int]:
    """Run `app` under uvicorn in a thread; give the port."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        config = uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            yield port
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


class Web:
    """Starts responders and a uvicorn with a proxy before them; the test's end stops them."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.port = 0

    def __call__(self, behave: Behave, wrap: Any = None, **options: Any) -> Responder:
        one = self.stack.enter_context(responder(self.folder / "app.sock", behave))
        self.proxy(one.endpoint, wrap, **options)
        return one

    def proxy(self, endpoint: str, wrap: Any = None, **options: Any) -> None:
        app = FastCGIProxy(endpoint, **options)
        self.port = self.stack.enter_context(uvicorn_serves(wrap(app) if wrap else app))

    def client(self) -> http.client.HTTPConnection:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        self.stack.callback(client.close)
        return client

    def ask(
        self, method: str, target: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> http.client.HTTPResponse:
        client = self.client()
        client.request(method, target, body, headers or {})
        return client.getresponse()

    def raw(self, data: bytes) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        self.stack.enter_context(sock)
        sock.sendall(data)
        return sock


def one_request(act: Callable[[Peer], None]) -> Behave:
    """Wait for one whole request on a connection, and act."""

    def behave(peer: Peer) -> None:
        if peer.request():
            act(peer)

    return behave


def say(*data: bytes) -> Behave:
    return one_request(lambda peer: peer.send(b"".join(data)))


@pytest.fixture
def web(folder: Path) -> Iterator[Web]:
    with contextlib.ExitStack() as stack:
        yield Web(folder, stack)
