"""Applications that the tests have real servers run.

Where one has to wait for a test it waits for a file, whose path the query names, so that nothing
depends on how quick a machine is.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from wsgiref.validate import validator

PATIENCE = 60.0  # seconds

Environ = dict[str, Any]
Start = Callable[..., Callable[[bytes], object]]
TEXT = [("Content-Type", "text/plain; charset=utf-8")]


def query(environ: Environ, name: str) -> str:
    text: str = environ["QUERY_STRING"]
    return parse_qs(text)[name][0]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} did not come")
        time.sleep(0.005)


def answer(start: Start, body: bytes, kind: str = "text/plain; charset=utf-8") -> list[bytes]:
    start("200 OK", [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]


def hello(environ: Environ, start: Start) -> Iterable[bytes]:
    return answer(start, b"Hello, world!\n")


def environ(environ: Environ, start: Start) -> Iterable[bytes]:
    """The variables that are text, as JSON."""
    texts = {name: value for name, value in environ.items() if isinstance(value, str)}
    return answer(start, json.dumps(texts).encode(), "application/json")


def digest(environ: Environ, start: Start) -> Iterable[bytes]:
    """What came as the body: its length, its SHA-256, and the CONTENT_LENGTH, as JSON."""
    total = 0
    sha256 = hashlib.sha256()
    while piece := environ["wsgi.input"].read(65536):
        total += len(piece)
        sha256.update(piece)
    facts = {
        "length": total,
        "sha256": sha256.hexdigest(),
        "content_length": environ.get("CONTENT_LENGTH"),
    }
    return answer(start, json.dumps(facts).encode(), "application/json")


def echo(environ: Environ, start: Start) -> Iterable[bytes]:
    """The body, sent back piece by piece while it comes."""
    start("200 OK", [("Content-Type", "application/octet-stream")])
    return iter(lambda: environ["wsgi.input"].read(8192), b"")


def stream(environ: Environ, start: Start) -> Iterator[bytes]:
    """One piece, and a second one when the file `go` is there."""
    start("200 OK", TEXT)
    yield b"first\n"
    wait_for(Path(query(environ, "go")))
    yield b"second\n"


def sized(environ: Environ, start: Start) -> Iterable[bytes]:
    """As many bytes as the query's `size` says, in pieces of 64 KiB."""
    size = int(query(environ, "size"))
    start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(size))])
    piece = bytes(range(256)) * 256
    for at in range(0, size, len(piece)):
        yield piece[: size - at]


def endless(environ: Environ, start: Start) -> Iterator[bytes]:
    """Write until the client has gone; then `report` says how that was told."""
    report = Path(query(environ, "report"))
    aborted = environ["fulgate.aborted"]
    start("200 OK", TEXT)
    deadline = time.monotonic() + PATIENCE
    try:
        while time.monotonic() < deadline:
            yield b"x" * 1024
            time.sleep(0.005)
        report.write_text("still there")
    finally:
        # GeneratorExit: the gateway closes what it may no longer send.
        if not report.exists():
            report.write_text(f"closed, aborted={aborted()}")


def patient(environ: Environ, start: Start) -> Iterable[bytes]:
    """Do nothing but ask whether the client has gone; then `report` says so."""
    report = Path(query(environ, "report"))
    Path(query(environ, "began")).touch()
    deadline = time.monotonic() + PATIENCE
    while not environ["fulgate.aborted"]() and time.monotonic() < deadline:
        time.sleep(0.005)
    report.write_text(f"aborted={environ['fulgate.aborted']()}")
    return answer(start, b"too late\n")


def reader(environ: Environ, start: Start) -> Iterable[bytes]:
    """Read the whole body; `report` says which error that met, if any."""
    report = Path(query(environ, "report"))
    Path(query(environ, "began")).touch()
    try:
        while environ["wsgi.input"].read(8192):
            pass
    except OSError as error:
        report.write_text(type(error).__name__)
        raise
    report.write_text("whole")
    return answer(start, b"whole\n")


def after(environ: Environ, start: Start) -> Iterable[bytes]:
    """Answer; when the client has it all, wait for the file `go` and make `report`."""
    go, report = Path(query(environ, "go")), Path(query(environ, "report"))

    def work() -> None:
        wait_for(go)
        report.write_text("done")

    environ["fulgate.after"](work)
    return answer(start, b"at once\n")


def empty(environ: Environ, start: Start) -> Iterable[bytes]:
    """The status of the query, such as "204 No Content", without a body."""
    start(query(environ, "status"), [])
    return []


def headers(environ: Environ, start: Start) -> Iterable[bytes]:
    """A redirect that sets two cookies."""
    start(
        "302 Found",
        [("Location", "/elsewhere?a=1"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), *TEXT],
    )
    return [b"elsewhere\n"]


def fails(environ: Environ, start: Start) -> Iterable[bytes]:
    raise LookupError("this application fails before it answers")


def breaks(environ: Environ, start: Start) -> Iterator[bytes]:
    """Fail when a part of the answer has left.

    The query may say of which `length` it is, and for which file `go` it waits.
    """
    given = parse_qs(environ["QUERY_STRING"])
    start("200 OK", [*TEXT, *(("Content-Length", value) for value in given.get("length", []))])
    yield b"x" * 100_000
    for path in given.get("go", []):
        wait_for(Path(path))
    raise LookupError("this application fails within its answer")


def errors(environ: Environ, start: Start) -> Iterator[bytes]:
    """Lines for the log before, between and after two pieces of the answer."""
    for piece in (b"one\n", b"two\n"):
        environ["wsgi.errors"].write(f"before {piece.decode()}")
        if piece == b"one\n":
            start("200 OK", TEXT)
        yield piece
    environ["wsgi.errors"].write("the last\n")


def validated(environ: Environ, start: Start) -> Iterable[bytes]:
    """`digest`, held to PEP 3333 by wsgiref.validate."""

    def read_with_size(environ: Environ, start: Start) -> Iterable[bytes]:
        data = environ["wsgi.input"].read(1_000_000)
        return answer(start, hashlib.sha256(data).hexdigest().encode())

    plain = {name: value for name, value in environ.items() if not name.startswith("fulgate.")}
    checked: Callable[..., Iterable[bytes]] = validator(read_with_size)
    return checked(plain, start)


ROUTES: dict[str, Callable[[Environ, Start], Iterable[bytes]]] = {
    "/hello": hello,
    "/digest": digest,
    "/echo": echo,
    "/stream": stream,
    "/sized": sized,
    "/endless": endless,
    "/patient": patient,
    "/reader": reader,
    "/after": after,
    "/empty": empty,
    "/headers": headers,
    "/fails": fails,
    "/breaks": breaks,
    "/errors": errors,
    "/validated": validated,
}


def app(variables: Environ, start: Start) -> Iterable[bytes]:
    """All of the above, each at its path; any other path shows the environ."""
    return ROUTES.get(variables["PATH_INFO"], environ)(variables, start)
