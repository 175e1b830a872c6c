"""The clients over SCGI: the library, `fulgate get` and `fulgate ping`, and flup's scgi_app."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fulgate import Server
from fulgate.client import (
    AnswerCut,
    AsyncClient,
    Client,
    ConnectFailed,
    Connection,
    ProtocolError,
    Role,
    TimedOut,
)
from fulgate.client.params import BadRequest
from fulgate.client.proxy import FastCGIProxy
from fulgate.client.records import PlainDescriber
from fulgate.errors import ConfigError
from fulgate.flup.client.scgi_app import SCGIApp, encodeNetstring
from fulgate.protocols.scgi_client import SCGIClient
from tests import scgi
from tests.apps import app
from tests.command import here, refused_here
from tests.raw import PATIENCE
from tests.test_flup_client import Result, post

HEAD = b"Status: 200 OK\r\nContent-Type: text/plain\r\n\r\n"


@pytest.fixture
def endpoint(folder: Path) -> Iterator[str]:
    where = f"scgi+unix:{folder}/s"
    with Server(app, bind=(where,)):
        yield where


@contextlib.contextmanager
def answering(act: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that takes one connection, and does with it as told. Gives its endpoint."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(PATIENCE)

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.settimeout(PATIENCE)
                act(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"scgi+tcp:127.0.0.1:{listener.getsockname()[1]}"
        thread.join(PATIENCE)
        assert not thread.is_alive()


def says(*pieces: bytes, reset: bool = False) -> Callable[[socket.socket], None]:
    def act(connection: socket.socket) -> None:
        request = b""
        while not scgi.read(request).whole:
            request += connection.recv(65536)
        for piece in pieces:
            connection.sendall(piece)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return act


# without sockets


def test_what_is_sent_is_what_the_specification_says() -> None:
    protocol = SCGIClient()
    assert protocol.idle
    params = [("REQUEST_METHOD", "POST"), ("CONTENT_LENGTH", "3"), ("SCGI", "2"), ("X", "é")]
    request, out = protocol.begin(params)
    assert not protocol.idle
    sent = b"".join(bytes(piece) for piece in out + request.send(b"abc") + request.end())
    read = scgi.read(sent)
    assert (read.whole, read.length, read.body) == (True, 3, b"abc")
    assert read.pairs == [
        (b"CONTENT_LENGTH", b"3"), (b"SCGI", b"1"), (b"REQUEST_METHOD", b"POST"), (b"X", b"\xe9"),
    ]  # fmt: skip
    assert protocol.feed(HEAD) == [request]
    assert not request.ended
    assert protocol.eof() == [request]
    assert request.whole
    assert request.take() == HEAD
    with pytest.raises(RuntimeError):
        protocol.begin(params)
    for wrong in ([("", "x")], [("A\0B", "x")], [("A", "x\0y")]):
        with pytest.raises(ValueError, match="SCGI cannot send"):
            SCGIClient().begin(wrong)
    with pytest.raises(ValueError, match="no roles"):
        SCGIClient().begin([], Role.AUTHORIZER)
    with pytest.raises(ProtocolError):
        SCGIClient().feed(b"x")


@pytest.mark.parametrize(("data", "reset"), [(b"", False), (HEAD, True)])
def test_an_end_that_is_none(data: bytes, reset: bool) -> None:
    protocol = SCGIClient()
    request, _ = protocol.begin([])
    if data:
        protocol.feed(data)
    protocol.eof(reset)
    assert request.cut
    assert not request.whole


# the library


def test_the_client(endpoint: str) -> None:
    with Client(endpoint) as client:
        for _ in range(3):
            answer = client.get("/hello?a=b", headers={"X-Thing": "a thing"})
            assert (answer.status, answer.body) == (200, b"Hello, world!\n")
        body = bytes(range(256)) * 12_000
        answer = client.request("POST", "/digest", body)
        assert hashlib.sha256(body).hexdigest() in answer.text
        answer = client.request("POST", "/echo", body)  # it answers while the body goes
        assert answer.body == body
        # Piece by piece, where the length is told.
        pieces = [body[at : at + 100_000] for at in range(0, len(body), 100_000)]
        length = {"CONTENT_LENGTH": str(len(body))}
        assert client.request("POST", "/echo", pieces, params=length).body == body
        with client.stream("GET", "/sized?size=3000000") as streamed:
            assert sum(map(len, streamed)) == 3_000_000
        with pytest.raises(BadRequest, match="length"):
            client.request("POST", "/echo", pieces)
        with pytest.raises(BadRequest, match="roles"):
            client.request("GET", "/", role=Role.AUTHORIZER)


def test_the_asynchronous_client(endpoint: str) -> None:
    async def ask() -> None:
        async with AsyncClient(endpoint) as client:
            answers = await asyncio.gather(*(client.get("/hello") for _ in range(8)))
            assert {answer.body for answer in answers} == {b"Hello, world!\n"}
            body = bytes(3_000_000)
            assert (await client.request("POST", "/echo", body)).body == body
            with pytest.raises(BadRequest):
                await client.request("POST", "/echo", iter([b"x"]))

    asyncio.run(ask())


def test_a_connection_is_for_one_request(endpoint: str) -> None:
    params = {"REQUEST_METHOD": "GET", "REQUEST_URI": "/hello", "PATH_INFO": "/hello"}
    with Connection(endpoint) as connection:
        assert connection.call(params).body == b"Hello, world!\n"
        assert not connection.usable
        with pytest.raises(ValueError, match="GET_VALUES"):
            connection.get_values()


def test_answers_that_are_none(folder: Path) -> None:
    for act, error in (
        (says(), AnswerCut),
        (says(HEAD[:20]), ProtocolError),
        (says(HEAD, b"a part", reset=True), AnswerCut),
        (says(HEAD[:-2] + b"Content-Length: 10\r\n\r\n", b"short"), AnswerCut),
        (says(HEAD[:-2] + b"Content-Length: 2\r\n\r\n", b"long"), ProtocolError),
        (says(b"HTTP/1.1 200 OK\r\n\r\n"), ProtocolError),
    ):
        with answering(act) as endpoint, Client(endpoint) as client:
            with pytest.raises(error):
                client.get("/")

    async def ask() -> None:
        async with AsyncClient(endpoint) as client:
            await client.get("/")

    for act in (says(), says(HEAD, reset=True)):
        with answering(act) as endpoint, pytest.raises(AnswerCut):
            asyncio.run(ask())


def test_nobody_and_silence(folder: Path) -> None:
    with pytest.raises(ConnectFailed):
        Client(f"scgi+unix:{folder}/nobody").get("/")
    go = threading.Event()

    def silent(connection: socket.socket) -> None:
        go.wait(PATIENCE)

    with answering(silent) as endpoint:
        with pytest.raises(TimedOut):
            Client(endpoint).get("/", deadline=0.2)
        go.set()


def test_what_is_for_fastcgi_alone() -> None:
    with pytest.raises(ConfigError, match="speaks FastCGI, and not scgi"):
        FastCGIProxy("scgi+tcp:127.0.0.1:1")


# the commands


def test_get(endpoint: str, folder: Path) -> None:
    done = here("get", endpoint, "/digest", "-d", "some=thing", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert hashlib.sha256(b"some=thing").hexdigest() in done.stdout
    done = here("get", endpoint, "/hello", "-i", "-v", cwd=folder)
    assert done.stdout.startswith("Status: 200 OK\n")
    lines = done.stderr.splitlines()
    assert lines[0] == f"* connected to {endpoint}"
    assert lines[1].startswith("> headers: ")
    assert ">   REQUEST_URI=/hello" in lines
    assert "<   Content-Length: 14" in lines
    assert "role" in refused_here(3, "get", endpoint, "--role", "filter", cwd=folder)
    assert here("get", endpoint, "/empty?status=404%20N", "--fail", cwd=folder).returncode == 22
    # Either takes the other for one that closes without a word.
    refused_here(52, "get", endpoint.replace("scgi+", ""), cwd=folder)
    with Server(app, bind=(f"unix:{folder}/f",)):
        refused_here(52, "get", f"scgi+unix:{folder}/f", cwd=folder)


def test_what_passes_is_shown_however_it_comes() -> None:
    sent = scgi.request(body=b"abc")
    whole, pieces = PlainDescriber(), PlainDescriber()
    expected = whole.sent(sent)
    assert expected[-1] == "body: 3 bytes"
    got = [line for at in range(len(sent)) for line in pieces.sent(sent[at : at + 1])]
    assert got == expected[:-1] + ["body: 1 bytes"] * 3


def test_ping(endpoint: str, folder: Path) -> None:
    done = here("ping", endpoint, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{endpoint} answers in ")
    assert "status 200" in here("ping", endpoint, "/hello", cwd=folder).stdout
    missing = f"{endpoint} is wrong: status 404"
    assert refused_here(4, "ping", endpoint, "/empty?status=404%20N", cwd=folder) == missing
    assert "is dead" in refused_here(1, "ping", endpoint + "x", cwd=folder)
    with Server(app, bind=(f"unix:{folder}/f",)):
        assert "is wrong" in refused_here(4, "ping", f"scgi+unix:{folder}/f", cwd=folder)


# flup


def test_scgi_app(endpoint: str, folder: Path) -> None:
    path = f"{folder}/s"
    result = Result(SCGIApp(connect=path), PATH_INFO="/hello", REQUEST_URI="/hello")
    assert (result.status, result.body) == ("200 OK", b"Hello, world!\n")
    body = b"x" * 3_000_000
    for filtered in (True, False):
        application = SCGIApp(connect=path, filterEnviron=filtered)
        assert Result(application, **post(body, PATH_INFO="/echo")).body == body
    given = post(b"abc", PATH_INFO="/echo") | {"CONTENT_LENGTH": "", "wsgi.input_terminated": True}
    assert Result(SCGIApp(connect=path), **given).body == b""
    assert encodeNetstring(b"hello") == b"5:hello,"


def test_scgi_app_over_tcp_and_what_it_is_not_told(folder: Path) -> None:
    def taken(connection: socket.socket) -> None:
        says(HEAD, b"there")(connection)

    for form in ("tuple", "host"):
        with answering(taken) as endpoint:
            port = int(endpoint.rpartition(":")[2])
            place: Any = {"connect": ("127.0.0.1", port)}
            if form == "host":
                place = {"host": "127.0.0.1", "port": port}
            assert Result(SCGIApp(**place), PATH_INFO="/").body == b"there"
    with pytest.raises(ValueError, match="where to connect"):
        SCGIApp()
    with pytest.raises(ValueError, match="host wants a port"):
        SCGIApp(host="localhost")
    with answering(says(HEAD, b"a part", reset=True)) as endpoint:
        port = int(endpoint.rpartition(":")[2])
        with pytest.raises(AnswerCut):
            Result(SCGIApp(host="127.0.0.1", port=port), **post(b"", PATH_INFO="/"))
