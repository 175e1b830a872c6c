"""ASGI applications: what they are told, and what they may answer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import threading
import time
from typing import Any

import pytest

from fulgate import Config, ConfigError, Server
from fulgate.interface import interface_of
from tests.asgi import START, App, Make, Message, Receive, Send, body, hello, raw, serve
from tests.driver_suite.kit import END, Flag, Log, until
from tests.model import ABORT_REQUEST, PARAMS, STDIN
from tests.raw import begin, environ, head, pairs, post, record, stream
from tests.test_drivers import log

__all__ = ["log", "serve"]


class Told:
    """An application that notes the scope of each request, and answers it."""

    def __init__(self) -> None:
        self.scopes: list[Message] = []

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        await hello(scope, receive, send)


# What the application is told


def test_the_scope_is_exact(serve: Make) -> None:
    told = Told()
    server = serve(told, lifespan="off", script_name="/app")
    with raw(server) as client:
        client.request(
            "/app/caf\xc3\xa9/a b%",
            query="x=%20",
            REQUEST_URI="/app/caf%C3%A9/a%20b%25?x=%20",
            REQUEST_METHOD="get",
            SERVER_PROTOCOL="HTTP/2.0",
            SERVER_SOFTWARE="nginx/1.22",
            SERVER_NAME="example.org",
            SERVER_ADDR="192.0.2.1",
            SERVER_PORT="443",
            REMOTE_ADDR="2001:db8::1",
            REMOTE_PORT="5000",
            HTTPS="on",
            HTTP_X_MIXED_Case="\xe9",
            CONTENT_TYPE="text/plain",
            HTTP_COOKIE="a=b",
        )
    (scope,) = told.scopes
    extensions = scope.pop("extensions")
    assert ("HTTP_COOKIE", "a=b") in extensions["fulgate.params"]["pairs"]()
    assert scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "2",
        "method": "GET",
        "scheme": "https",
        "path": "/app/caf\u00e9/a b%",
        "raw_path": b"/app/caf%C3%A9/a%20b%25",
        "query_string": b"x=%20",
        "root_path": "/app",
        "headers": [
            (b"x-mixed-case", b"\xe9"),
            (b"content-type", b"text/plain"),
            (b"cookie", b"a=b"),
        ],
        "client": ("2001:db8::1", 5000),
        "server": ("192.0.2.1", 443),
    }


def test_params_that_came_twice_are_in_order(serve: Make) -> None:
    seen: list[list[tuple[str, str]]] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        seen.append(scope["extensions"]["fulgate.params"]["pairs"]())
        assert (b"x-forwarded-for", b"a, b") in scope["headers"]
        await hello(scope, receive, send)

    server = serve(app, lifespan="off")
    twice = [*environ(), ("HTTP_X_FORWARDED_FOR", "a"), ("HTTP_X_FORWARDED_FOR", "b")]
    with raw(server) as client:
        client.expect()
        client.send(begin(), record(PARAMS, 1, pairs(twice)), record(PARAMS, 1), END)
        assert client.answer().body == b"hello\n"
    assert [value for name, value in seen[0] if name == "HTTP_X_FORWARDED_FOR"] == ["a", "b"]


# Bodies


@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
def test_a_body_comes_whole_and_goes_whole(serve: Make, size: int) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        while True:
            message = await receive()
            assert message["type"] == "http.request"
            await send(body(message["body"], message["more_body"]))
            if not message["more_body"]:
                break
        assert (await receive())["type"] == "http.disconnect"

    server = serve(app, lifespan="off")
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    with raw(server) as client:
        for _ in range(2):
            client.expect()
            sender = threading.Thread(
                target=client.send, args=(head(**post(size)), stream(STDIN, 1, data))
            )
            sender.start()
            assert client.answer().body == data
            sender.join()


def test_a_body_that_nobody_reads_is_not_taken(serve: Make) -> None:
    go = threading.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        while not go.is_set():
            await asyncio.sleep(0.01)
        await hello(scope, receive, send)

    server = serve(app, lifespan="off")
    with raw(server) as client:
        client.expect()
        client.send(head(**post(1 << 30)))
        client.socket.setblocking(False)
        sent = 0
        piece = stream(STDIN, 1, bytes(1 << 20), end=False)
        deadline = time.monotonic() + 0.5
        while sent < 100 << 20 and time.monotonic() < deadline:
            try:
                sent += client.socket.send(piece[sent % len(piece) :])
            except BlockingIOError:
                time.sleep(0.01)
        assert sent < 8 << 20
        go.set()
        assert client.answer().body == b"hello\n"


def test_a_slow_client_has_the_application_wait(serve: Make) -> None:
    sent = [0]

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        for _ in range(80):
            await send(body(bytes(100_000), True))
            sent[0] += 1
        await send(body())

    server = serve(app, lifespan="off", write_behind=200_000)
    with raw(server) as client:
        client.expect()
        client.send(head(), END)
        client.until(1, bytes(1000))
        time.sleep(0.1)
        assert sent[0] < 70
        while not client.reader.answers[1].ended:
            client.reader.read(client.socket.recv(1 << 20))
        assert len(client.answer().body) == 8_000_000


# The client goes


TIMES = ("waiting", "reading", "streaming")


@pytest.mark.parametrize(
    ("how", "when"),
    # A record that is behind a body which nobody reads is not seen.
    [*itertools.product(("record", "close"), TIMES), ("close", "unread")],
)
def test_a_disconnect_is_told_at_once(serve: Make, how: str, when: str) -> None:
    ready, gone = Flag(), Flag()
    raised = list[type[BaseException]]()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["path"] != "/watched":
            return await hello(scope, receive, send)
        if when == "streaming":
            await send(START)
            await send(body(b"first", True))
        if when in ("waiting", "streaming"):
            await receive()
        ready.set()
        if when == "unread":
            await send(START)
            with contextlib.suppress(ConnectionError):
                for _ in range(3000):
                    await send(body(b"x", True))
                    await asyncio.sleep(0.01)
                pytest.fail("it was not told")
        else:
            while (await receive())["type"] != "http.disconnect":
                pass
            try:
                await send(START if when != "streaming" else body(b"more"))
            except OSError as error:
                raised.append(type(error))
        gone.set()
        return None

    server = serve(app, lifespan="off")
    client = raw(server)
    client.expect()
    if when == "unread":
        client.send(
            head("/watched", **post(10_000_000)), stream(STDIN, 1, bytes(130_000), end=False)
        )
    elif when == "reading":
        client.send(head("/watched", **post(10)))
    else:
        client.send(head("/watched"), END)
    ready.come()
    if how == "record":
        client.send(record(ABORT_REQUEST, 1))
        client.answer()
        gone.come()
        assert client.request().body == b"hello\n"
    client.socket.close()
    gone.come()
    assert when == "unread" or [issubclass(kind, OSError) for kind in raised] == [True]


# What goes wrong


def fails(after: list[Message], error: type[BaseException] | None) -> App:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["path"] == "/fine":
            return await hello(scope, receive, send)
        for message in after:
            await send(message)
        if error is not None:
            raise error("it broke")
        return None

    return app


LONG = {**START, "headers": [(b"content-length", b"3")]}


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], LookupError),
        ([], SystemExit),
        ([], None),
        ([START], None),
        ([body()], None),
        ([START, START], None),
        ([{"type": "http.response.start", "status": "200"}], None),
        ([{"type": "http.response.start", "status": 99}], None),
        ([{"type": "http.response.start", "status": 101}], None),
        ([{**START, "headers": [("content-type", "a/b")]}], None),
        ([{**START, "headers": [(b"x", b"a\r\nb: c")]}], None),
        ([{**START, "headers": [(b"a b", b"")]}], None),
        ([START, {"type": "http.response.body", "body": "text"}], None),
        ([START, {"type": "websocket.send"}], None),
        ([LONG, body(b"four")], None),
        ([LONG, body(b"2")], None),
    ],
)
def test_500_when_nothing_was_sent(
    serve: Make,
    log: Log,
    messages: list[Message],
    error: type[BaseException] | None,
) -> None:
    server = serve(fails(messages, error), lifespan="off")
    with raw(server) as client:
        assert client.request("/bad?x").status == "500 Internal Server Error"
        assert client.request("/fine").body == b"hello\n"
    assert [line for line in log.lines() if "GET /bad?x" in line]


@pytest.mark.parametrize("error", [LookupError, None])
def test_a_broken_answer_does_not_pass_for_whole(
    serve: Make,
    log: Log,
    error: type[BaseException] | None,
) -> None:
    server = serve(fails([START, body(b"first", True)], error), lifespan="off")
    with raw(server) as client:
        client.expect()
        client.send(head("/bad"), END)
        client.until(1, b"first")
        with pytest.raises(EOFError):
            client.answer()
    until(lambda: [line for line in log.lines() if "/bad" in line], "it was not logged")


def test_413_while_the_application_reads(serve: Make) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    server = serve(app, lifespan="off", limit_request_body=100_000)
    with raw(server) as client:
        client.expect()
        client.send(head(REQUEST_METHOD="POST", keep=False), stream(STDIN, 1, bytes(500_000)))
        assert client.answer().status == "413 Content Too Large"
        assert client.closed()


# Answers


def test_heads(serve: Make) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        status = int(scope["path"][1:])
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [[b"X-A", b"1"], [b"x-a", b"2"], (b"connection", b"keep-alive")],
            }
        )
        await send(body(b"text"))

    server = serve(app, lifespan="off")
    with raw(server) as client:
        found = client.request("/200")
        assert found.status == "200 OK"
        assert found.head == [b"Status: 200 OK", b"X-A: 1", b"x-a: 2", b"Content-Length: 4"]
        assert client.request("/204").body == b""
        assert client.request("/799").status == "799 Unknown"
        only = client.request("/200", REQUEST_METHOD="HEAD")
        assert only.body == b""
        assert b"Content-Length: 4" in only.head


# Which interface


class Callable3:
    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None: ...


def test_the_interface_is_found() -> None:
    assert interface_of(hello) == interface_of(Callable3()) == "asgi"
    assert interface_of(functools.partial(hello)) == "asgi"
    assert interface_of(lambda environ, start_response: []) == "wsgi"
    assert interface_of(Callable3) == "wsgi"
    assert interface_of(lambda *a: hello(*a), "asgi") == "asgi"
    assert interface_of(hello, "wsgi") == "wsgi"


def test_no_cgi_process_runs_it() -> None:
    with pytest.raises(ConfigError, match="ASGI"):
        Server(hello).answer()
    with pytest.raises(ConfigError, match="ASGI"):
        Server(hello).inline()


@pytest.mark.parametrize("settings", [{"loop": "trio"}, {"lifespan": "never"}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Config(**settings)


# Many


def test_256_connections_at_once(serve: Make) -> None:
    server = serve(hello, lifespan="off")
    clients = [raw(server) for _ in range(256)]
    for client in clients:
        client.expect()
        client.send(head(), END)
    for client in clients:
        assert client.answer().body == b"hello\n"
        client.socket.close()


# Several requests at once on a connection


@pytest.mark.statement("18")
def test_requests_at_once_on_a_connection(serve: Make) -> None:
    """One that is slow, one whose body nobody reads yet, one that is aborted, and small ones."""
    go, reading = Flag(), Flag()
    gone: list[str] = []
    read: dict[str, int] = {}

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path != "/hello":
            reading.set()
            while not go.is_set() and path != "/gone":
                await asyncio.sleep(0.01)
            size = 0
            while (message := await receive())["type"] == "http.request":
                size += len(message["body"])
                if not message["more_body"]:
                    break
            else:
                gone.append(path)
                return
            read[path] = size
        await send(START)
        await send(body(path.encode()))

    server = serve(app, lifespan="off")
    with raw(server) as peer:
        assert peer.values(b"FCGI_MPXS_CONNS") == {b"FCGI_MPXS_CONNS": b"1"}
        for id, path in ((1, "/slow"), (2, "/unread"), (3, "/gone")):
            peer.expect(id)
            peer.send(head(path, id=id, **({} if id == 1 else post(1_000_000))))
        peer.send(record(STDIN, 1), stream(STDIN, 2, bytes(1_000_000)), record(STDIN, 3, b"a"))
        for _ in range(3):
            assert peer.request(id=4).body == b"/hello"
        peer.send(record(ABORT_REQUEST, 3))
        assert not peer.answer(3).stdout
        until(lambda: gone == ["/gone"], "the application was not told")
        assert not read
        go.set()
        assert peer.answer(1).body == b"/slow"
        assert peer.answer(2).body == b"/unread"
        assert read == {"/slow": 0, "/unread": 1_000_000}
        assert peer.request(id=1).body == b"/hello"
