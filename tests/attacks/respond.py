"""The application that attacks its web server: `python -m tests.attacks.respond --help`.

A request whose path is /attack/NAME is answered as the corpus says, and any other in good order.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import socket
import struct
import sys
import threading
from typing import Any

from tests.attacks.answers import PROTOCOLS, Answer, load, pieces
from tests.attacks.replay import Address, parse

BATCH = 65536  # bytes of small pieces that are written at once
SECONDS = 60.0  # for each wait

_path = re.compile(rb"/(attack|probe)/([a-z0-9-]*)[^a-z0-9-]").search
_begin = re.compile(rb"\x01\x01(..)\x00\x08\x00\x00", re.DOTALL).findall


class Attacker:
    """Serves one protocol, each connection in a thread."""

    def __init__(self, protocol: str) -> None:
        corpus = load(protocol)
        self.probe = corpus.probe
        self.attacks = {attack.name: attack for attack in corpus.attacks}
        self.closes = protocol == "scgi"

    def serve(self, listener: socket.socket) -> None:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=self._run, args=(sock,), daemon=True).start()

    def _run(self, sock: socket.socket) -> None:
        sock.settimeout(SECONDS)
        with sock, contextlib.suppress(OSError):
            self._requests(sock)

    def _requests(self, sock: socket.socket) -> None:
        pending: tuple[Answer, int] | None = None  # what has late pieces, and its id
        while (asked := self._request(sock)) is not None:
            name, id = asked
            if pending is not None:
                self._write(sock, pending[0], pending[0].late, pending[1])
                pending = None
            attack = self.attacks.get(name)
            if attack is None:
                for data in pieces(self.probe, id):
                    sock.sendall(data)
                if self.closes:
                    return self._close(sock)
                continue
            self._write(sock, attack, attack.send, id)
            if attack.late:
                pending = attack, id
            elif attack.end == "reset":
                linger = struct.pack("ii", 1, 0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return None
            elif attack.end == "close":
                return self._close(sock)
        return None

    def _request(self, sock: socket.socket) -> tuple[str, int] | None:
        """Wait for the next request; give the name of its attack, and its id."""
        data = b""
        while (found := _path(data)) is None:
            more = sock.recv(BATCH)
            if not more:
                return None
            data += more
        ids = _begin(data[: found.start()])
        return found[2].decode(), int.from_bytes(ids[-1], "big") if ids else 1

    def _write(self, sock: socket.socket, attack: Answer, steps: list[Any], id: int) -> None:
        batch = b""
        for data in pieces(steps, id, attack.chunk):
            batch += data
            if len(batch) >= BATCH or attack.chunk:
                sock.sendall(batch)
                batch = b""
        sock.sendall(batch)

    def _close(self, sock: socket.socket) -> None:
        """Close, so that all that was written arrives."""
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(BATCH):
            pass


def listen(address: Address) -> socket.socket:
    if isinstance(address, tuple):
        return socket.create_server(address)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(address)
    sock.listen()
    return sock


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.attacks.respond", description=__doc__)
    parser.add_argument("protocol", choices=PROTOCOLS)
    parser.add_argument("address", help="unix:/path or tcp:host:port")
    arguments = parser.parse_args()
    with listen(parse(arguments.address)) as listener:
        Attacker(arguments.protocol).serve(listener)
    return 0


if __name__ == "__main__":
    sys.exit(main())
