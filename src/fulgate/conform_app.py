"""The application that `fulgate conform` expects, for Python: docs/conformance.md describes it.

`wsgi` and `asgi` are the Responder, for any server; `app` has the other roles too, as Fulgate
serves them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from fulgate import (
    Allow,
    AuthorizerRequest,
    Deny,
    Filtered,
    FilterRequest,
    Roles,
    authorizer,
)
from fulgate import filter as filter_role

__all__ = ["app", "asgi", "check", "upper", "wsgi"]

HELLO = b"Hello, world!\n"
ELSEWHERE = "http://localhost/elsewhere?a=1"
STEP = 0.02  # seconds
PIECE = 65536

Environ = dict[str, Any]
Start = Callable[..., Callable[[bytes], object]]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def _headers(body: bytes) -> list[tuple[str, str]]:
    return [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]


def wsgi(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """The Responder, of WSGI."""
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path in ("/hold", "/wait"):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return _hold(environ) if path == "/hold" else _wait(environ, float(query))
    if path == "/redirect":
        start_response("302 Found", [("Location", ELSEWHERE), *_headers(b"")])
        return []
    if path == "/exit":
        raise SystemExit(int(query))
    if path == "/echo":
        body = b"".join(_read(environ))
    elif path == "/length":
        body = f"{_length(environ)} of {environ['CONTENT_LENGTH']}\n".encode()
    elif path == "/param":
        body = environ.get(query, "").encode("latin-1")
    elif path == "/size":
        body = b"x" * int(query)
    else:
        if path == "/stderr":
            environ["wsgi.errors"].write("a line for the log\n")
        body = HELLO
    start_response("200 OK", _headers(body))
    return [body]


def _read(environ: Environ) -> Iterator[bytes]:
    """Give the body up to its end, or to CONTENT_LENGTH, beyond which PEP 3333 allows no read."""
    left = int(environ.get("CONTENT_LENGTH") or 0)
    while left > 0 and (piece := environ["wsgi.input"].read(min(left, PIECE))):
        left -= len(piece)
        yield piece


def _length(environ: Environ) -> str:
    try:
        return str(sum(len(piece) for piece in _read(environ)))
    except OSError:
        return "?"


def _hold(environ: Environ) -> Iterator[bytes]:
    yield b"first\n"
    for _ in _read(environ):
        pass
    yield b"second\n"


def _wait(environ: Environ, seconds: float) -> Iterator[bytes]:
    yield b"first\n"
    gone = environ.get("fulgate.aborted", bool)
    until = time.monotonic() + seconds
    while time.monotonic() < until and not gone():
        time.sleep(STEP)
    yield b"second\n"


async def asgi(scope: Message, receive: Receive, send: Send) -> None:
    """The Responder, of ASGI."""
    if scope["type"] != "http":
        raise NotImplementedError(f"there is no {scope['type']} here")
    path, query = scope["path"], scope["query_string"].decode("latin-1")
    status, body = 200, HELLO
    headers: list[tuple[bytes, bytes]] = []
    if path in ("/hold", "/wait"):
        await _start(send, 200, [])
        await _body(send, b"first\n", more=True)
        if path == "/hold":
            await _all(receive)
        else:
            await asyncio.sleep(float(query))
        await _body(send, b"second\n")
        return
    if path == "/redirect":
        status, headers, body = 302, [(b"location", ELSEWHERE.encode())], b""
    elif path == "/exit":
        raise SystemExit(int(query))
    elif path == "/echo":
        body = await _all(receive)
    elif path == "/length":
        told = dict(scope["headers"])[b"content-length"].decode()
        body = f"{len(await _all(receive))} of {told}\n".encode()
    elif path == "/param":
        pairs = scope["extensions"]["fulgate.params"]["pairs"]()  # ASGI has no other way to them
        body = dict(pairs).get(query, "").encode("latin-1")
    elif path == "/size":
        body = b"x" * int(query)
    await _start(send, status, [*headers, (b"content-length", str(len(body)).encode())])
    await _body(send, body)


async def _all(receive: Receive) -> bytes:
    pieces = []
    more = True
    while more:
        message = await receive()
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(pieces)


async def _start(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    headers = [(b"content-type", b"text/plain"), *headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _body(send: Send, data: bytes, more: bool = False) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


@authorizer
def check(request: AuthorizerRequest) -> Allow | Deny:
    """The Authorizer."""
    if request.header("X-Conform") == "allow":
        return Allow({"CONFORM": "yes"})
    return Deny()


@filter_role
def upper(request: FilterRequest) -> Filtered:
    """The Filter: how long STDIN and DATA are, when DATA changed, and DATA in capital letters."""
    body, data = request.body.read(), request.data.read()
    told = request.params
    first = f"{len(body)} {told['FCGI_DATA_LENGTH']} {told['FCGI_DATA_LAST_MOD']}\n".encode()
    return Filtered(first + data.upper(), [("Content-Type", "text/plain")])


app = Roles(responder=wsgi, authorizer=check, filter=upper)
