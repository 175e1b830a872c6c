"""What tests of ASGI applications have in common: a server for one, and the smallest one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fulgate import Server
from tests.raw import Raw

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
Make = Callable[..., Server]
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"a/b")]}


@pytest.fixture
def serve(folder: Path) -> Iterator[Make]:
    started: list[Server] = []

    def make(app: App, **settings: Any) -> Server:
        path = folder / f"{len(started)}.sock"
        settings.setdefault("loop", "asyncio")
        server = Server(app, bind=(f"unix:{path}",), **settings)
        started.append(server)
        server.start()
        return server

    yield make
    for server in started:
        server.stop(1.0)


def raw(server: Server) -> Raw:
    return Raw(server.endpoints[0].removeprefix("unix:"))


def body(data: bytes = b"", more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def hello(scope: Message, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    await send(START)
    await send(body(b"hello\n"))
