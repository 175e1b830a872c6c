"""The same as `work`, as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from work import HELLO, LARGE, PIECE, PIECES, compute, compute_in_c

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    path = scope["path"]
    if path == "/":
        await answer(send, HELLO)
    elif path == "/64k":
        await answer(send, LARGE)
    elif path == "/stream":
        await start(send, len(PIECE) * PIECES)
        for left in reversed(range(PIECES)):
            await send({"type": "http.response.body", "body": PIECE, "more_body": left > 0})
    elif path == "/upload":
        read, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            read += len(message.get("body", b""))
            more = message.get("more_body", False)
        await answer(send, b"%11d\n" % read)
    elif path == "/events":
        await events(receive, send)
    else:
        kind, *times = path[1:].split("/")
        await do_work(kind, [int(part) / 1000 for part in times])
        await answer(send, HELLO)


async def lifespan(receive: Receive, send: Send) -> None:
    for event in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{event}.complete"})


async def events(receive: Receive, send: Send) -> None:
    """Begin a stream of events that has no more of them, until the client goes."""
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
    while (await receive())["type"] != "http.disconnect":
        pass


async def do_work(kind: str, seconds: list[float]) -> None:
    if kind in ("compute", "python"):
        compute(seconds[0])
    elif kind == "released":
        await asyncio.to_thread(compute_in_c, seconds[0])
    if kind in ("wait", "compute"):
        await asyncio.sleep(seconds[-1])


async def start(send: Send, size: int) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % size)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def answer(send: Send, body: bytes) -> None:
    await start(send, len(body))
    await send({"type": "http.response.body", "body": body})
