"""Nobody who has connected is lost when a listening socket closes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fulgate.endpoint import Endpoint
from fulgate.listener import adopt, bind_tcp, bind_unix
from fulgate.quiesce import half_open
from tests.command import Served
from tests.model import STDIN
from tests.raw import head, stream
from tests.test_master import children, stands_still, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="socket filters are Linux's")

FAMILIES = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
PATIENCE = 20.0

WSGI = """\
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"served"]
"""
ASGI = """\
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"served"})
"""


def refuses(address: Any, family: socket.AddressFamily) -> bool:
    """Is a connection refused, or not even answered?"""
    with socket.socket(family) as client:
        client.settimeout(0.3)
        return client.connect_ex(address) != 0


@pytest.mark.parametrize(("family", "host"), FAMILIES, ids=["v4", "v6"])
def test_who_has_connected_is_served_and_nobody_else_connects(
    family: socket.AddressFamily, host: str
) -> None:
    (listener,) = bind_tcp([(family, (host, 0))], 16)
    address = listener.getsockname()
    with listener, socket.create_connection(address[:2]) as client:
        client.sendall(b"early")
        listener.quiesce()
        assert refuses(address, family)
        with listener.accept()[0] as connection:
            assert connection.recv(16) == b"early"
            client.sendall(b"and late")
            assert connection.recv(16) == b"and late"
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert refuses(address, family)


@pytest.mark.parametrize(("family", "host"), FAMILIES, ids=["v4", "v6"])
def test_a_connection_that_is_being_opened_gets_there(
    family: socket.AddressFamily, host: str
) -> None:
    (listener,) = bind_tcp([(family, (host, 0))], 16)
    with listener:
        # The kernel keeps it half open until the client says something, as on a slow network.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
        assert not half_open(listener)
        with socket.create_connection(listener.getsockname()[:2]) as client:
            assert half_open(listener)
            with pytest.raises(BlockingIOError):
                listener.accept()
            threading.Timer(0.05, client.sendall, [b"hello"]).start()
            listener.quiesce()
            with listener.accept()[0] as connection:
                assert connection.recv(16) == b"hello"


def test_one_that_is_not_opened_in_the_end_is_not_waited_for() -> None:
    (listener,) = bind_tcp([(socket.AF_INET, ("127.0.0.1", 0))], 16)
    with listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
        with socket.create_connection(listener.getsockname()):
            began = time.monotonic()
            listener.quiesce()
            assert time.monotonic() - began < PATIENCE
            assert half_open(listener)


def test_a_socket_that_others_have_bound_goes_on() -> None:
    (listener,) = bind_tcp([(socket.AF_INET, ("127.0.0.1", 0))], 16)
    with listener:
        with adopt(os.dup(listener.fileno())) as other:
            other.quiesce()
        assert not refuses(listener.getsockname(), socket.AF_INET)


def test_a_path_leads_nobody_to_a_socket_that_is_about_to_close(folder: Path) -> None:
    path = str(folder / "sock")
    with bind_unix(path, 16) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(b"early")
        listener.quiesce()
        assert refuses(path, socket.AF_UNIX)
        with listener.accept()[0] as connection:
            assert connection.recv(16) == b"early"


def address_of(endpoint: str) -> tuple[socket.AddressFamily, Any]:
    parsed = Endpoint.parse(endpoint)
    if parsed.kind == "unix":
        return socket.AF_UNIX, parsed.path
    return socket.AF_INET, (parsed.host, parsed.port)


def test_a_master_has_nobody_connect_before_its_workers_stop(folder: Path) -> None:
    (folder / "quiet.py").write_text(WSGI)
    options = ("--bind", "tcp:127.0.0.1:0", "--workers", "1")
    with Served("quiet:app", *options, cwd=folder) as served:
        served.ask()
        family, address = address_of(served.endpoints[0])
        (worker,) = children(served.process.pid)
        os.kill(worker, signal.SIGSTOP)
        try:
            until(lambda: stands_still(worker))
            served.process.terminate()
            # The worker holds the socket open, and does not accept.
            until(lambda: refuses(address, family))
        finally:
            os.kill(worker, signal.SIGCONT)
        assert served.process.wait(PATIENCE) == 0


class Crowd:
    """Clients that each connect, make a request and read the answer, again and again."""

    def __init__(self, endpoint: str, clients: int = 4) -> None:
        self.family, self.address = address_of(endpoint)
        self.ended = False
        self.seen: Counter[str] = Counter()
        self.threads = [threading.Thread(target=self.run) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def run(self) -> None:
        while not self.ended:
            with socket.socket(self.family) as client:
                client.settimeout(PATIENCE)
                try:
                    client.connect(self.address)
                except OSError:
                    self.seen["refused"] += 1
                    time.sleep(0.005)
                    continue
                self.seen[self.ask(client)] += 1

    def ask(self, client: socket.socket) -> str:
        try:
            client.sendall(head("/", keep=False) + stream(STDIN, 1, b""))
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        except OSError as error:
            return repr(error)
        return "served" if b"served" in answer else repr(answer)

    def end(self) -> Counter[str]:
        self.ended = True
        for thread in self.threads:
            thread.join()
        return self.seen


@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["alone", "master"])
@pytest.mark.parametrize("app", [WSGI, ASGI], ids=["wsgi", "asgi"])
@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_stops_under_load_lose_nobody(
    folder: Path, kind: str, app: str, options: tuple[str, ...]
) -> None:
    (folder / "quiet.py").write_text(app)
    bind = f"unix:{folder}/sock" if kind == "unix" else "tcp:127.0.0.1:0"
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            served = stack.enter_context(Served("quiet:app", "--bind", bind, *options, cwd=folder))
            crowd = Crowd(served.endpoints[0])
            stack.callback(crowd.end)
            until(lambda: crowd.seen["served"] > 200, lambda: crowd.seen)  # noqa: B023
            assert served.end() == 0
            until(lambda: crowd.seen["refused"], lambda: crowd.seen)  # noqa: B023
            assert crowd.end().keys() == {"served", "refused"}
