"""What an application is given, held to asgiref's types, in all that can become of a request."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asgiref import typing as asgi
from asgiref.compatibility import guarantee_single_callable, is_double_callable
from asgiref.testing import ApplicationCommunicator
from wsproto.events import BytesMessage, CloseConnection, TextMessage

from fulgate import Config
from fulgate.interface import interface_of
from tests.asgi import START, Make, Message, Receive, Send, body, hello, raw, serve  # noqa: F401
from tests.asgi_types import RECEIVED, SCOPES, Checked, problems
from tests.driver_suite.kit import END, until
from tests.model import ABORT_REQUEST, STDIN
from tests.raw import head, post, record, stream
from tests.servers import Fulgate, Nginx, Running
from tests.servers.nginx import location
from tests.servers.web import request
from tests.test_websocket import Client

# asgiref's own have no types
is_old: Any = is_double_callable
adapted: Any = guarantee_single_callable
Communicator: Any = ApplicationCommunicator

OLD_SERVER = {"type": "http", "asgi": {"version": "3.0"}, "path": "/", "more": 1}


def test_the_checker_sees_what_is_wrong() -> None:
    found = list(problems(OLD_SERVER, asgi.HTTPScope, "scope"))
    assert "scope: nobody knows 'more'" in found
    assert "scope.asgi: there is no 'spec_version'" in found
    assert "scope: there is no 'headers'" in found
    assert not any("state" in problem for problem in found)
    event: Message = {"type": "http.request", "body": b"", "more_body": False}
    assert not list(problems(event, asgi.HTTPRequestEvent))
    for wrong in ({"more_body": 1}, {"body": bytearray()}, {"type": "http.disconnect"}):
        assert list(problems({**event, **wrong}, asgi.HTTPRequestEvent)), wrong
    message: Message = {"type": "websocket.receive", "text": "a"}
    assert not list(problems(message, asgi.WebSocketReceiveEvent))
    assert list(problems({**message, "bytes": None}, asgi.WebSocketReceiveEvent))
    assert list(problems({"type": "websocket.receive"}, asgi.WebSocketReceiveEvent))
    wants = tuple[str, int | None] | None
    assert not list(problems(None, wants)) + list(problems(("a", None), wants))
    assert list(problems(["a", 1], wants))
    assert list(problems(("a", True), wants))


async def answers(scope: Message, receive: Receive, send: Send, folder: Path) -> None:
    """An HTTP request, as its path has it."""
    path = scope["path"]
    if path == "/raises":
        raise LookupError("it broke")
    if path == "/file":
        await send(START)
        await send({"type": "http.response.pathsend", "path": str(folder / "file")})
    elif path == "/named":
        named = str(folder / "file").encode()
        await send({**START, "headers": [(b"x-sendfile", named)]})
        await send(body())
    else:
        if path == "/stream":
            await send(START)
            await send(body(b"first", True))
        with contextlib.suppress(OSError):
            while (message := await receive())["type"] == "http.request":
                if not message["more_body"] and path != "/stream":
                    await send(START)
                    await send(body(b"hello\n"))
    await receive()


async def sockets(scope: Message, receive: Receive, send: Send) -> None:
    await receive()
    if scope["path"] == "/deny":
        kind = "websocket.http.response"
        await send({"type": f"{kind}.start", "status": 401, "headers": []})
        await send({"type": f"{kind}.body", "body": b"no"})
    elif scope["path"] == "/reject":
        await send({"type": "websocket.close"})
    else:
        await send({"type": "websocket.accept"})
        if scope["path"] == "/ended":
            await send({"type": "websocket.close", "code": 4000, "reason": "enough"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


def application(folder: Path, state: bool) -> Checked:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await answers(scope, receive, send, folder)
        elif scope["type"] == "websocket":
            await sockets(scope, receive, send)
        elif not state:
            raise LookupError("no lifespan")
        else:
            scope["state"]["key"] = object()
            for _ in range(2):
                kind = (await receive())["type"]
                await send({"type": f"{kind}.complete"})

    return Checked(app)


@pytest.mark.parametrize("state", [True, False], ids=["lifespan", "no-lifespan"])
@pytest.mark.parametrize("how", ["pass", "serve", "accel"])
def test_scopes_and_events_of_http(serve: Make, folder: Path, how: str, state: bool) -> None:  # noqa: F811
    (folder / "file").write_bytes(b"data")
    app = application(folder, state)
    roots = (f"{folder}=/in/",) if how != "pass" else ()
    server = serve(app, x_sendfile=how, x_sendfile_root=roots)
    with raw(server) as client:
        assert client.request().body == b"hello\n"
        assert client.request(body=bytes(200_000)).body == b"hello\n"
        for path in ("/file", "/named"):
            assert client.request(path, REQUEST_METHOD="HEAD").body == b""
            assert client.request(path).status == "200 OK"
        assert client.request("/raises").status == "500 Internal Server Error"
        odd = {"REMOTE_ADDR": "unix:", "SERVER_ADDR": "unix:/run/web.sock", "HTTPS": "on"}
        more = {"HTTP_X_Y": "\xe9", "CONTENT_TYPE": "a/b", "SERVER_PROTOCOL": "HTTP/3.0"}
        assert client.request("/caf\xc3\xa9\xff", "\xe9=1", **odd, **more).ended
        assert app.scopes[-1]["client"] is None
        client.expect()
        client.send(head("/stream"), END)
        client.until(1, b"first")
        client.send(record(ABORT_REQUEST, 1))
        client.answer()
    with raw(server) as client:  # closed while the body is awaited, and in the middle of it
        client.expect()
        client.send(head("/upload", **post(1_000_000)), stream(STDIN, 1, bytes(70_000), end=False))
        until(lambda: app.scopes[-1]["path"] == "/upload", "it did not begin")
    until(lambda: app.events[-1]["type"] == "http.disconnect", "it was not told")
    assert server.stop()
    assert not app.wrong, app.wrong
    lifespan = {"lifespan", *(("lifespan.startup", "lifespan.shutdown") if state else ())}
    assert app.kinds() == {"http", "http.request", "http.disconnect", *lifespan}
    assert all(("key" in scope.get("state", {})) == state for scope in app.scopes[1:])


def test_scopes_and_events_of_websockets(serve: Make, folder: Path) -> None:  # noqa: F811
    app = application(folder, True)
    server = serve(app)

    def codes() -> list[tuple[int, Any]]:
        kept = [event for event in app.events if event["type"] == "websocket.disconnect"]
        return [(event["code"], event["reason"]) for event in kept]

    def has_ended(*wanted: tuple[int, str | None]) -> None:
        until(lambda: codes() == list(wanted), f"{codes()}")
        app.events.clear()
        clients.pop().close()

    clients: list[Client] = []

    def connected(path: str = "/", **params: str) -> Client:
        clients.append(Client(server, path, **params))
        return clients[-1]

    client = connected(HTTP_SEC_WEBSOCKET_PROTOCOL="a, b", HTTPS="on").open()
    client.send(TextMessage(data="caf\u00e9"), TextMessage(data=""), BytesMessage(data=b"\0"))
    client.send(BytesMessage(data=b"a", message_finished=False), BytesMessage(data=b"b"))
    client.send(CloseConnection(code=4321, reason="bye"))
    until(lambda: codes() == [(4321, "bye")], "it did not end")
    messages = [event for event in app.events if event["type"] == "websocket.receive"]
    assert [message.get("text", message.get("bytes")) for message in messages] == [
        "caf\u00e9",
        "",
        b"\0",
        b"ab",
    ]
    assert app.scopes[-1]["subprotocols"] == ["a", "b"]
    assert app.scopes[-1]["scheme"] == "wss"
    has_ended((4321, "bye"))
    client = connected().open()
    client.write(b"\x88\x80\0\0\0\0")  # a close frame without a code
    has_ended((1005, None))
    client = connected().open()
    client.close()
    has_ended((1006, None))
    for path in ("/deny", "/reject"):
        client = connected(path)
        client.raw.answer()
        assert client.answer.status.startswith("401" if path == "/deny" else "403")
        has_ended((1006, None))
    client = connected("/ended").open()
    assert isinstance(client.receive(), CloseConnection)
    client.send(CloseConnection(code=4000))
    has_ended((4000, "enough"))
    assert server.stop()
    assert not app.wrong, app.wrong


def test_no_event_was_left_out(serve: Make) -> None:  # noqa: F811
    """Were asgiref to know another event, the tests above would have to see it."""
    assert set(SCOPES) == {"http", "websocket", "lifespan"}
    assert set(RECEIVED) == {
        "http.request",
        "http.disconnect",
        "websocket.connect",
        "websocket.receive",
        "websocket.disconnect",
        "lifespan.startup",
        "lifespan.shutdown",
    }


# The same application, given the same by asgiref's own driver, sends the same


def test_what_was_given_to_an_application_drives_it_elsewhere(serve: Make) -> None:  # noqa: F811
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        sha256 = hashlib.sha256()
        more = True
        while more:
            message = await receive()
            sha256.update(message["body"])
            more = message["more_body"]
        facts = [scope["method"], scope["path"], scope["query_string"].decode(), sha256.hexdigest()]
        await send({**START, "headers": [(b"content-type", b"application/json")]})
        await send(body(json.dumps(facts).encode(), True))
        await send(body(b"\n"))

    checked = Checked(app)
    with raw(serve(checked, lifespan="off")) as client:
        answer = client.request("/a/b", "x=1", body=bytes(range(256)) * 1000)

    async def again() -> bytes:
        communicator = Communicator(app, checked.scopes[0])
        for event in checked.events:
            await communicator.send_input(event)
        sent = [await communicator.receive_output(30) for _ in checked.sent]
        await communicator.wait(30)
        assert sent == checked.sent
        return b"".join(message.get("body", b"") for message in sent)

    assert asyncio.run(again()) == answer.body
    assert not checked.wrong, checked.wrong


class Old:
    """An application of ASGI 2.0."""

    def __init__(self, scope: Message) -> None:
        self.scope = scope

    async def __call__(self, receive: Receive, send: Send) -> None:
        await hello(self.scope, receive, send)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_an_application_of_asgi_2_by_its_adapter(serve: Make, loop: str) -> None:  # noqa: F811
    assert is_old(Old)
    app = adapted(Old)
    assert interface_of(app) == "asgi"
    with raw(serve(app, lifespan="auto", loop=loop)) as client:
        for _ in range(2):
            assert client.request().body == b"hello\n"
    assert adapted(hello) is hello
    assert Config(interface="asgi").interface == "asgi"


# asgiref's adapter for WSGI, as an application of ours


@pytest.mark.requires_server("nginx")
@pytest.mark.parametrize("options", [(), ("--loop", "asyncio", "--workers", "2")])
def test_asgiref_runs_wsgi_behind_nginx(running: Running, options: tuple[str, ...]) -> None:
    fulgate = running(Fulgate, "tests.frameworks.asgiref_site:app", *options)
    nginx = running(Nginx, fulgate.backend, location("/", params="port"), keepalive=True)
    ask: Callable[..., Any] = lambda *a, **k: request(nginx.port, *a, **k)  # noqa: E731
    assert ask("/hello").body == b"Hello, world!\n"
    assert ask("/hello", "HEAD").body == b""
    found = json.loads(ask("/environ/caf%C3%A9?x=%20y", headers={"X-Thing": "some"}).body)
    wanted = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/environ/caf\xc3\xa9",
        "QUERY_STRING": "x=%20y",
        "REMOTE_ADDR": "127.0.0.1",
        "SERVER_PORT": str(nginx.port),
        "HTTP_X_THING": "some",
        "HTTP_HOST": f"127.0.0.1:{nginx.port}",
        "wsgi.url_scheme": "http",
    }
    assert {name: found.get(name) for name in wanted} == wanted
    data = bytes(range(256)) * 8000
    facts = json.loads(ask("/digest", "POST", data).body)
    assert facts["sha256"] == hashlib.sha256(data).hexdigest()
    assert facts["content_length"] == str(len(data))
    assert ask("/echo", "POST", data).body == data
    assert ask("/fails").status == 500
    assert ask("/hello").status == 200
