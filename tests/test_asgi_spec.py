"""Sentences of the ASGI specification that other tests of ASGI do not come to."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any

import pytest
from wsproto.events import CloseConnection

from fulgate import Aborted
from tests.asgi import START, Make, Message, Receive, Send, body, hello, raw, serve  # noqa: F401
from tests.driver_suite.kit import END, Flag, Log, until
from tests.model import STDIN
from tests.raw import head, stream
from tests.servers.fulgate import ROOT
from tests.test_drivers import log  # noqa: F401
from tests.test_websocket import Client


def test_what_comes_after_the_end_of_an_answer_is_ignored(serve: Make, log: Log) -> None:  # noqa: F811
    late: list[Message] = [
        body(b"more"),
        START,
        {"type": "http.response.pathsend", "path": "/etc/hostname"},
    ]
    done = Flag()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await hello(scope, receive, send)
        for message in late:
            await send(message)
        done.set()

    with raw(serve(app, lifespan="off")) as client:
        for _ in range(2):
            done.clear()
            answer = client.request()
            assert (answer.status, answer.body) == ("200 OK", b"hello\n")
            done.come()
    said = [line for line in log.lines() if "came after the end of the answer" in line]
    assert len(said) == 2 * len(late)
    assert not log.tracebacks()


@pytest.mark.parametrize("status", ["413 Content Too Large", "504 Gateway Timeout"])
@pytest.mark.parametrize("began", [False, True], ids=["before", "amid"])
def test_send_raises_once_the_server_has_ended_the_answer(
    serve: Make,  # noqa: F811
    log: Log,  # noqa: F811
    status: str,
    began: bool,
) -> None:
    """An OSError, which is not logged as an error, be it that the application lets it through."""
    raised: list[BaseException] = []
    reading = Flag()
    settings: dict[str, Any] = {"limit_request_body": 10_000}
    if status.startswith("504"):
        settings = {"request_timeout": 0.2}

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["path"] == "/hello":
            return await hello(scope, receive, send)
        if began:
            await send(START)
            await send(body(b"first", True))
        reading.set()
        with contextlib.suppress(asyncio.CancelledError):
            while (await receive())["type"] != "http.disconnect":
                pass
        try:
            await send(body(b"more", True) if began else START)
        except BaseException as error:
            raised.append(error)
            raise

    server = serve(app, lifespan="off", **settings)
    with raw(server) as client:
        client.expect()
        client.send(head("/watched", REQUEST_METHOD="POST"))
        if began:
            client.until(1, b"first")
        reading.come()
        if status.startswith("413"):
            client.send(stream(STDIN, 1, bytes(20_000), end=False))
        if began:
            with pytest.raises(EOFError):
                client.answer()
        else:
            assert client.answer().status == status
    until(lambda: raised, "nothing was raised")
    assert isinstance(raised[0], Aborted)
    assert isinstance(raised[0], OSError)
    with raw(server) as client:
        assert client.request().body == b"hello\n"
    assert not log.tracebacks()
    assert not [line for line in log.lines() if "the application raised" in line]


def test_what_breaks_the_protocol_is_raised_and_more_keys_are_not(serve: Make) -> None:  # noqa: F811
    raised: list[type[BaseException]] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        wrong: list[Any] = [
            {},
            {"type": "http.response.start"},
            {"type": "http.response.start", "status": "200"},
            {**START, "headers": [(b":status", b"200")]},
            {**START, "headers": [(b"a",)]},
            {**START, "trailers": True},
            {"type": "http.response.nonsense"},
            {"type": "websocket.accept"},
        ]
        for message in wrong:
            try:
                await send(message)
            except Exception as error:
                raised.append(type(error))
        assert len(raised) == len(wrong), raised
        chunked = (b"transfer-encoding", b"chunked")
        await send({**START, "headers": [chunked, (b"a", b"1"), (b"A", b"2")], "more": "keys"})
        await send({**body(b"fine"), "more": "keys"})

    with raw(serve(app, lifespan="off")) as client:
        answer = client.request()
        assert answer.body == b"fine"
        assert answer.head[1:3] == [b"a: 1", b"A: 2"]
        assert not [line for line in answer.head if b"ransfer" in line]


def test_connections_come_between_startup_and_shutdown(serve: Make) -> None:  # noqa: F811
    order: list[str] = []
    running, go = Flag(), Flag()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for name in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{name}"
                order.append(f"{name} begins")
                await asyncio.sleep(0.1)
                order.append(f"{name} ends")
                await send({"type": f"lifespan.{name}.complete"})
            return
        order.append("request begins")
        running.set()
        while not go.is_set():
            await asyncio.sleep(0.01)
        await hello(scope, receive, send)
        order.append("request ends")

    server = serve(app)
    with raw(server) as client:
        client.expect()
        client.send(head(), END)
        running.come()
        asyncio.run(_stop_while(server, go))
        assert client.answer().body == b"hello\n"
    assert order == [
        "startup begins",
        "startup ends",
        "request begins",
        "request ends",
        "shutdown begins",
        "shutdown ends",
    ]


async def _stop_while(server: Any, go: Flag) -> None:
    stopping = asyncio.create_task(asyncio.to_thread(server.stop, 30.0))
    await asyncio.sleep(0.2)
    go.set()
    assert await stopping


@pytest.mark.parametrize(
    "message",
    [
        {"type": "websocket.send"},
        {"type": "websocket.send", "text": "a", "bytes": b"b"},
        {"type": "websocket.send", "text": None, "bytes": None},
        {"type": "websocket.send", "text": b"a"},
        {"type": "websocket.send", "bytes": "a"},
        {"type": "websocket.accept"},
        {"type": "http.response.start", "status": 200},
    ],
)
def test_a_websockets_message_is_bytes_or_text(
    serve: Make,  # noqa: F811
    log: Log,  # noqa: F811
    message: Message,
) -> None:
    raised = Flag()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "first", "bytes": None})
        try:
            await send(message)
        except (RuntimeError, TypeError, ValueError):
            raised.set()
            raise

    client = Client(serve(app, lifespan="off")).open()
    try:
        assert client.message() == "first"
        closed = client.receive()
        assert isinstance(closed, CloseConnection)
        assert closed.code == 1011  # the socket goes with the application
        raised.come()
    finally:
        client.close()
    assert log.tracebacks() == 1


@pytest.mark.parametrize("name", [b"sec-websocket-protocol", b"Sec-WebSocket-Accept"])
def test_a_websockets_handshake_is_not_the_applications(serve: Make, name: bytes) -> None:  # noqa: F811
    raised = Flag()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        assert await receive() == {"type": "websocket.connect"}
        try:
            await send({"type": "websocket.accept", "headers": [(name, b"a")]})
        except ValueError:
            raised.set()
        await send({"type": "websocket.accept", "subprotocol": "a"})
        await send({"type": "websocket.send", "text": "open"})

    client = Client(serve(app, lifespan="off"), HTTP_SEC_WEBSOCKET_PROTOCOL="a").open()
    try:
        assert client.message() == "open"
        assert client.text.count(b"Sec-WebSocket-Protocol: a") == 1
        raised.come()
    finally:
        client.close()


def test_what_the_page_names_is_a_test() -> None:
    text = (ROOT / "docs" / "asgi.md").read_text()
    code = "".join([path.read_text() for path in (ROOT / "tests").glob("test_*.py")])
    for name in set(re.findall(r"`(test_[a-z0-9_]+)`", text)):
        assert f"def {name}(" in code, name
