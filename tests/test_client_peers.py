"""Both clients against real responders by others: streams, deadlines, what is given up, the pool.

What a server cannot do stands where it is asked to: PHP-FPM takes a body without CONTENT_LENGTH for
an empty one; PHP and libfcgi wait for a whole piece of the body; Go's handler, and the others, meet
an abort as a write that fails.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fulgate.client import AsyncClient, Client, TimedOut
from tests.echo import PEERS, PIECE, pattern
from tests.echo import Peer as Server
from tests.echo import peer as run_peer
from tests.servers import Running

LARGE = 20_000_000
COUNT = 5
PATIENCE = 30.0  # seconds


@pytest.fixture(params=PEERS)
def server(request: pytest.FixtureRequest, folder: Path, running: Running) -> Iterator[Server]:
    with run_peer(request.param, folder, running) as one:
        yield one


@pytest.fixture
def mark(folder: Path) -> Path:
    """A file that the server makes, whoever it is."""
    place = folder / "marks"
    place.mkdir()
    place.chmod(0o777)
    return place / "gone"


def appears(mark: Path) -> None:
    until = time.monotonic() + PATIENCE
    while not mark.exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    mark.unlink()


def sent_pieces() -> list[bytes]:
    return [bytes([number + 1]) * PIECE for number in range(COUNT)]


def told(length: int) -> dict[str, str]:
    return {"CONTENT_LENGTH": str(length)}


def test_each_piece_comes_back_before_the_next_is_sent(server: Server) -> None:
    pieces = sent_pieces()
    back = 0  # bytes

    def body() -> Iterator[bytes]:
        for number, piece in enumerate(pieces):
            while back < number * PIECE:
                yield b""
            yield piece

    with (
        Client(server.endpoint) as client,
        client.stream(
            "PUT", "/stream", body(), params=told(COUNT * PIECE),
            script_filename=server.script_filename,
        ) as answer,
    ):  # fmt: skip
        assert (answer.status, answer.header("X-Method")) == (200, "PUT")
        came = b""
        for part in answer:
            came += part
            back = len(came)
    assert came == b"".join(pieces)

    async def asked() -> bytes:
        room = asyncio.Semaphore(1)

        async def more() -> AsyncIterator[bytes]:
            for piece in pieces:
                await room.acquire()
                yield piece

        got = b""
        async with (
            AsyncClient(server.endpoint) as client,
            client.stream(
                "PUT", "/stream", more(), params=told(COUNT * PIECE),
                script_filename=server.script_filename,
            ) as answer,
        ):  # fmt: skip
            async for part in answer:
                whole = len(got) // PIECE
                got += part
                for _ in range(len(got) // PIECE - whole):
                    room.release()
        return got

    assert asyncio.run(asked()) == b"".join(pieces)


def test_a_large_body_both_ways_at_once(server: Server) -> None:
    """More than all buffers hold: who only sends, or only receives, would wait for ever."""
    body = os.urandom(PIECE * 1000)
    script = server.script_filename
    with Client(server.endpoint) as client:
        answer = client.request("PUT", "/stream", body, script_filename=script)
        assert answer.body == body

    async def ask() -> None:
        async with AsyncClient(server.endpoint) as client:
            answer = await client.request("PUT", "/stream", body, script_filename=script)
            assert answer.body == body

    asyncio.run(ask())


def test_a_body_of_unknown_length(server: Server) -> None:
    pieces = sent_pieces()
    script = server.script_filename
    wanted = b"" if server.name == "php" else b"".join(pieces)
    with Client(server.endpoint) as client:
        assert client.request("PUT", "/", iter(pieces), script_filename=script).body == wanted
        # The connection, or another one, is good for what comes next.
        assert client.get("/size?5", script_filename=script).body == pattern(5)

    async def ask() -> None:
        async with AsyncClient(server.endpoint) as client:
            answer = await client.request("PUT", "/", iter(pieces), script_filename=script)
            assert answer.body == wanted
            assert (await client.get("/size?5", script_filename=script)).body == pattern(5)

    asyncio.run(ask())


def test_a_large_answer_comes_in_pieces(server: Server) -> None:
    script = server.script_filename
    wanted = pattern(LARGE)
    with Client(server.endpoint) as client:
        with client.stream("GET", f"/size?{LARGE}", script_filename=script) as answer:
            parts = list(answer)
        assert b"".join(parts) == wanted
        assert max(map(len, parts)) < LARGE / 10
        assert client.get("/size?5", script_filename=script).body == pattern(5)

    async def ask() -> list[bytes]:
        async with (
            AsyncClient(server.endpoint) as client,
            client.stream("GET", f"/size?{LARGE}", script_filename=script) as answer,
        ):
            return [part async for part in answer]

    parts = asyncio.run(ask())
    assert b"".join(parts) == wanted
    assert max(map(len, parts)) < LARGE / 10


def test_an_answer_is_given_up(server: Server, mark: Path) -> None:
    """The application meets the end of it, and the server serves on."""
    script, headers = server.script_filename, {"X-Given": str(mark)}
    with Client(server.endpoint) as client:
        with client.stream("GET", "/endless", headers=headers, script_filename=script) as answer:
            assert len(next(iter(answer))) > 0
        appears(mark)
        assert client.get("/size?5", script_filename=script).body == pattern(5)

    async def ask() -> None:
        async with AsyncClient(server.endpoint) as client:
            async with client.stream(
                "GET", "/endless", headers=headers, script_filename=script
            ) as answer:
                async for piece in answer:
                    assert piece
                    break
            await asyncio.to_thread(appears, mark)
            assert (await client.get("/size?5", script_filename=script)).body == pattern(5)

    asyncio.run(ask())


def test_a_deadline_ends_what_goes_on(server: Server, mark: Path) -> None:
    script, headers = server.script_filename, {"X-Given": str(mark)}
    with Client(server.endpoint) as client:
        with pytest.raises(TimedOut, match="within the deadline"):
            client.get("/endless", headers=headers, script_filename=script, deadline=0.5)
        appears(mark)
        assert client.get("/size?5", script_filename=script).body == pattern(5)

    async def ask() -> None:
        async with AsyncClient(server.endpoint) as client:
            with pytest.raises(TimedOut, match="within the deadline"):
                await client.get("/endless", headers=headers, script_filename=script, deadline=0.5)
            await asyncio.to_thread(appears, mark)
            assert (await client.get("/size?5", script_filename=script)).body == pattern(5)

    asyncio.run(ask())


class Counting(Client):
    """Counts the connections that it makes."""

    made = 0

    def connect(self, until: float):  # type: ignore[no-untyped-def]
        self.made += 1
        return super().connect(until)


def test_a_connection_is_kept_and_made_anew_when_the_server_has_closed_it(server: Server) -> None:
    script = server.script_filename
    with Counting(server.endpoint) as client:
        for number in range(3):
            body = b"%d" % number
            assert client.request("POST", "/", body, script_filename=script).body == body
        assert client.made == 1
        server.restart()
        # Not one that may be sent twice: it is seen before that the connection is of no use.
        assert client.request("POST", "/", b"again", script_filename=script).body == b"again"
        assert client.made == 2
    with Counting(server.endpoint, max_idle=0) as client:
        for _ in range(2):
            assert client.get("/size?1", script_filename=script).body == pattern(1)
        assert client.made == 2


def test_a_connection_is_made_anew_in_asyncio(server: Server) -> None:
    script = server.script_filename

    async def ask() -> None:
        async with AsyncClient(server.endpoint) as client:
            for body in (b"one", b"two"):
                answer = await client.request("POST", "/", body, script_filename=script)
                assert answer.body == body
            await asyncio.to_thread(server.restart)
            answer = await client.request("POST", "/", b"again", script_filename=script)
            assert answer.body == b"again"

    asyncio.run(ask())


def test_threads_share_what_a_server_has(server: Server) -> None:
    """One process, or thread, of the server for each connection; no more are kept than it has."""
    script = server.script_filename
    wrong: list[bytes] = []
    with Client(server.endpoint, max_idle=0) as client:

        def ask(name: int) -> None:
            for number in range(5):
                body = b"%d %d" % (name, number)
                found = client.request("POST", "/", body, script_filename=script).body
                if found != body:
                    wrong.append(found)

        threads = [threading.Thread(target=ask, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
    assert not wrong
