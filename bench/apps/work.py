"""The WSGI application that every peer serves: the path says what a request is to cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

StartResponse = Callable[[str, list[tuple[str, str]]], object]

HELLO = b"hello world\n"
LARGE = b"x" * 65536
PIECE, PIECES = b"x" * 16384, 64  # 1 MiB
HEADERS = [("Content-Type", "text/plain"), ("Content-Length", "12")]


def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Do what the path asks for.

    `/`: 12 bytes. `/64k`: 64 KiB. `/stream`: 1 MiB from a generator. `/upload`: reads the body.
    `/wait/MS`: waits. `/compute/MS/MS`: computes, then waits. `/python/MS` and `/released/MS`:
    computes in Python, and in C with the GIL released.
    """
    path = environ.get("PATH_INFO") or environ["SCRIPT_NAME"]
    if path == "/":
        start_response("200 OK", HEADERS.copy())
        return [HELLO]
    if path == "/64k":
        return answer(start_response, [LARGE], len(LARGE))
    if path == "/stream":
        return answer(start_response, pieces(), len(PIECE) * PIECES)
    if path == "/upload":
        read = len(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        body = b"%11d\n" % read
        return answer(start_response, [body], len(body))
    kind, *times = path[1:].split("/")
    do_work(kind, [int(part) / 1000 for part in times], time.sleep)
    return answer(start_response, [HELLO], len(HELLO))


def answer(start_response: StartResponse, body: Iterable[bytes], size: int) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(size))])
    return body


def pieces() -> Iterator[bytes]:
    for _ in range(PIECES):
        yield PIECE


def do_work(kind: str, seconds: list[float], sleep: Callable[[float], object]) -> None:
    """Raises KeyError for a kind that there is not."""
    if kind == "wait":
        sleep(seconds[0])
    elif kind == "compute":
        compute(seconds[0])
        sleep(seconds[1])
    elif kind == "python":
        compute(seconds[0])
    elif kind == "released":
        compute_in_c(seconds[0])
    else:
        raise KeyError(kind)


def compute(seconds: float) -> None:
    """Compute in Python, for so much CPU time of this thread: the same work beside others."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        for _ in range(1000):
            pass


def compute_in_c(seconds: float) -> None:
    """Compute for so much CPU time in calls of some 50 ms, which release the GIL."""
    import hashlib  # here, since it is large and only this path needs it

    until = time.thread_time() + seconds
    while time.thread_time() < until:
        hashlib.pbkdf2_hmac("sha256", b"secret", b"salt", 100_000)
