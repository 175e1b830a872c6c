"""A FastCGI application whose every move a test decides: a function for each connection."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from fulgate.exchange import Buffer, Exchange, Limits
from fulgate.protocols.fastcgi import FastCGI
from fulgate.protocols.fastcgi_records import END_REQUEST, record

PATIENCE = 30.0  # seconds
END = record(END_REQUEST, 1, bytes(8))  # of a request with the id 1 that was answered


class Peer:
    """One connection to a web server, as the application sees it. Its calls block."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        sock.settimeout(PATIENCE)
        self.socket = sock
        self.number = number  # 1 for the first connection of all
        self.protocol = FastCGI(Limits(), {})
        self.got = b""  # all that was received

    def receive(self) -> bool:
        """Take what comes next; false at the end of the connection."""
        try:
            data = self.socket.recv(65536)
        except ConnectionError:
            data = b""
        self.got += data
        if data:
            self.moved = self.protocol.feed(data)
            owed, self.protocol.out = self.protocol.out, []
            with contextlib.suppress(ConnectionError):  # an abort may be followed by a close
                self.send(owed)
        return bool(data)

    def request(self, *, whole: bool = True) -> Exchange | None:
        """Wait for the next request, with its body if `whole`; None if the connection ends."""
        while self.receive():
            for exchange in self.moved:
                if exchange.complete or (exchange.params_ended and not whole):
                    return exchange
        return None

    def send(self, *parts: Buffer | list[Buffer]) -> None:
        for part in parts:
            for data in part if isinstance(part, list) else [part]:
                self.socket.sendall(data)

    def answer(
        self, exchange: Exchange, body: bytes = b"", status: str = "200 OK", **headers: str
    ) -> None:
        exchange.start(status, [(k.replace("_", "-"), v) for k, v in headers.items()])
        self.send(exchange.finish(body))
        self.protocol.done(exchange)


def serve_params(peer: Peer) -> None:
    """Answer each request with its params and the length of its body, as JSON."""
    while exchange := peer.request():
        facts = {
            **exchange.params,
            "body": exchange.take().decode("latin-1"),
            "connection": peer.number,
        }
        peer.answer(exchange, json.dumps(facts).encode(), Content_Type="application/json")
        if not exchange.keep:
            return


class Responder:
    """Listens on a Unix socket, and runs `behave` in a thread for each connection."""

    def __init__(self, path: Path, behave: Callable[[Peer], None]) -> None:
        self.endpoint = f"unix:{path}"
        self.behave = behave
        self.said: queue.Queue[object] = queue.Queue()  # what `behave` has to tell the test
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self._problems: list[BaseException] = []
        self._threads[0].start()

    def _accept(self) -> None:
        number = 0
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            number += 1
            thread = threading.Thread(target=self._run, args=(Peer(sock, number),))
            self._threads.append(thread)
            thread.start()

    def _run(self, peer: Peer) -> None:
        with peer.socket:
            try:
                self.behave(peer)
            except BaseException as error:
                self._problems.append(error)

    def hear(self) -> object:
        """Wait for what `behave` has to tell."""
        return self.said.get(timeout=PATIENCE)

    def close(self) -> None:
        """Wait for all connections to end; what went wrong in `behave` is raised here."""
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        self._listener.close()
        assert not [thread for thread in self._threads if thread.is_alive()]
        for problem in self._problems:
            raise problem


@contextlib.contextmanager
def responder(path: Path, behave: Callable[[Peer], None]) -> Iterator[Responder]:
    one = Responder(path, behave)
    try:
        yield one
    finally:
        one.close()
