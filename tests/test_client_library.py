"""`fulgate.client`: both clients, against real FastCGI servers of four kinds, and broken ones."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

import fulgate.client
from fulgate.client import (
    AnswerCut,
    AsyncClient,
    Client,
    ConnectFailed,
    ProtocolError,
    Refused,
    Role,
    TimedOut,
)
from fulgate.client.params import BadRequest
from fulgate.errors import ConfigError, FulgateError
from fulgate.exchange import Limits
from fulgate.protocols.fastcgi import FastCGI
from fulgate.protocols.fastcgi_records import END_REQUEST, STDERR, STDOUT, record
from tests.echo import PEERS
from tests.echo import Peer as Server
from tests.echo import peer as run_peer
from tests.responder import Peer, responder, serve_params
from tests.servers import Running

END = record(END_REQUEST, 1, bytes(8))

# Connections that are served at once: a kept one has a process of its own, or a thread.
AT_ONCE = {"fulgate": 8, "php": 2, "libfcgi": 1, "go": 8}


@pytest.fixture(params=PEERS)
def server(request: pytest.FixtureRequest, folder: Path, running: Running) -> Iterator[Server]:
    with run_peer(request.param, folder, running) as one:
        yield one


# real servers


def test_a_server_answers(server: Server) -> None:
    script = server.script_filename
    with Client(server.endpoint) as client:
        for number in range(3):
            answer = client.get("/x?a=b", headers={"X-Given": str(number)}, script_filename=script)
            assert (answer.status, answer.body, answer.app_status) == (200, b"", 0)
            assert (answer.header("x-method"), answer.header("X-Given")) == ("GET", str(number))
        body = os.urandom(300_000)
        answer = client.request("POST", "/", body, script_filename=script)
        assert answer.header("X-Method") == "POST"
        assert hashlib.sha256(answer.body).digest() == hashlib.sha256(body).digest()
        assert client.get("/missing", script_filename=script).status == 404
        if server.name != "go":  # which logs elsewhere
            assert b"a complaint" in client.get("/stderr", script_filename=script).stderr


def test_a_server_answers_asyncio(server: Server) -> None:
    script = server.script_filename

    async def ask() -> None:
        async with AsyncClient(server.endpoint) as client:
            numbers = [str(number) for number in range(AT_ONCE[server.name])]
            answers = await asyncio.gather(
                *(client.get("/", headers={"X-Given": n}, script_filename=script) for n in numbers)
            )
            assert [answer.header("X-Given") for answer in answers] == numbers
            body = os.urandom(300_000)
            answer = await client.request("POST", "/", body, script_filename=script)
            assert answer.body == body
            assert (await client.get("/missing", script_filename=script)).status == 404

    asyncio.run(ask())


def test_both_ways_are_streamed(folder: Path, running: Running) -> None:
    """The next piece is sent only once the one before has come back."""
    with run_peer("fulgate", folder, running) as server:
        back = threading.Semaphore(1)
        sent: list[bytes] = []

        def pieces() -> Iterator[bytes]:
            for number in range(5):
                while not back.acquire(blocking=False):
                    yield b""
                sent.append(b"piece %d" % number)
                yield sent[-1]

        came: list[bytes] = []
        with Client(server.endpoint) as client:
            with client.stream("POST", "/?7", pieces()) as answer:
                assert (answer.status, answer.header("X-Method")) == (200, "POST")
                for piece in answer:
                    came.append(piece)
                    back.release()
            assert came == sent
            assert client.get("/").status == 200

        async def asked() -> list[bytes]:
            ready = asyncio.Semaphore(1)

            async def more() -> AsyncIterator[bytes]:
                for piece in sent:
                    await ready.acquire()
                    yield piece

            got: list[bytes] = []
            async with AsyncClient(server.endpoint) as client:
                async with client.stream("POST", "/?7", more()) as answer:
                    async for piece in answer:
                        got.append(piece)
                        ready.release()
            return got

        assert asyncio.run(asked()) == sent


# the pool: `serve_params` tells the number of the connection


def test_connections_are_kept_and_used_again(folder: Path) -> None:
    with responder(folder / "s", serve_params) as one:
        with Client(one.endpoint) as client:
            for _ in range(3):
                assert b'"connection": 1' in client.get("/").body
            # Two at once take two.
            with client.stream("GET", "/") as first:
                assert b'"connection": 2' in client.get("/").body
                assert b'"connection": 1' in first.read()
        with Client(one.endpoint, max_idle=0) as client:
            assert b'"connection": 3' in client.get("/").body
            assert b'"connection": 4' in client.get("/").body

        async def ask() -> None:
            async with AsyncClient(one.endpoint) as client:
                for _ in range(3):
                    assert b'"connection": 5' in (await client.get("/")).body

        asyncio.run(ask())


def test_many_threads_share_a_client(folder: Path) -> None:
    with responder(folder / "s", serve_params) as one:
        with Client(one.endpoint, max_idle=4) as client:
            wrong: list[str] = []

            def ask(name: str) -> None:
                for number in range(10):
                    body = client.get("/", headers={"X-Who": f"{name} {number}"}).text
                    if f'"HTTP_X_WHO": "{name} {number}"' not in body:
                        wrong.append(body)

            threads = [threading.Thread(target=ask, args=(str(n),)) for n in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert not wrong


def test_a_connection_that_was_closed_meanwhile_is_made_anew(folder: Path) -> None:
    def one_each(peer: Peer) -> None:
        exchange = peer.request()
        if exchange is not None:
            peer.answer(exchange, str(peer.number).encode(), X="y")

    with responder(folder / "s", one_each) as one:
        with Client(one.endpoint) as client:
            assert [client.get("/").body for _ in range(3)] == [b"1", b"2", b"3"]

        async def ask() -> list[bytes]:
            async with AsyncClient(one.endpoint) as client:
                return [(await client.get("/")).body for _ in range(3)]

        assert asyncio.run(ask()) == [b"4", b"5", b"6"]


def closes_at_the_second(peer: Peer) -> None:
    """Take the second request on a connection, and close it: a race that a client cannot see."""
    exchange = peer.request()
    if exchange is not None:
        peer.answer(exchange, str(peer.number).encode(), X="y")
        peer.receive()


def test_only_what_is_idempotent_is_sent_again(folder: Path) -> None:
    with responder(folder / "s", closes_at_the_second) as one:
        with Client(one.endpoint) as client:
            assert [client.get("/").body for _ in range(3)] == [b"1", b"2", b"3"]
            with pytest.raises(AnswerCut):
                client.request("POST", "/", b"pay")
            assert client.get("/").body == b"4"
            with pytest.raises(AnswerCut):
                client.request("PUT", "/", iter([b"once"]))

        async def ask() -> None:
            async with AsyncClient(one.endpoint) as client:
                assert [(await client.get("/")).body for _ in range(2)] == [b"5", b"6"]
                with pytest.raises(AnswerCut):
                    await client.request("POST", "/", b"pay")

        asyncio.run(ask())


def test_an_answer_that_is_left_early_is_given_up(folder: Path) -> None:
    gone = threading.Event()

    def endless(peer: Peer) -> None:
        assert peer.request() is not None
        with contextlib.suppress(OSError):
            peer.send(record(STDOUT, 1, b"X: y\r\n\r\n"))
            while True:
                peer.send(record(STDOUT, 1, bytes(65535)))
        gone.set()

    with responder(folder / "s", endless) as one:
        with Client(one.endpoint) as client, client.stream("GET", "/") as answer:
            assert len(next(iter(answer))) > 0
        assert gone.wait(20)
        gone.clear()

        async def ask() -> None:
            async with AsyncClient(one.endpoint) as client:
                async with client.stream("GET", "/") as answer:
                    async for piece in answer:
                        assert piece
                        break

        asyncio.run(ask())
        assert gone.wait(20)


def test_a_body_that_was_not_read_costs_the_connection_only(folder: Path) -> None:
    def hasty(peer: Peer) -> None:
        while exchange := peer.request(whole=False):
            peer.answer(exchange, str(peer.number).encode(), "413 Content Too Large")
            if exchange.params["REQUEST_METHOD"] == "POST":
                return

    with responder(folder / "s", hasty) as one:
        with Client(one.endpoint) as client:
            answer = client.request("POST", "/", bytes(5_000_000))
            assert (answer.status, answer.body) == (413, b"1")
            assert client.get("/").body == b"2"

        async def ask() -> None:
            async with AsyncClient(one.endpoint) as client:
                answer = await client.request("POST", "/", bytes(5_000_000))
                assert (answer.status, answer.body) == (413, b"3")

        asyncio.run(ask())


# errors


def both(endpoint: str, ask: Callable[[Client], object], **settings: float) -> list[Exception]:
    """Give what a GET raises with either client."""
    raised: list[Exception] = []
    with Client(endpoint, **settings) as client:  # type: ignore[arg-type]
        try:
            ask(client)
        except FulgateError as error:
            raised.append(error)

    async def asked() -> None:
        async with AsyncClient(endpoint, **settings) as client:  # type: ignore[arg-type]
            try:
                await client.get("/", deadline=settings.get("deadline"))
            except FulgateError as error:
                raised.append(error)

    asyncio.run(asked())
    return raised


@pytest.mark.parametrize(
    ("sent", "kind", "message"),
    [
        (b"", AnswerCut, "closed before"),
        (record(STDOUT, 1, b"X: y\r\n\r\nhalf"), AnswerCut, "closed before"),
        (record(STDOUT, 1, b"Content-Length: 9\r\n\r\nhalf") + END, AnswerCut, "4 bytes"),
        (record(STDOUT, 1, b"Content-Length: 1\r\n\r\nhalf") + END, ProtocolError, "4 bytes"),
        (record(END_REQUEST, 1, bytes((0, 0, 0, 0, 2, 0, 0, 0))), Refused, "OVERLOADED"),
        (record(STDOUT, 1, b"X: y") + END, ProtocolError, "inside its head"),
        (record(STDOUT, 1, b"HTTP/1.1 200 OK\r\n\r\n") + END, ProtocolError, "HTTP, not CGI"),
        (b"garbage!", ProtocolError, "not FastCGI"),
    ],
)
def test_what_is_no_answer_is_an_error(
    folder: Path, sent: bytes, kind: type[Exception], message: str
) -> None:
    def behave(peer: Peer) -> None:
        peer.request()
        peer.send(sent)

    with responder(folder / "s", behave) as one:
        errors = both(one.endpoint, lambda client: client.get("/"))
    assert [type(error) for error in errors] == [kind, kind]
    assert all(message in str(error) for error in errors)


def test_silence_and_a_deadline_are_timeouts(folder: Path) -> None:
    def drip(peer: Peer) -> None:
        assert peer.request() is not None
        with contextlib.suppress(OSError):
            peer.send(record(STDOUT, 1, b"X: y\r\n\r\n"))
            while not done.wait(0.02):
                peer.send(record(STDOUT, 1, b"drop"))

    def mute(peer: Peer) -> None:
        while peer.receive():
            pass

    done = threading.Event()
    with responder(folder / "s", mute) as one:
        errors = both(one.endpoint, lambda client: client.get("/"), timeout=0.1)
    assert [type(error) for error in errors] == [TimedOut, TimedOut]
    with responder(folder / "t", drip) as one:
        with Client(one.endpoint) as client, pytest.raises(TimedOut, match="within the deadline"):
            client.get("/", deadline=0.2)

        async def ask() -> None:
            async with AsyncClient(one.endpoint) as client:
                with pytest.raises(TimedOut, match="within the deadline"):
                    await client.get("/", deadline=0.2)

        asyncio.run(ask())
        done.set()


def test_nobody_listens(folder: Path) -> None:
    errors = both(f"unix:{folder}/none", lambda client: client.get("/"))
    assert [str(error) for error in errors] == [
        f"cannot connect to unix:{folder}/none: No such file or directory"
    ] * 2
    assert all(isinstance(error, ConnectFailed) for error in errors)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "full"))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(folder / "full"))
            errors = both(
                f"unix:{folder}/full", lambda client: client.get("/"), connect_timeout=0.1
            )
    assert [type(error) for error in errors] == [TimedOut, TimedOut]
    for kind in (Client, AsyncClient):
        with pytest.raises(ConfigError):
            kind("fd:0")
    with pytest.raises(BadRequest):
        Client("unix:s").get("no path")


def test_what_goes_wrong_with_a_body_is_raised(folder: Path) -> None:
    class Broken(Exception):
        pass

    def body() -> Iterator[bytes]:
        yield b"one"
        raise Broken

    with responder(folder / "s", serve_params) as one:
        with Client(one.endpoint) as client, pytest.raises(Broken):
            client.request("POST", "/", body())

        async def ask() -> None:
            async with AsyncClient(one.endpoint) as client:
                with pytest.raises(Broken):
                    await client.request("POST", "/", body())

        asyncio.run(ask())


# what else there is


def test_a_head_before_the_head_is_passed_over(folder: Path) -> None:
    def behave(peer: Peer) -> None:
        peer.request()
        peer.send(record(STDOUT, 1, b"Status: 103 Early Hints\r\nLink: </a>\r\n\r\nStatus: 201 "))
        peer.send(record(STDERR, 1, b"hm"), record(STDOUT, 1, b"Made\r\n\r\nbody") + END)

    with responder(folder / "s", behave) as one:
        with Client(one.endpoint) as client:
            answer = client.get("/")
            assert (answer.status, answer.reason, answer.body) == (201, "Made", b"body")
            assert (answer.stderr, answer.headers) == (b"hm", [])


def test_a_filter_gets_its_data(folder: Path) -> None:
    def behave(peer: Peer) -> None:
        peer.protocol = FastCGI(Limits(), {}, frozenset(Role))
        while exchange := peer.request():
            peer.answer(exchange, exchange.take() + b" " + b"".join(exchange.data), X="y")

    with responder(folder / "s", behave) as one:
        with Client(one.endpoint) as client:
            answer = client.request("POST", "/", b"body", role=Role.FILTER, data=b"file")
            assert answer.body == b"body file"
            assert client.request("GET", "/", role=Role.FILTER, data=b"f").body == b" f"

        async def ask() -> bytes:
            async with AsyncClient(one.endpoint) as client:
                answer = await client.request("GET", "/", role=Role.FILTER, data=b"file")
                return answer.body

        assert asyncio.run(ask()) == b" file"


def test_all_that_is_named_is_there() -> None:
    for name in fulgate.client.__all__:
        assert getattr(fulgate.client, name)
    with pytest.raises(AttributeError, match="nothing"):
        _ = fulgate.client.nothing
