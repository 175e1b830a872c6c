"""The application that is served while system calls go wrong."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Iterable, Iterator
from typing import Any

PIECE = bytes(range(256)) * 256  # 64 KiB
PIECES = 8

FILE = PIECE + PIECE[:1000]

_file = tempfile.NamedTemporaryFile(prefix="fulgate-")  # noqa: SIM115 - it goes with the process
_file.write(FILE)
_file.flush()

_meeting = threading.Barrier(2)


def _pieces() -> Iterator[bytes]:
    for _ in range(PIECES):
        yield PIECE


def _body(environ: dict[str, Any]) -> bytes:
    seen = hashlib.sha256()
    while data := environ["wsgi.input"].read(16384):
        seen.update(data)
    return seen.hexdigest().encode()


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    path = (environ.get("SCRIPT_NAME") or "") + (environ.get("PATH_INFO") or "")
    answer: Iterable[bytes]
    status = "200 OK"
    if path == "/large":
        answer = _pieces()
    elif path == "/file":
        wrapper = environ.get("wsgi.file_wrapper")
        answer = wrapper(open(_file.name, "rb")) if wrapper else [FILE]  # noqa: SIM115 - PEP 3333
    elif path == "/body":
        answer = [_body(environ)]
    elif path == "/meet":  # needs two threads that are free
        try:
            _meeting.wait(5)
            answer = [b"met"]
        except threading.BrokenBarrierError:
            _meeting.reset()
            status, answer = "500 Alone", [b"alone"]
    else:
        answer = [b"hello world\n"]
    start_response(status, [("Content-Type", "application/octet-stream")])
    return answer
