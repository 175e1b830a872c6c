"""Applications of FastCGI, of SCGI and of AJP that keep the bytes of each request as they came.

Their reading of these is their own, so that captures do not depend on what they test.
"""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path
from typing import Self

from tests.ajp_model import read_forward

BEGIN, END, STDIN, STDOUT, GET_VALUES, GET_VALUES_RESULT = 1, 3, 5, 6, 9, 10
VALUES = {b"FCGI_MAX_CONNS": b"64", b"FCGI_MAX_REQS": b"64", b"FCGI_MPXS_CONNS": b"1"}
HEAD = b"Status: 200 OK\r\nContent-Type: text/plain\r\n\r\n"
ANSWER = HEAD + b"recorded\n"


def record(kind: int, id: int, content: bytes) -> bytes:
    return struct.pack(">BBHHBx", 1, kind, id, len(content), 0) + content


class Recorder:
    """Listens on a Unix socket and on a TCP port; `take` gives the requests seen since the last."""

    def __init__(self, path: Path, port: int) -> None:
        self._requests: list[bytes] = []
        self._listeners = [socket.socket(socket.AF_UNIX), socket.socket()]
        self._listeners[0].bind(str(path))
        path.chmod(0o666)
        self._listeners[1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listeners[1].bind(("127.0.0.1", port))
        for listener in self._listeners:
            listener.listen(16)

    def take(self) -> list[bytes]:
        requests, self._requests = self._requests, []
        return requests

    def __enter__(self) -> Self:
        for listener in self._listeners:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            seen = b""
            position = 0
            keep = True
            while True:
                data = connection.recv(65536)
                if not data:
                    return
                seen += data
                while len(seen) - position >= 8:
                    _, kind, id, length, padding = struct.unpack_from(">BBHHB", seen, position)
                    if len(seen) - position < 8 + length + padding:
                        break
                    content = seen[position + 8 : position + 8 + length]
                    position += 8 + length + padding
                    if kind == BEGIN:
                        keep = bool(content[2] & 1)
                    elif kind == GET_VALUES:
                        answer = b"".join(
                            bytes([len(name), len(value)]) + name + value
                            for name, value in VALUES.items()
                            if name in content
                        )
                        connection.sendall(record(GET_VALUES_RESULT, 0, answer))
                    elif kind == STDIN and not content:
                        self._requests.append(seen[:position])
                        seen, position = seen[position:], 0
                        answer = HEAD if b"REQUEST_METHODHEAD" in self._requests[-1] else ANSWER
                        connection.sendall(
                            record(STDOUT, id, answer)
                            + record(STDOUT, id, b"")
                            + record(END, id, bytes(8))
                        )
                        if not keep:
                            return


class ScgiRecorder(Recorder):
    """The same for SCGI: one request for each connection."""

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            seen = b""
            whole = 0
            while not whole or len(seen) < whole:
                data = connection.recv(65536)
                if not data:
                    return
                seen += data
                digits, colon, rest = seen.partition(b":")
                if colon and len(rest) > int(digits):
                    # CONTENT_LENGTH is the first header.
                    length = int(rest.split(b"\0", 2)[1])
                    whole = len(digits) + 1 + int(digits) + 1 + length
            self._requests.append(seen)
            connection.sendall(HEAD if b"REQUEST_METHOD\0HEAD\0" in seen else ANSWER)


class AjpRecorder(Recorder):
    """The same for AJP, whose body has to be asked for; each connection is closed after one."""

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:

            def packet() -> bytes:
                head = stream.read(4)
                return head + stream.read(int.from_bytes(head[2:], "big"))

            seen = packet()
            if not seen:
                return
            request = read_forward(seen[4:])
            headers = dict(request.headers)
            left = int(headers.get("content-length", "0"))
            if left:
                seen += (first := packet())
                left -= len(first) - 6
            while left or "Transfer-Encoding" in headers:
                connection.sendall(b"AB\x00\x03\x06" + min(8186, left or 8186).to_bytes(2, "big"))
                seen += (piece := packet())
                if len(piece) <= 6:
                    break
                left = max(0, left - len(piece) + 6)
            self._requests.append(seen)
            connection.sendall(b"AB\x00\x0a\x04\x00\xc8\x00\x02OK\x00\x00\x00AB\x00\x02\x05\x00")
