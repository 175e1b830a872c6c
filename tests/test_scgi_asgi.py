"""ASGI applications and Twisted's resources over SCGI."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.web.resource import Resource

import fulgate.aio
from fulgate import Server
from fulgate.twisted import FastCGISite
from tests import scgi
from tests.driver_suite.kit import Flag, Log, pattern, until
from tests.raw import Raw
from tests.scgi import Peer
from tests.test_drivers import log  # noqa: F401
from tests.test_twisted_driver import Loop, loop  # noqa: F401

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"a/b")]}


def body(data: bytes = b"", more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


def serve(app: Any, folder: Path, **settings: Any) -> Server:
    binds = (f"scgi+unix:{folder}/s", "scgi+tcp:127.0.0.1:0", f"unix:{folder}/f")
    return Server(app, bind=binds, lifespan="off", loop="asyncio", **settings)


def test_requests_and_answers(folder: Path) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        assert (scope["path"], scope["query_string"]) == ("/digest", b"a=b")
        sha256 = hashlib.sha256()
        more = True
        while more:
            message = await receive()
            sha256.update(message["body"])
            more = message["more_body"]
        await send(START)
        await send(body(sha256.hexdigest().encode()))

    with serve(app, folder) as server:
        for size in (0, 10, 3_000_000):
            data = pattern(size)
            for address in (f"{folder}/s", server.listeners[1].getsockname()):
                with Peer(address) as peer:
                    peer.send(scgi.request("/digest", "a=b", data), b"more than was told")
                    assert peer.answer().body.decode() == hashlib.sha256(data).hexdigest()
        with Raw(f"{folder}/f") as raw:
            assert raw.request("/digest", "a=b", body=b"x").status == "200 OK"


def test_a_client_that_goes_is_told_at_once(folder: Path) -> None:
    started, told = Flag(), Flag()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        started.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        told.set()

    with serve(app, folder) as server:
        for length in (0, 10):
            for address in (f"{folder}/s", server.listeners[1].getsockname()):
                started.clear()
                told.clear()
                with Peer(address) as peer:
                    peer.send(scgi.head(length=length))
                    started.come()
                told.come()


def test_an_answer_that_breaks(folder: Path, log: Log) -> None:  # noqa: F811
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        await send(body(b"a part", True))
        raise LookupError("broken")

    with serve(app, folder) as server, Peer(server.listeners[1].getsockname()) as peer:
        peer.send(scgi.request())
        with pytest.raises(ConnectionResetError):
            peer.answer()
    until(log.tracebacks, "it was not logged")


def test_in_a_loop_that_runs(folder: Path) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        await send(body(b"hello"))

    async def main() -> bytes:
        endpoint = f"scgi+unix:{folder}/s"
        async with fulgate.aio.Server(app, bind=(endpoint,), lifespan="off") as server:
            assert server.endpoints == [endpoint]
            reader, writer = await asyncio.open_unix_connection(f"{folder}/s")
            writer.write(scgi.request())
            got = await asyncio.wait_for(reader.read(), 30)
            writer.close()
            await writer.wait_closed()
            return got

    assert scgi.Answer(asyncio.run(main())).body == b"hello"


def test_a_resource_of_twisted(folder: Path, loop: Loop) -> None:  # noqa: F811
    class Shown(Resource):
        isLeaf = True

        def render_POST(self, request: Any) -> bytes:
            return b"%s %s" % (request.path, request.content.read())

    root = Shown()  # type: ignore[no-untyped-call]
    site = FastCGISite(root, reactor=loop.reactor, protocol="scgi")
    port = loop(loop.reactor.listenUNIX, f"{folder}/s", site)
    try:
        for data in (b"some body", pattern(1_000_000)):
            with Peer(f"{folder}/s") as peer:
                peer.send(scgi.request("/there", body=data))
                got = peer.answer()
            assert (got.status, got.body) == (200, b"/there " + data)
    finally:
        loop(port.stopListening)
        loop(site.drain, 1.0)


def test_there_are_no_websockets(folder: Path) -> None:
    """nginx passes Upgrade on, and would not pass the frames on."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        await send(body(scope["type"].encode()))

    headers = {
        "HTTP_UPGRADE": "websocket",
        "HTTP_CONNECTION": "Upgrade",
        "HTTP_SEC_WEBSOCKET_KEY": "a" * 24,
        "HTTP_SEC_WEBSOCKET_VERSION": "13",
    }
    with serve(app, folder), Peer(f"{folder}/s") as peer:
        peer.send(scgi.request("/", "", b"", **headers))
        assert peer.answer().status == 501
