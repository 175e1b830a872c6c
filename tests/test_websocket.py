"""WebSockets over lighttpd's convention: what passes on STDIN and STDOUT, and how it ends."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from typing import Any

import pytest
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import (
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    TextMessage,
)
from wsproto.extensions import Extension, PerMessageDeflate

from fulgate import Server
from fulgate.gateways.asgi_websocket import CLOSE_TIMEOUT
from tests.asgi import Make, Message, Receive, Send, raw, serve  # noqa: F401
from tests.driver_suite.kit import END, Flag, Log, until
from tests.model import ABORT_REQUEST, STDIN
from tests.raw import PATIENCE, head, record
from tests.test_drivers import log  # noqa: F401

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455, section 1.3


class Client:
    """A client of a WebSocket, behind a web server that passes its frames on."""

    def __init__(self, server: Server, path: str = "/", **params: str) -> None:
        self.raw = raw(server)
        self.raw.expect()
        given = {
            "HTTP_UPGRADE": "websocket",
            "HTTP_CONNECTION": "Upgrade",
            "HTTP_SEC_WEBSOCKET_KEY": KEY,
            "HTTP_SEC_WEBSOCKET_VERSION": "13",
            "CONTENT_LENGTH": "0",
            "SERVER_SOFTWARE": "lighttpd/1.4.79",
            **params,
        }
        self.raw.send(head(path, keep=False, **given))
        self.answer = self.raw.reader.answers[1]
        self.seen = 0
        self.text = b""

    def open(self, deflate: bool = False) -> Client:
        self.raw.until(1, b"\r\n\r\n")
        self.text, _, rest = self.answer.stdout.partition(b"\r\n\r\n")
        assert self.text.startswith(b"Status: 101 Switching Protocols\r\n")
        assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in self.text
        extensions: list[Extension] = []
        if deflate:
            offer = PerMessageDeflate()
            offer.offer()
            offer.finalize("permessage-deflate")
            extensions = [offer]
        self.frames = Connection(ConnectionType.CLIENT, extensions)
        self.seen = len(self.answer.stdout) - len(rest)
        return self

    def send(self, *events: Event) -> None:
        for event in events:
            self.write(self.frames.send(event))

    def write(self, data: bytes) -> None:
        for at in range(0, len(data), 60_000):
            self.raw.send(record(STDIN, 1, data[at : at + 60_000]))

    def receive(self) -> Event:
        """Give the next event that says something."""
        while True:
            for event in self.frames.events():
                return event
            new = self.answer.stdout[self.seen :]
            if not new:
                assert not self.answer.ended, "the answer has ended"
                assert self.raw.receive(time.monotonic() + PATIENCE), "closed"
                continue
            self.seen += len(new)
            self.frames.receive_data(new)

    def message(self) -> str | bytes:
        pieces: list[Any] = []
        while True:
            event = self.receive()
            assert isinstance(event, (TextMessage, BytesMessage)), event
            pieces.append(event.data if isinstance(event.data, str) else bytes(event.data))
            if event.message_finished:
                return ("" if isinstance(pieces[0], str) else b"").join(pieces)

    def close(self) -> None:
        self.raw.socket.close()


class Echo:
    """Sends back what it gets, and notes how it ended."""

    def __init__(self) -> None:
        self.ended = Flag()
        self.last: Message = {}
        self.scope: Message = {}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        assert scope["type"] == "websocket"
        self.scope = scope
        assert await receive() == {"type": "websocket.connect"}
        chosen = scope["subprotocols"][-1] if scope["subprotocols"] else None
        await send({"type": "websocket.accept", "subprotocol": chosen, "headers": [(b"x", b"y")]})
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self.last = message
                self.ended.set()
                return
            await send({**message, "type": "websocket.send"})


@pytest.fixture
def echo(serve: Make) -> tuple[Server, Echo]:  # noqa: F811
    app = Echo()
    return serve(app, lifespan="off", websocket_max_size=200_000), app


def test_messages(echo: tuple[Server, Echo]) -> None:
    server, app = echo
    client = Client(server, "/caf\xc3\xa9", HTTP_SEC_WEBSOCKET_PROTOCOL="chat, superchat").open()
    assert b"\r\nSec-WebSocket-Protocol: superchat" in client.text
    assert b"\r\nx: y" in client.text
    client.send(TextMessage(data="h\u00e9llo"), BytesMessage(data=b"\0\1"))
    assert client.message() == "h\u00e9llo"
    assert client.message() == b"\0\1"
    client.send(
        TextMessage(data="frag", message_finished=False),
        Ping(payload=b"between"),
        TextMessage(data="ments"),
    )
    pong = client.receive()
    assert isinstance(pong, Pong)
    assert bytes(pong.payload) == b"between"
    assert client.message() == "fragments"
    client.send(TextMessage(data=""), BytesMessage(data=bytes(200_000)))
    assert client.message() == ""
    assert client.message() == bytes(200_000)
    client.send(CloseConnection(code=4001, reason="done"))
    closed = client.receive()
    assert isinstance(closed, CloseConnection)
    assert closed.code == 4001
    app.ended.come()
    assert app.last == {"type": "websocket.disconnect", "code": 4001, "reason": "done"}
    assert app.scope["scheme"] == "ws"
    assert app.scope["path"] == "/caf\u00e9"
    assert app.scope["subprotocols"] == ["chat", "superchat"]
    assert client.raw.answer().stdout_ended
    client.close()


def test_compression(echo: tuple[Server, Echo]) -> None:
    offer = "permessage-deflate; client_max_window_bits"
    client = Client(echo[0], HTTP_SEC_WEBSOCKET_EXTENSIONS=offer).open(deflate=True)
    assert b"Sec-WebSocket-Extensions: permessage-deflate" in client.text
    client.send(TextMessage(data="x" * 100_000))
    assert client.message() == "x" * 100_000
    assert client.seen < 10_000
    client.send(CloseConnection(code=1000))
    assert isinstance(client.receive(), CloseConnection)
    client.close()


@pytest.mark.parametrize("how", ["close", "record", "stdin"])
def test_a_client_that_goes_without_a_word(echo: tuple[Server, Echo], how: str) -> None:
    server, app = echo
    client = Client(server).open()
    client.send(TextMessage(data="x"))
    client.message()
    if how == "record":
        client.raw.send(record(ABORT_REQUEST, 1))
    elif how == "stdin":
        client.raw.send(END)
    else:
        client.close()
    app.ended.come()
    assert app.last["code"] == 1006
    client.close()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x01x", 1002),  # not masked
        (b"\x83\x80\0\0\0\0", 1002),  # no such opcode
        (b"\x80\x80\0\0\0\0", 1002),  # nothing to continue
        (b"\x89\xfe\x00\x7e\0\0\0\0", 1002),  # a ping of 126 bytes
        (b"\x81\x82\0\0\0\0\xff\xff", 1007),  # no UTF-8
    ],
)
def test_frames_that_break_the_rules(echo: tuple[Server, Echo], data: bytes, code: int) -> None:
    server, app = echo
    client = Client(server).open()
    client.write(data)
    closed = client.receive()
    assert isinstance(closed, CloseConnection)
    assert closed.code == code
    client.raw.send(END)
    app.ended.come()
    client.close()


def test_a_message_that_is_too_long(echo: tuple[Server, Echo]) -> None:
    server, app = echo
    client = Client(server).open()
    client.send(BytesMessage(data=bytes(200_001)))
    closed = client.receive()
    assert isinstance(closed, CloseConnection)
    assert closed.code == 1009
    client.send(closed.response())
    app.ended.come()
    assert app.last["code"] == 1009
    assert client.raw.answer().stdout_ended
    client.close()


def test_pings_and_a_client_that_does_not_answer(serve: Make) -> None:  # noqa: F811
    app = Echo()
    server = serve(app, lifespan="off", websocket_ping_interval=0.05, websocket_ping_timeout=2)
    client = Client(server).open()
    for _ in range(3):
        ping = client.receive()
        assert isinstance(ping, Ping)
        client.send(ping.response())
    while isinstance(event := client.receive(), Ping):
        pass  # and no answer
    assert isinstance(event, CloseConnection)
    app.ended.come()
    assert app.last["code"] == 1006
    client.close()


def test_the_application_closes_or_refuses_or_fails(serve: Make, log: Log) -> None:  # noqa: F811
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        path = scope["path"]
        if path == "/refuse":
            await send({"type": "websocket.close"})
        elif path == "/deny":
            headers = [(b"content-type", b"text/plain")]
            kind = "websocket.http.response"
            await send({"type": f"{kind}.start", "status": 401, "headers": headers})
            await send({"type": f"{kind}.body", "body": b"who are ", "more_body": True})
            await send({"type": f"{kind}.body", "body": b"you?"})
        elif path == "/raise":
            raise LookupError("before")
        else:
            await send({"type": "websocket.accept"})
            if path == "/break":
                raise LookupError("after")
            if path == "/close":
                await send({"type": "websocket.close", "code": 4000, "reason": "enough"})
                with pytest.raises(OSError, match="closed"):
                    await send({"type": "websocket.send", "text": "x"})

    server = serve(app, lifespan="off")
    for path, status, body in (
        ("/refuse", "403 Forbidden", b"403 Forbidden\n"),
        ("/deny", "401 Unauthorized", b"who are you?"),
        ("/raise", "500 Internal Server Error", b"500 Internal Server Error\n"),
    ):
        client = Client(server, path)
        answer = client.raw.answer()
        assert (answer.status, answer.body) == (status, body)
        client.close()
    for path, code, reason in (
        ("/close", 4000, "enough"),
        ("/break", 1011, None),
        ("/return", 1000, None),
    ):
        client = Client(server, path).open()
        closed = client.receive()
        assert isinstance(closed, CloseConnection)
        assert (closed.code, closed.reason or None) == (code, reason)
        client.send(closed.response())
        assert client.raw.answer().stdout_ended
        client.close()
    assert len([line for line in log.lines() if "the application raised" in line]) == 2


def test_an_application_that_does_not_read_holds_the_client(serve: Make) -> None:  # noqa: F811
    go = Flag()
    got = [0]

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while not go.is_set():
            await asyncio.sleep(0.01)
        while (await receive())["type"] == "websocket.receive":
            got[0] += 1

    server = serve(app, lifespan="off")
    client = Client(server).open()
    piece = client.frames.send(BytesMessage(data=bytes(50_000)))
    client.raw.socket.setblocking(False)
    whole = record(STDIN, 1, piece)
    sent = 0
    deadline = time.monotonic() + 0.5
    while sent < 50_000_000 and time.monotonic() < deadline:
        try:
            sent += client.raw.socket.send(whole[sent % len(whole) :])
        except BlockingIOError:
            time.sleep(0.01)
    assert sent < 8_000_000
    go.set()
    client.raw.socket.settimeout(PATIENCE)
    if sent % len(whole):
        client.raw.socket.sendall(whole[sent % len(whole) :])
        sent += len(whole) - sent % len(whole)
    client.send(CloseConnection(code=1000))
    assert isinstance(client.receive(), CloseConnection)
    until(lambda: got[0] == sent // len(whole), "a message was lost")
    client.close()


def test_a_stop_closes_with_1012(serve: Make) -> None:  # noqa: F811
    app = Echo()
    server = serve(app, lifespan="off")
    client = Client(server).open()

    async def stop() -> bool:
        return await asyncio.to_thread(server.stop, PATIENCE)

    async def both() -> bool:
        stopping = asyncio.create_task(stop())
        closed = await asyncio.to_thread(client.receive)
        assert isinstance(closed, CloseConnection)
        assert closed.code == 1012
        client.send(closed.response())
        return await stopping

    assert asyncio.run(both()) is True
    assert app.last["code"] == 1012
    client.close()


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({"SERVER_SOFTWARE": "nginx/1.22.1"}, "501 Not Implemented"),
        ({"HTTP_SEC_WEBSOCKET_VERSION": "8"}, "426 Upgrade Required"),
        ({"HTTP_SEC_WEBSOCKET_KEY": ""}, "400 Bad Request"),
    ],
)
def test_what_is_no_handshake(
    echo: tuple[Server, Echo],
    log: Log,  # noqa: F811
    params: dict[str, str],
    status: str,
) -> None:
    client = Client(echo[0], **params)
    assert client.raw.answer().status == status
    until(lambda: [line for line in log.lines() if status in line], "it was not logged")
    client.close()


def test_a_web_server_that_ends_the_body_cannot(echo: tuple[Server, Echo], log: Log) -> None:  # noqa: F811
    with raw(echo[0]) as client:
        answer = client.request(HTTP_UPGRADE="websocket", HTTP_SEC_WEBSOCKET_KEY=KEY)
        assert answer.status == "501 Not Implemented"
    assert [line for line in log.lines() if "carries no WebSocket over FastCGI" in line]


def test_a_ping_amid_a_compressed_message(echo: tuple[Server, Echo]) -> None:
    offer = "permessage-deflate; client_max_window_bits"
    client = Client(echo[0], HTTP_SEC_WEBSOCKET_EXTENSIONS=offer).open(deflate=True)
    for text in ("one", "two"):
        client.send(
            TextMessage(data=text * 1000, message_finished=False),
            Ping(payload=b"amid"),
            TextMessage(data="end"),
        )
        pong = client.receive()
        assert isinstance(pong, Pong)
        assert bytes(pong.payload) == b"amid"
        assert client.message() == text * 1000 + "end"
    client.close()


@pytest.mark.parametrize(
    ("offers", "answer"),
    [
        ("permessage-deflate", "permessage-deflate"),
        ('permessage-deflate; server_max_window_bits="10"', "server_max_window_bits=10"),
        ("x-other, permessage-deflate; client_max_window_bits", "client_max_window_bits=15"),
        ("permessage-deflate; client_max_window_bits=9, permessage-deflate", "_bits=9"),
        # zlib has no window of 8 bits; the next offer is taken as if there were no other.
        ("permessage-deflate; server_no_context_takeover; server_max_window_bits=8", ""),
        (
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=8, "
            "permessage-deflate",
            "permessage-deflate",
        ),
        ("permessage-deflate; client_max_window_bits=many", ""),
        ("permessage-deflate; server_max_window_bits", ""),
        ("permessage-deflate; server_no_context_takeover=1", ""),
        ("permessage-deflate; server_max_window_bits=9; server_max_window_bits=10", ""),
        ("permessage-deflate; colour=blue", ""),
    ],
)
def test_what_is_offered(echo: tuple[Server, Echo], offers: str, answer: str) -> None:
    client = Client(echo[0], HTTP_SEC_WEBSOCKET_EXTENSIONS=offers).open()
    lines = client.text.decode().split("\r\n")
    found = [line for line in lines if line.startswith("Sec-WebSocket-Extensions: ")]
    assert [line.endswith(answer) for line in found] == ([True] if answer else [])
    client.close()


def test_what_is_inflated_beyond_the_limit_is_not_held(echo: tuple[Server, Echo]) -> None:
    offer = "permessage-deflate; client_max_window_bits"
    client = Client(echo[0], HTTP_SEC_WEBSOCKET_EXTENSIONS=offer).open(deflate=True)
    bomb = client.frames.send(BytesMessage(data=bytes(100_000_000)))
    assert len(bomb) < 120_000
    tracemalloc.start()
    try:
        client.write(bomb)
        closed = client.receive()
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()
    assert isinstance(closed, CloseConnection)
    assert closed.code == 1009
    client.close()


def test_what_comes_behind_a_close_does_not_delay_the_end(serve: Make) -> None:  # noqa: F811
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 4000})

    client = Client(serve(app, lifespan="off")).open()
    closing = client.frames.send(Ping(payload=b"late"))
    closed = client.receive()
    assert isinstance(closed, CloseConnection)
    begun = time.monotonic()
    client.write(closing + client.frames.send(closed.response()))
    assert client.raw.answer().stdout_ended
    assert time.monotonic() - begun < CLOSE_TIMEOUT - 1
    client.close()


def test_a_handshake_as_lighttpd_makes_it_of_an_extended_connect(
    echo: tuple[Server, Echo],
) -> None:
    client = Client(
        echo[0],
        HTTP_CONNECTION="close, upgrade",
        HTTP_SEC_WEBSOCKET_KEY="MDAwMDAwMDAwMDAwMDAwMA==",
    )
    client.raw.until(1, b"\r\n\r\n")
    assert b"Sec-WebSocket-Accept: tb403IRLas8CVkLDneo/uRhHmBg=" in client.answer.stdout
    client.close()
