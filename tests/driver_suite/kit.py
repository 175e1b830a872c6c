"""What the tests of the suite share."""

from __future__ import annotations

import hashlib
import random
import select
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from tests.model import STDIN
from tests.raw import PATIENCE, Raw, head, record

Environ = dict[str, Any]
Start = Callable[..., Callable[[bytes], object]]
App = Callable[[Environ, Start], Iterable[bytes]]
TEXT = [("Content-Type", "text/plain")]
END = record(STDIN, 1)


class Served(Protocol):
    """A server that runs in this process."""

    address: Any  # for `Raw`
    tcp: Any  # the same server over TCP

    def stop(self, timeout: float = ...) -> bool: ...
    def cut(self) -> None: ...


class MakeServer(Protocol):
    def __call__(self, app: App, **settings: Any) -> Served: ...


class Log(Protocol):
    def lines(self) -> list[str]: ...
    def tracebacks(self) -> int: ...  # how many there were; from now on none of these counts


def until(true: Callable[[], object], why: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, why
        time.sleep(0.002)


class Flag(threading.Event):
    """An event that does not wait for ever."""

    def come(self) -> None:
        assert self.wait(PATIENCE), "it did not happen"


def answer(start: Start, body: bytes = b"ok\n") -> list[bytes]:
    start("200 OK", TEXT)
    return [body]


def hello(environ: Environ, start: Start) -> Iterable[bytes]:
    return answer(start, b"hello\n")


def digest(environ: Environ, start: Start) -> Iterable[bytes]:
    sha256 = hashlib.sha256()
    while piece := environ["wsgi.input"].read(65536):
        sha256.update(piece)
    return answer(start, sha256.hexdigest().encode())


class Gate:
    """An application whose /wait is held until `open` is set; other paths are answered at once."""

    def __init__(self) -> None:
        self.open = Flag()
        self.inside = 0  # requests that came to /wait
        self.aborted = 0  # of them, those that saw that they were
        self.raised: list[type[BaseException]] = []  # by what they then did
        self.paths: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, environ: Environ, start: Start) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        with self._lock:
            self.paths.append(path)
        if path == "/wait":
            with self._lock:
                self.inside += 1
            until(lambda: self.open.is_set() or environ["fulgate.aborted"](), "it stays shut")
            if environ["fulgate.aborted"]():
                with self._lock:
                    self.aborted += 1
        try:
            write = start("200 OK", TEXT)
            write(path.encode())
        except BaseException as error:
            self.raised.append(type(error))
            raise
        return []

    def hold(self, served: Served, count: int) -> list[Raw]:
        """Have `count` threads wait in the application."""
        held = []
        for _ in range(count):
            held.append(ask(served, "/wait"))
            until(lambda: self.inside == len(held), "a request did not reach the application")
        return held


def ask(served: Served, path: str = "/hello", **options: Any) -> Raw:
    """Send a whole request on a connection of its own."""
    raw = Raw(served.address)
    raw.expect()
    raw.send(head(path, **options), END)
    return raw


def settle(raw: Raw) -> None:
    """Have the server see what was sent before, on other connections.

    What is sent later is seen later, but a loop takes a new connection in several turns.
    """
    for _ in range(8):
        raw.values(b"FCGI_MPXS_CONNS")


def silent(raw: Raw) -> bool:
    return not select.select([raw.socket], [], [], 0)[0]


def shut(raw: Raw) -> None:
    """Wait until the server has closed the connection, without reading what it sent."""
    poll = select.poll()
    poll.register(raw.socket, select.POLLRDHUP)
    assert poll.poll(PATIENCE * 1000), "the server did not close"


def pattern(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def reports(started: Flag, seen: list[bytes]) -> App:
    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        started.set()
        seen.append(environ["wsgi.input"].read())
        return answer(start)

    return app
