"""Several requests at once on a connection of a real HAProxy, which alone has that."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from twisted.python.threadpool import ThreadPool

from fulgate import Aborted, Server
from fulgate.twisted import FastCGIFactory
from tests.driver_suite.kit import Environ, Flag, Start, answer, until
from tests.raw import PATIENCE
from tests.sequence import Sequence
from tests.servers import HAProxy, Running
from tests.test_aio_driver import Threaded
from tests.test_twisted_driver import Loop, loop  # noqa: F401
from tests.test_twisted_driver import Running as Served
from tests.test_twisted_site import LARGE
from tests.test_twisted_site import Site as WebSite
from tests.test_zero_loss import served, wait_for_ready
from tests.twistd import Twistd

pytestmark = [pytest.mark.requires_server("haproxy"), pytest.mark.slow]
OPTIONS = ("option keep-conn", "option mpxs-conns", "option get-values", "option max-reqs 50")


class Site:
    """/hello; /wait, until `open` is set; /sum of the body; /large, of so many bytes."""

    def __init__(self) -> None:
        self.open = Flag()
        self.requests = 0
        self.waiting = 0
        self.aborted = 0
        self._lock = threading.Lock()

    def __call__(self, environ: Environ, start: Start) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        with self._lock:
            self.requests += 1
        if path == "/wait":
            return self._wait(environ, start)
        if path == "/sum":
            return self._sum(environ, start)
        if path == "/large":
            return self._large(int(environ["QUERY_STRING"]), start)
        return answer(start, b"hello\n")

    def _wait(self, environ: Environ, start: Start) -> Iterable[bytes]:
        with self._lock:
            self.waiting += 1
        until(lambda: self.open.is_set() or environ["fulgate.aborted"](), "it stays shut")
        return answer(start, b"waited\n")

    def _sum(self, environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["QUERY_STRING"]:
            self.open.come()
        sha256 = hashlib.sha256()
        try:
            while piece := environ["wsgi.input"].read(50_000):
                sha256.update(piece)
        except Aborted:
            with self._lock:
                self.aborted += 1
            raise
        return answer(start, sha256.hexdigest().encode())

    def _large(self, size: int, start: Start) -> Iterable[bytes]:
        start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(size))])
        for at in range(0, size, 100_000):
            yield b"x" * min(100_000, size - at)


class Behind:
    """The site, and the port of HAProxy before it."""

    def __init__(self, site: Site, port: int, peers: list[Any], server: Any) -> None:
        self.site = site
        self.port = port
        self.peers = peers  # one for each connection that HAProxy made
        self.server = server
        self.failed = 0  # by HAProxy itself
        self.lock = threading.Lock()

    def ask(self, path: str, body: bytes | None = None) -> bytes:
        """Give the answer's body.

        Where an upload has filled its buffer, HAProxy 2.6 answers others with 500 by itself (its
        log says IH). Those never come to the application, and are made again.
        """
        for _ in range(100):
            status, data = self.try_to_ask(path, body)
            if status != 500 or not data.startswith(b"<html>"):
                break
            with self.lock:
                self.failed += 1
        assert status == 200, (status, data)
        return data

    def try_to_ask(self, path: str, body: bytes | None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET" if body is None else "POST", path, body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


@contextlib.contextmanager
def on_reactor(
    loop: Loop,  # noqa: F811
    site: Site,
    path: Path,
    note: Callable[..., bool],
) -> Iterator[Served]:
    """Serve with a FastCGIFactory."""

    class Factory(FastCGIFactory):
        def allows(self, transport: Any) -> bool:
            return note(transport)

    pool = ThreadPool(0, 40)
    pool.start()
    factory = Factory(site, reactor=loop.reactor, threadpool=pool, threads=40)
    ports = [
        loop(loop.reactor.listenUNIX, str(path), factory, 2048),
        loop(loop.reactor.listenTCP, 0, factory, 2048, "127.0.0.1"),
    ]
    path.chmod(0o666)
    served = Served(loop, factory, ports, path)
    try:
        yield served
    finally:
        served.stop(1.0)
        pool.stop()


DRIVERS = ["threads", "asyncio", "twisted"]


@pytest.fixture(params=DRIVERS)
def behind(
    request: pytest.FixtureRequest,
    folder: Path,
    running: Callable[..., Running],
    loop: Loop,  # noqa: F811
) -> Iterator[Behind]:
    with site_on(request.param, folder, running, loop, OPTIONS) as served:
        yield served


@pytest.fixture(params=DRIVERS)
def unasked(
    request: pytest.FixtureRequest,
    folder: Path,
    running: Callable[..., Running],
    loop: Loop,  # noqa: F811
) -> Iterator[Behind]:
    """HAProxy does not say that it will have several requests on a connection."""
    options = tuple(one for one in OPTIONS if one != "option get-values")
    with site_on(request.param, folder, running, loop, options) as served:
        yield served


@contextlib.contextmanager
def site_on(
    driver: str,
    folder: Path,
    running: Callable[..., Running],
    loop: Loop,  # noqa: F811
    options: tuple[str, ...],
) -> Iterator[Behind]:
    site = Site()
    peers: list[Any] = []

    def note(peer: Any, *_: Any) -> bool:
        peers.append(peer)
        return True

    path = folder / "app.sock"
    serving: Any
    if driver == "twisted":
        serving = on_reactor(loop, site, path, note)
    else:
        kind = Server if driver == "threads" else Threaded
        serving = kind(site, bind=(f"unix:{path}?mode=666",), threads=40, allowed=note)
    with serving as server:
        yield Behind(site, before(running, path, options), peers, server)


def before(running: Callable[..., Any], path: Path, options: tuple[str, ...] = OPTIONS) -> int:
    """Start HAProxy before a socket, and give its port."""
    main, rules = "nbthread 1", "http-reuse always"
    port: int = running(HAProxy, f"unix:{path}", *options, main=main, rules=rules).port
    return port


def connections(path: Path) -> int:
    """How many connections does a Unix socket have?"""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return sum([line.endswith(str(path)) for line in lines]) - 1


@pytest.mark.statement("11")
@pytest.mark.statement("18")
def test_fast_ones_pass_slow_ones_on_the_same_connection(behind: Behind) -> None:
    assert behind.ask("/hello") == b"hello\n"
    with ThreadPoolExecutor(20) as pool:
        slow = [pool.submit(behind.ask, "/wait") for _ in range(10)]
        until(lambda: behind.site.waiting == 10, "they did not start")
        for _ in range(50):
            assert behind.ask("/hello") == b"hello\n"
        behind.site.open.set()
        assert [one.result() for one in slow] == [b"waited\n"] * 10
    assert len(behind.peers) < 5, "HAProxy did not multiplex"


@pytest.mark.statement("18")
def test_uploads_that_nobody_reads_hold_up_nobody(behind: Behind) -> None:
    bodies = [random.Random(n).randbytes(2_000_000 + n) for n in range(5)]
    assert behind.ask("/hello") == b"hello\n"  # from then on HAProxy knows that it may multiplex
    with ThreadPoolExecutor(10) as pool:
        sums = [pool.submit(behind.ask, "/sum?wait", body) for body in bodies]
        for _ in range(30):
            assert behind.ask("/hello") == b"hello\n"
        assert not any(one.done() for one in sums)
        behind.site.open.set()
        assert [one.result() for one in sums] == [
            hashlib.sha256(body).hexdigest().encode() for body in bodies
        ]
    assert len(behind.peers) < 5, "HAProxy did not multiplex"


@pytest.mark.statement("18")
def test_an_upload_that_nobody_reads_is_first_on_its_connection(unasked: Behind) -> None:
    """Nothing has said before that others may follow on it."""
    body = random.Random(3).randbytes(1_000_000)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(unasked.ask, "/sum?wait", body)
        until(lambda: unasked.site.requests, "it did not start")
        for _ in range(5):
            assert unasked.ask("/hello") == b"hello\n"
        assert not first.done()
        assert len(unasked.peers) == 1, "HAProxy did not multiplex"
        unasked.site.open.set()
        assert first.result() == hashlib.sha256(body).hexdigest().encode()


@pytest.mark.statement("18")
def test_uploads_downloads_and_small_ones_in_any_order(behind: Behind) -> None:
    behind.site.open.set()
    chance = random.Random(11)

    def one(number: int) -> None:
        kind = chance.choice(["/hello", "/large", "/sum", "/wait"])
        size = chance.choice([0, 1, 70_000, 1_500_000])
        if kind == "/large":
            assert behind.ask(f"/large?{size}") == b"x" * size
        elif kind == "/sum":
            body = random.Random(number).randbytes(size)
            assert behind.ask("/sum", body) == hashlib.sha256(body).hexdigest().encode()
        else:
            behind.ask(kind)

    with ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(one, number) for number in range(300)]:
            done.result()
    assert behind.site.requests == 300, "what HAProxy answered by itself came to the application"


@pytest.mark.statement("16")
@pytest.mark.statement("18")
def test_clients_that_go_take_nobody_with_them(behind: Behind) -> None:
    with ThreadPoolExecutor(20) as pool:
        stay = [pool.submit(behind.ask, "/wait") for _ in range(5)]
        until(lambda: behind.site.waiting == 5, "they did not start")
        # HAProxy says so of a client that goes amid its upload; of one that has sent all it does
        # not, and reads the answer to its end.
        request = b"POST /sum HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n"
        for number in range(6, 11):
            with socket.create_connection(("127.0.0.1", behind.port), PATIENCE) as client:
                client.sendall(request + bytes(200_000))
                until(lambda n=number: behind.site.requests == n, "it did not start")  # type: ignore[misc]
        until(lambda: behind.site.aborted == 5, "the application was not told")
        assert behind.ask("/hello") == b"hello\n"
        behind.site.open.set()
        assert [one.result() for one in stay] == [b"waited\n"] * 5
    assert behind.site.aborted == 5


def test_a_stop_lets_all_end(behind: Behind) -> None:
    with ThreadPoolExecutor(20) as pool:
        slow = [pool.submit(behind.ask, "/wait") for _ in range(10)]
        until(lambda: behind.site.waiting == 10, "they did not start")
        stopped = pool.submit(behind.server.stop, PATIENCE)
        behind.site.open.set()
        assert [one.result() for one in slow] == [b"waited\n"] * 10
        assert stopped.result()


def test_reloads_lose_nothing(folder: Path, running: Callable[..., Any]) -> None:
    """A connection changes the process when it has nothing on it, whatever was on it before."""
    with served(folder, "--workers", "2") as server:
        wait_for_ready(server, 2)
        with Sequence(before(running, folder / "sock")) as load:
            load.some_more()
            for version in range(2, 6):
                server.process.send_signal(signal.SIGHUP)
                wait_for_ready(server, 2 * version)
                load.some_more(60)
        load.check(folder / "notes")
        assert len(load.pids) >= 4


# In processes of their own

TAC = """\
from pathlib import Path
import hashlib, time
from twisted.application import internet, service
from twisted.internet import endpoints, reactor
from fulgate.twisted import FastCGIFactory, FastCGIService

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/wait":
        Path("waits-" + environ["QUERY_STRING"]).touch()
        while not Path("go").exists():
            time.sleep(0.01)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [hashlib.sha256(environ["wsgi.input"].read()).hexdigest().encode()]

application = service.Application("beside")
FastCGIService("unix:{home}/service?mode=666", wsgi=app, threads=12).setServiceParent(application)
endpoint = endpoints.serverFromString(reactor, "unix:{home}/factory:mode=666")
served = internet.StreamServerEndpointService(endpoint, FastCGIFactory(app, threads=12))
served.setServiceParent(application)
"""


@pytest.mark.statement("18")
@pytest.mark.parametrize("kind", ["service", "factory"])
def test_under_a_real_twistd(folder: Path, running: Callable[..., Any], kind: str) -> None:
    (folder / "beside.tac").write_text(TAC.replace("{home}", str(folder)))
    with Twistd(folder, "-n", "-y", "beside.tac"), ThreadPoolExecutor(10) as pool:
        asked = Behind(Site(), before(running, folder / kind), [], None)
        asked.ask("/hello")  # from then on HAProxy knows that it may multiplex
        bodies = [random.Random(n).randbytes(300_000) for n in range(8)]
        slow = [pool.submit(asked.ask, f"/wait?{n}", body) for n, body in enumerate(bodies)]
        until(lambda: len(list(folder.glob("waits-*"))) == 8, "they did not start")
        for _ in range(30):
            assert asked.ask("/hello") == hashlib.sha256().hexdigest().encode()
        assert connections(folder / kind) < 5, "HAProxy did not multiplex"
        (folder / "go").touch()
        for one, body in zip(slow, bodies, strict=True):
            assert one.result() == hashlib.sha256(body).hexdigest().encode()


@pytest.mark.statement("18")
def test_a_twisted_web_site(folder: Path, running: Callable[..., Any]) -> None:
    """Its answers come from producers, and from Deferreds, in the reactor's thread."""
    site = running(WebSite, "tree")
    asked = Behind(Site(), before(running, site.socket), [], None)
    assert asked.ask("/late") == b"late"  # from then on HAProxy knows that it may multiplex
    go = site.folder / "go"
    with ThreadPoolExecutor(12) as pool:
        slow = [pool.submit(asked.ask, f"/stream?go={go}") for _ in range(5)]
        for _ in range(20):
            assert asked.ask("/late") == b"late"
        sums = [pool.submit(asked.ask, "/upload", LARGE) for _ in range(2)]
        pushed = [pool.submit(asked.ask, "/push?size=3000000") for _ in range(3)]
        for _ in range(20):
            assert asked.ask("/late") == b"late"
        assert [len(one.result()) for one in pushed] == [3_000_000] * 3
        digest = hashlib.sha256(LARGE).hexdigest().encode()
        assert [one.result() for one in sums] == [digest] * 2
        assert connections(site.socket) < 5, "HAProxy did not multiplex"
        go.touch()
        assert [one.result() for one in slow] == [b"first\nsecond\n"] * 5
