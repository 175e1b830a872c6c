"""ASGI applications: what they are told, what they may answer, and how they start and end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fulgate
from fulgate import Config, ConfigError, Server, StartupFailed
from fulgate.interface import interface_of
from tests.driver_suite.kit import END, Flag, Log, until
from tests.model import ABORT_REQUEST, PARAMS, STDIN
from tests.raw import PATIENCE, Raw, begin, environ, head, pairs, post, record, stream
from tests.test_drivers import log  # noqa: F401

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
    log: Log,  # noqa: F811
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
    log: Log,  # noqa: F811
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
        client.send(head(REQUEST_METHOD="POST"), stream(STDIN, 1, bytes(500_000)))
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


def test_a_file_by_its_path(serve: Make, folder: Path) -> None:
    data = bytes(range(256)) * 4096
    (folder / "a b").write_bytes(data)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.pathsend", "path": str(folder / "a b")})

    for settings in ({}, {"x_sendfile": "accel", "x_sendfile_root": (f"{folder}=/inside/",)}):
        server = serve(app, lifespan="off", **settings)
        with raw(server) as client:
            found = client.request()
            if settings:
                assert b"X-Accel-Redirect: /inside/a%20b" in found.head
                assert found.body == b""
                assert b"Content-Length" not in found.head
            else:
                assert found.body == data
                assert b"Content-Length: 1048576" in found.head
            assert client.request(REQUEST_METHOD="HEAD").body == b""


@pytest.mark.parametrize(
    ("roots", "uri"),
    [
        (("/=/all/",), "/all{folder}/sub/%FF~b"),
        (("{folder}=/out/", "{folder}/sub=/in/"), "/in/%FF~b"),  # the longest
        (("{folder}/other=/in/",), ""),
    ],
)
def test_the_uri_of_a_file_by_its_path(
    serve: Make, folder: Path, roots: tuple[str, ...], uri: str
) -> None:
    (folder / "sub").mkdir()
    path = os.fsdecode(os.fsencode(folder) + b"/sub/\xff~b")
    Path(path).write_bytes(b"data")

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.pathsend", "path": path})

    named = tuple(root.format(folder=folder) for root in roots)
    with raw(serve(app, lifespan="off", x_sendfile="accel", x_sendfile_root=named)) as client:
        found = client.request()
        assert found.body == (b"" if uri else b"data")
        line = f"X-Accel-Redirect: {uri.format(folder=folder)}".encode()
        assert (line in found.head) == bool(uri)


def test_a_file_that_is_named_takes_the_place_of_the_body(
    serve: Make,
    folder: Path,
    log: Log,  # noqa: F811
) -> None:
    (folder / "named").write_bytes(b"named\n")
    (folder / "empty").touch()
    (folder / "sub").mkdir()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        path = f"{folder}{scope['path']}".encode()
        headers = [(b"content-length", b"4"), (b"x-sendfile", path), (b"x-a", b"1")]
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        if scope["query_string"] == b"raise":
            raise LookupError("it broke")
        if scope["query_string"] == b"pathsend":
            await send({"type": "http.response.pathsend", "path": "/etc/passwd"})
        else:
            await send(body(b"bo", True))
            await send(body(b"dy"))
        await send(body(b"too late"))

    for how, root in (("serve", str(folder)), ("accel", f"{folder}=/inside/")):
        server = serve(app, lifespan="off", x_sendfile=how, x_sendfile_root=(root,))
        with raw(server) as client:
            for query in ("", "pathsend"):
                found = client.request("/named", query)
                if how == "serve":
                    assert found.head == [b"Status: 201 Created", b"x-a: 1", b"Content-Length: 6"]
                    assert found.body == b"named\n"
                else:
                    assert found.head[1:] == [b"x-a: 1", b"X-Accel-Redirect: /inside/named"]
                    assert found.body == b""
            assert client.request("/named", REQUEST_METHOD="HEAD").body == b""
            assert client.request("/named", "raise").status == "500 Internal Server Error"
            refused = client.request("/../secret")
            assert (refused.status, refused.body) == ("403 Forbidden", b"403 Forbidden\n")
            if how == "serve":
                assert client.request("/empty").body == b""
                for missing in ("/none", "/sub"):
                    assert client.request(missing).status == "404 Not Found"
    assert [line for line in log.lines() if "X-Sendfile: 403 Forbidden" in line]


def test_a_file_is_sent_as_far_as_its_length(serve: Make, folder: Path) -> None:
    """One that grows meanwhile, as a log does, and one of which the application wants a part."""
    path = folder / "log"
    path.write_bytes(b"line\n" * 100_000)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", scope["query_string"])] if scope["query_string"] else []
        await send({**START, "headers": headers})
        task = asyncio.ensure_future(
            send({"type": "http.response.pathsend", "path": str(folder / "log")})
        )
        growing = 0 if scope["query_string"] else 20
        while not task.done():
            if growing:
                growing -= 1
                with path.open("ab") as file:
                    file.write(b"line\n" * 100_000)
            await asyncio.sleep(0)
        await task

    with raw(serve(app, lifespan="off")) as client:
        assert client.request("/", "5").body == b"line\n"
        assert client.request("/", "500001").status == "500 Internal Server Error"
        answer = client.request()
        length = int(dict(line.split(b": ") for line in answer.head)[b"Content-Length"])
        assert length == len(answer.body) >= 500_000


# Start and end


class Lifetime:
    def __init__(self, *says: str) -> None:
        self.says = list(says)
        self.done: list[str] = []

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            assert scope["state"] == {"answer": 42}
            scope["state"]["mine"] = 1
            return await hello(scope, receive, send)
        scope["state"]["answer"] = 42
        for said in self.says:
            message = await receive()
            if said == "raise":
                raise LookupError("no lifespan")
            self.done.append(message["type"])
            await send({"type": f"{message['type']}.{said}", "message": "the reason"})
        return None


def test_lifespan(serve: Make) -> None:
    app = Lifetime("complete", "complete")
    server = serve(app)
    assert app.done == ["lifespan.startup"]
    with raw(server) as client:
        for _ in range(2):
            assert client.request().body == b"hello\n"
    assert server.stop()
    assert app.done == ["lifespan.startup", "lifespan.shutdown"]


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_a_startup_that_fails_ends_the_server(serve: Make, mode: str) -> None:
    with pytest.raises(StartupFailed, match="the reason"):
        serve(Lifetime("failed"), lifespan=mode)


def test_an_application_may_have_no_lifespan(serve: Make) -> None:
    with raw(serve(hello)) as client:
        assert client.request().body == b"hello\n"
    with pytest.raises(StartupFailed, match="AssertionError"):
        serve(hello, lifespan="on")


def test_a_shutdown_that_hangs_is_cancelled(serve: Make, log: Log) -> None:  # noqa: F811
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await asyncio.sleep(3600)

    server = serve(app)
    assert server.stop(0.2)
    assert [line for line in log.lines() if "shutdown took longer" in line]


def test_work_after_the_answer_may_end(serve: Make) -> None:
    done = Flag()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await hello(scope, receive, send)
        if scope["path"] == "/after":
            await asyncio.sleep(0.1)
            done.set()

    server = serve(app, lifespan="off")
    with raw(server) as client:
        client.request("/after")
        assert client.request().body == b"hello\n"  # meanwhile
        assert server.stop(PATIENCE)
    assert done.is_set()


def test_what_does_not_end_is_cancelled(serve: Make, log: Log) -> None:  # noqa: F811
    ready, cancelled = Flag(), Flag()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        ready.set()
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    server = serve(app, lifespan="off")
    with raw(server) as client:
        client.expect()
        client.send(head(), END)
        ready.come()
        assert server.stop(0.1) is False
    cancelled.come()
    assert [line for line in log.lines() if "1 requests unfinished" in line]


def test_an_application_may_stop_its_server(serve: Make) -> None:
    servers: list[Server] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        servers[0].stop(5.0)
        await hello(scope, receive, send)

    servers.append(serve(app, lifespan="off"))
    with raw(servers[0]) as client:
        assert client.request().body == b"hello\n"
        assert client.closed()


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


# In a loop that runs


def test_in_a_loop_that_runs(folder: Path) -> None:
    app = Lifetime("complete", "complete")

    def ask(path: str) -> bytes:
        with Raw(path) as client:
            return client.request().body

    async def main() -> None:
        path = str(folder / "a.sock")
        serving = asyncio.create_task(fulgate.aio.serve(app, bind=f"unix:{path}"))
        while not app.done:
            await asyncio.sleep(0.01)
        assert await asyncio.to_thread(ask, path) == b"hello\n"
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        async with fulgate.aio.Server(hello, bind=("tcp:127.0.0.1:0",)) as server:
            assert server.endpoints[0].startswith("tcp:")
        with pytest.raises(ConfigError):
            await fulgate.aio.serve(lambda environ, start: [])

    asyncio.run(main())
    assert app.done == ["lifespan.startup", "lifespan.shutdown"]


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
