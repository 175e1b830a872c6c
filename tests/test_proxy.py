"""What FastCGIProxy makes of requests and answers, under a real uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
from typing import Any

import pytest

import fulgate
from fulgate.client.proxy import FastCGIProxy, Message, Receive, Scope, Send
from fulgate.errors import ConfigError
from fulgate.protocols.fastcgi_records import (
    ABORT_REQUEST,
    END_REQUEST,
    OVERLOADED,
    STDERR,
    STDOUT,
    record,
)
from tests.responder import END, Peer, serve_params
from tests.web import Web, say, web

__all__ = ["web"]

# the request


def test_the_params_are_exact(web: Web) -> None:
    web(serve_params)
    answer = web.ask(
        "POST",
        "/a%20b/%C3%BC%FF?q=1&r=%2F",
        b"body",
        {"Host": "example.org:81", "Content-Type": "text/plain", "X-Thing": "\xfc"},
    )
    assert answer.status == 200
    found = json.loads(answer.read())
    assert 0 < int(found.pop("REMOTE_PORT")) < 65536
    assert found == {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": f"fulgate/{fulgate.__version__}",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": str(web.port),
        "REQUEST_METHOD": "POST",
        "REQUEST_SCHEME": "http",
        "REQUEST_URI": "/a%20b/%C3%BC%FF?q=1&r=%2F",
        "QUERY_STRING": "q=1&r=%2F",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a b/\xc3\xbc\xff",
        "REMOTE_ADDR": "127.0.0.1",
        "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "4",
        "HTTP_HOST": "example.org:81",
        "HTTP_X_THING": "\xfc",
        "HTTP_ACCEPT_ENCODING": "identity",
        "body": "body",
        "connection": 1,
    }


def test_headers_that_could_deceive_do_not_pass(web: Web) -> None:
    web(serve_params)
    sock = web.raw(
        b"GET / HTTP/1.1\r\nHost: h\r\nProxy: evil\r\nX_Real_IP: evil\r\nX-Real-IP: good\r\n"
        b"Content_Length: 9\r\nAccept: a\r\nAccept: b\r\nTE: trailers\r\n"
        b"Connection: close, X-Hop\r\nX-Hop: evil\r\n\r\n"
    )
    answer = http.client.HTTPResponse(sock)
    answer.begin()
    found = json.loads(answer.read())
    assert {name: value for name, value in found.items() if name.startswith(("HTTP_", "CONT"))} == {
        "HTTP_HOST": "h",
        "HTTP_X_REAL_IP": "good",
        "HTTP_ACCEPT": "a, b",
    }


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: h\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n", 400),
        (b"GET /%00 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET nonsense HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET http://h/abs?q HTTP/1.1\r\nHost: h\r\n\r\n", 200),
        (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 200),
        (b"GET /old HTTP/1.0\r\n\r\n", 200),
    ],
)
def test_targets_and_refusals(web: Web, head: bytes, status: int) -> None:
    web(serve_params)
    answer = http.client.HTTPResponse(web.raw(head))
    answer.begin()
    assert answer.status == status
    if status == 200:
        found = json.loads(answer.read())
        paths = {"/abs?q": "/abs", "*": "*", "/old": "/old"}
        assert paths[found["REQUEST_URI"]] == found["PATH_INFO"]
        assert found["SERVER_PROTOCOL"] == ("HTTP/1.0" if b"/old" in head else "HTTP/1.1")


@pytest.mark.parametrize("style", ["path with root_path", "path without root_path"])
def test_a_mounted_proxy(web: Web, style: str) -> None:
    def mount(app: Any) -> Any:
        async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                scope = {**scope, "root_path": "/m\u00fc"}
                if style == "path without root_path":  # as old routers have it
                    scope["path"] = scope["path"].removeprefix("/m\u00fc")
            await app(scope, receive, send)

        return mounted

    web(serve_params, mount)
    found = json.loads(web.ask("GET", "/m%C3%BC/x%2Fy").read())
    assert found["SCRIPT_NAME"] == "/m\xc3\xbc"
    assert found["PATH_INFO"] == "/x/y"
    assert found["REQUEST_URI"] == "/m%C3%BC/x%2Fy"


def test_params_are_added_and_replace(web: Web) -> None:
    web(serve_params, params={"APP_ENV": "test", "SERVER_NAME": "other"})
    found = json.loads(web.ask("GET", "/").read())
    assert (found["APP_ENV"], found["SERVER_NAME"]) == ("test", "other")


# bodies


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 1_000_000])
def test_bodies_arrive_with_and_without_a_length(web: Web, size: int) -> None:
    web(serve_params)
    body = "".join(chr(97 + n % 26) for n in range(size))
    found = json.loads(web.ask("POST", "/", body).read())
    assert found["body"] == body
    assert found["CONTENT_LENGTH"] == str(size)
    pieces = [body[n : n + 9999].encode() for n in range(0, size, 9999)]
    found = json.loads(web.ask("PUT", "/", iter(pieces)).read())
    assert found["body"] == body
    assert "CONTENT_LENGTH" not in found


def test_both_directions_stream(web: Web) -> None:
    def behave(peer: Peer) -> None:
        exchange = peer.request(whole=False)
        assert exchange is not None
        exchange.start("200 OK", [("Content-Type", "text/plain")])
        peer.send(exchange.send(b""))
        while not exchange.stdin_ended:
            if piece := exchange.take():
                peer.send(exchange.send(piece.upper()))
            assert peer.receive()
        peer.send(exchange.finish(exchange.take().upper()))
        assert not peer.receive()

    web(behave, keep_alive=0)
    sock = web.raw(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    answer = http.client.HTTPResponse(sock)
    answer.begin()  # the head is there before the body
    for word in (b"one", b"two"):
        sock.sendall(b"3\r\n" + word + b"\r\n")
        assert answer.read1(100) == word.upper()
    sock.sendall(b"0\r\n\r\n")
    assert answer.read() == b""


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_answer_before_the_body_was_read(web: Web, method: str) -> None:
    def behave(peer: Peer) -> None:
        exchange = peer.request(whole=False)
        assert exchange is not None
        exchange.keep = False
        peer.answer(exchange, b"no", "413 Content Too Large")

    web(behave)
    with contextlib.closing(web.client()) as client:
        client.putrequest(method, "/")
        client.putheader("Content-Length", "10000000")
        client.endheaders(bytes(200_000))
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (413, b"no")


# the answer


def test_the_head_is_cgi(web: Web) -> None:
    head = b"status: 418 Short\nX-A: 1\nX-A: 2\nConnection: X-Hop\nX-Hop: 1\nKeep-Alive: 5\n\nbody"
    web(say(record(STDOUT, 1, head), record(STDOUT, 1), END))
    answer = web.ask("GET", "/")
    assert answer.status == 418
    assert answer.headers.get_all("X-A") == ["1", "2"]
    assert "X-Hop" not in answer.headers
    assert "Keep-Alive" not in answer.headers
    assert "Status" not in answer.headers
    assert answer.read() == b"body"


def test_a_location_alone_redirects(web: Web) -> None:
    web(say(record(STDOUT, 1, b"Location: /there\r\n\r\n"), END))
    answer = web.ask("GET", "/")
    assert (answer.status, answer.headers["Location"]) == (302, "/there")


def test_interim_heads_are_skipped(web: Web) -> None:
    heads = b"Status: 103 Early Hints\r\nLink: </x>\r\n\r\nStatus: 200 OK\r\nX: y\r\n\r\nbody"
    web(say(*(record(STDOUT, 1, heads[n : n + 1]) for n in range(len(heads))), END))
    answer = web.ask("GET", "/")
    assert (answer.status, answer.headers["X"], answer.read()) == (200, "y", b"body")
    assert "Link" not in answer.headers


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", "200 OK"), ("GET", "204 No Content"), ("GET", "304 Old")]
)
def test_answers_without_a_body(web: Web, method: str, status: str) -> None:
    body = b"must not pass" * 10_000

    def behave(peer: Peer) -> None:
        while exchange := peer.request():
            peer.answer(exchange, body, status, Content_Type="text/plain")

    web(behave)
    client = web.client()
    for _ in range(3):  # on one connection: a stray body would be taken for the next answer
        client.request(method, "/")
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (int(status[:3]), b"")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ([b""], 502),
        ([b"HTTP/1.1 200 OK\r\n\r\n"], 502),
        ([record(STDOUT, 1, b"X: y"), END], 502),
        ([record(STDOUT, 1, b"nonsense\r\n\r\n"), END], 502),
        ([record(STDOUT, 1, b"Status: 101 Switching\r\n\r\n"), END], 502),
        ([record(STDOUT, 1, b"X: y\r\n" * 9000)] * 2, 502),
        ([record(STDOUT, 2, b"X: y\r\n\r\n")], 502),
        ([record(END_REQUEST, 1, b"\0\0\0\0\1\0\0\0")], 502),
        ([record(END_REQUEST, 1, bytes((0, 0, 0, 0, OVERLOADED, 0, 0, 0)))], 503),
    ],
)
def test_what_is_no_answer_is_an_error(
    web: Web, data: list[bytes], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    web(say(*data))
    answer = web.ask("GET", "/x%0Ay")
    assert answer.status == status
    assert answer.read() in (b"Bad Gateway\n", b"Service Unavailable\n")
    (logged,) = [r.getMessage() for r in caplog.records if r.name == "fulgate.proxy"]
    assert logged.startswith("GET /x\\ny: unix:")


def test_nobody_listens(web: Web) -> None:
    web.proxy(f"unix:{web.folder}/none")
    assert web.ask("POST", "/", b"x").status == 502
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    web.proxy(f"tcp:127.0.0.1:{port}")
    assert web.ask("GET", "/").status == 502


def test_silence_is_504(web: Web) -> None:
    def behave(peer: Peer) -> None:
        assert peer.request()
        while peer.receive():
            pass
        one.said.put(peer.got)

    one = web(behave, read_timeout=0.2)
    answer = web.ask("GET", "/")
    assert (answer.status, answer.read()) == (504, b"Gateway Timeout\n")
    assert record(ABORT_REQUEST, 1) in one.hear()  # type: ignore[operator]


BROKEN = {
    "chunked, cut": [b"X: y\r\n\r\nhalf"],
    "length, cut": [b"Content-Length: 8\r\n\r\nhalf"],
    "length, short": [b"Content-Length: 8\r\n\r\nhalf", b"", END],
    "length, long": [b"Content-Length: 8\r\n\r\n", b"half too much"],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_answer_reaches_the_client_as_broken(
    web: Web, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = [part if part == END else record(STDOUT, 1, part) for part in BROKEN[name]]
    web(say(*data))
    answer = web.ask("GET", "/")
    assert answer.status == 200
    with pytest.raises(http.client.IncompleteRead) as failure:
        answer.read()
    assert b"half".startswith(failure.value.partial)
    assert [r for r in caplog.records if r.name == "fulgate.proxy"]


def test_stderr_is_logged(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    web(say(record(STDERR, 1, b"one\n\xfftwo\x1b[0m\r\n"), record(STDOUT, 1, b"X: y\n\n"), END))
    assert web.ask("GET", "/").status == 200
    logged = [r.getMessage() for r in caplog.records if r.name == "fulgate.proxy"]
    assert logged == ["GET /: stderr: one", "GET /: stderr: \\xfftwo\\x1b[0m"]


# without HTTP


def run_asgi(app: FastCGIProxy, scope: Scope, messages: list[Message]) -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent


def test_a_websocket_to_nobody_is_closed() -> None:
    app = FastCGIProxy("unix:/none")
    scope = {"type": "websocket", "path": "/", "raw_path": b"/", "headers": [], "scheme": "ws"}
    sent = run_asgi(app, scope, [{"type": "websocket.connect"}])
    assert sent == [{"type": "websocket.close", "code": 1011, "reason": ""}]


def test_the_lifespan_is_answered() -> None:
    app = FastCGIProxy("unix:/none")
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = run_asgi(app, {"type": "lifespan"}, list(messages))
    assert [m["type"] for m in sent] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]


def test_settings_that_cannot_be_used() -> None:
    for endpoint in ("fd:0", "systemd", "tcp:127.0.0.1:0", "/no/scheme"):
        with pytest.raises(ConfigError):
            FastCGIProxy(endpoint)
    with pytest.raises(ConfigError, match="no folder"):
        FastCGIProxy("unix:/none", root="/nowhere/at/all")
    with pytest.raises(ConfigError, match="latin-1"):
        FastCGIProxy("unix:/none", params={"A": "\u20ac"})
