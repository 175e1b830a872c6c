"""A tiny FastCGI server, a thread for each connection, with one flaw on request.

It shows that the fault loop sees each flaw, and passes a server that has none.
usage: python -m tests.fault.tiny PATH FLAW
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from types import TracebackType

from tests.fault.app import app
from tests.fault.client import (
    ABORT_REQUEST,
    BEGIN_REQUEST,
    END_REQUEST,
    PARAMS,
    STDIN,
    STDOUT,
    record,
    stream,
)

FLAW = sys.argv[2] if __name__ == "__main__" else ""
kept: list[socket.socket] = []  # what the flaw "leak" never closes


class Body:
    """The input of an application, whole."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, n: int) -> bytes:
        taken, self.data = self.data[:n], self.data[n:]
        return taken


class Peer:
    """One connection. A call that the shim fails with EAGAIN is made again."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.again = False

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        reset = isinstance(error, OSError) and error.errno == errno.ECONNRESET
        if reset and FLAW == "leak":
            self.socket.shutdown(socket.SHUT_RDWR)  # so that only the descriptor tells
            kept.append(self.socket)
            return True
        number = self.socket.fileno()
        self.socket.close()
        if reset and FLAW == "close":
            os.close(number)
        if reset and FLAW == "stuck":
            threading.Event().wait()
        return isinstance(error, ConnectionError)

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                sent = self.socket.send(view)
            except BlockingIOError:
                self.again = True
                continue
            if FLAW == "cut":
                return
            view = view[sent:]

    def receive(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            try:
                more = self.socket.recv(n - len(data))
            except BlockingIOError:
                continue
            if not more:
                raise ConnectionAbortedError
            data += more
        return data

    def records(self) -> Iterator[tuple[int, int, bytes]]:
        while True:
            _, type, id, length, padding, _ = struct.unpack("!BBHHBB", self.receive(8))
            yield type, id, self.receive(length + padding)[:length] if length + padding else b""


def path_of(block: bytes) -> str:
    """Find PATH_INFO among pairs whose values have lengths of four bytes."""
    at = block.index(b"PATH_INFO")
    size = struct.unpack("!I", block[at - 4 : at])[0] & 0x7FFFFFFF
    return block[at + 9 : at + 9 + size].decode()


def serve(peer: Peer) -> None:
    params = body = b""
    for type, id, content in peer.records():
        if type == BEGIN_REQUEST:
            params = body = b""
        elif type == PARAMS:
            params += content
        elif type == ABORT_REQUEST:
            peer.send(record(END_REQUEST, id, bytes(8)))
        elif type == STDIN and content:
            body += content
        elif type == STDIN:
            answer(peer, id, path_of(params), body)


def answer(peer: Peer, id: int, path: str, body: bytes) -> None:
    head: list[str] = []
    parts = app(
        {"PATH_INFO": path, "wsgi.input": Body(body)}, lambda status, _: head.append(status)
    )
    peer.again = False
    peer.send(record(STDOUT, id, f"Status: {head[0]}\r\n\r\n".encode()))
    for part in parts:
        peer.send(stream(STDOUT, id, part))
    peer.send(record(STDOUT, id) + record(END_REQUEST, id, bytes(8)))
    if peer.again and FLAW == "twice":
        peer.send(record(END_REQUEST, id, bytes(8)))


def run(connection: socket.socket) -> None:
    with Peer(connection) as peer:
        serve(peer)


def main(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        while True:
            try:
                connection = listener.accept()[0]
            except OSError as error:
                if FLAW == "accept" and error.errno == errno.EMFILE:
                    raise
                continue
            threading.Thread(target=run, args=(connection,), daemon=True).start()
            del connection


if __name__ == "__main__":
    main(sys.argv[1])
