"""The attack corpus against clients (tests/attacks/answers/): hostile applications.

Each client tells what its entry says, in time and in bounded memory, takes nothing of it for an
answer, and is usable afterwards. Behind the proxy an HTTP client gets 502, or an answer that is
visibly broken, and never two for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from fulgate.client import AnswerCut, AsyncClient, Client, ProtocolError, Refused, TimedOut
from fulgate.client.proxy import FastCGIProxy
from fulgate.errors import FulgateError
from fulgate.protocols.fastcgi_records import STDOUT, record
from tests.attacks.answers import ENDS, OUTCOMES, PROTOCOLS, Answer, load
from tests.attacks.replay import Broken
from tests.command import here
from tests.responder import Peer, responder
from tests.servers.fulgate import ROOT
from tests.test_attacks import accepts, environment
from tests.web import uvicorn_serves

SECONDS = 30.0  # for each attack
MEMORY = 32 << 20  # bytes that one may cost for a moment
SHORT = 1.0  # seconds of patience where nothing comes
GOOD = b"well"

# curl's exit statuses, for `fulgate get`: before the head is there, and after.
EXITS = {"malformed": (8, 8), "cut": (52, 18), "refused": (56, 56), "timeout": (28, 28)}


@pytest.fixture
def attacker(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    """The endpoint of an application that attacks by the protocol that is the parameter."""
    protocol = request.param
    path = folder / "attacker"
    with subprocess.Popen(
        [sys.executable, "-m", "tests.attacks.respond", protocol, f"unix:{path}"],
        cwd=ROOT,
        env=environment(),
    ) as process:
        try:
            deadline = time.monotonic() + SECONDS
            while not accepts(path):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield f"unix:{path}" if protocol == "fastcgi" else f"{protocol}+unix:{path}"
            assert process.poll() is None
        finally:
            process.kill()


def kind(error: FulgateError) -> str:
    for found, name in ((AnswerCut, "cut"), (Refused, "refused"), (TimedOut, "timeout")):
        if isinstance(error, found):
            return name
    return "malformed" if isinstance(error, ProtocolError) else repr(error)


class Seen:
    """What one client made of one attack."""

    outcome = "answer"
    status = 0  # stays 0 without a head
    body = b""
    text = b""  # all of it, with headers and errors

    def judge(self, attack: Answer) -> None:
        """Raise Broken where that is not as it should be."""
        if self.outcome not in attack.expect:
            raise Broken(f"{self.outcome}, not {attack.expect}: {self.text[:200]!r}")
        if bool(self.status) is not (self.outcome == "answer") and not attack.begun:
            raise Broken(f"the head: {self.status}, {self.text[:200]!r}")
        if self.outcome == "answer":
            if attack.status and self.status != attack.status:
                raise Broken(f"status {self.status}")
            if attack.body is not None and self.body != attack.body.encode("latin-1"):
                raise Broken(f"the body is {self.body[:200]!r}")
            if attack.size is not None and len(self.body) != attack.size:
                raise Broken(f"the body has {len(self.body)} bytes")


class Sync:
    """The blocking client."""

    def __init__(self, endpoint: str) -> None:
        self.client = Client(endpoint, timeout=SECONDS)

    def ask(self, path: str, timeout: float) -> Seen:
        seen = Seen()
        self.client.timeout = timeout
        try:
            with self.client.stream("GET", path, deadline=SECONDS) as answer:
                seen.status = answer.status
                seen.text = repr(answer.headers).encode()
                for piece in answer:
                    seen.body += piece
        except FulgateError as error:
            seen.outcome = kind(error)
            seen.text += str(error).encode()
        return seen

    def close(self) -> None:
        self.client.close()


class Async:
    """The client for asyncio."""

    def __init__(self, endpoint: str) -> None:
        self.runner = asyncio.Runner()
        self.client = AsyncClient(endpoint, timeout=SECONDS)

    def ask(self, path: str, timeout: float) -> Seen:
        return self.runner.run(self._ask(path, timeout))

    async def _ask(self, path: str, timeout: float) -> Seen:
        seen = Seen()
        self.client.timeout = timeout
        try:
            async with self.client.stream("GET", path, deadline=SECONDS) as answer:
                seen.status = answer.status
                seen.text = repr(answer.headers).encode()
                async for piece in answer:
                    seen.body += piece
        except FulgateError as error:
            seen.outcome = kind(error)
            seen.text += str(error).encode()
        return seen

    def close(self) -> None:
        self.runner.run(self._close())
        self.runner.close()

    async def _close(self) -> None:
        self.client.close()


class Get:
    """`fulgate get`, which makes a connection for each request."""

    def __init__(self, endpoint: str, folder: Path) -> None:
        self.endpoint = endpoint
        self.folder = folder

    def ask(self, path: str, timeout: float) -> Seen:
        limit = min(timeout, SECONDS)
        done = here("get", self.endpoint, path, "-i", "-m", str(limit), cwd=self.folder)
        seen = Seen()
        head, _, body = done.stdout.partition("\n\n")  # `here` makes LF of CR LF
        if head:
            seen.status = int(head.split()[1])
        seen.body = body.replace("\n", "\r\n").encode()
        seen.text = (done.stdout + done.stderr).encode()
        if done.returncode:
            seen.outcome = next(
                (n for n, exits in EXITS.items() if exits[bool(seen.status)] == done.returncode),
                f"exit status {done.returncode}",
            )
            if done.stderr.count("\n") != 1:
                raise Broken(f"it said {done.stderr[:300]!r}")
        return seen

    def close(self) -> None:
        """There is nothing to close."""


def assault(attack: Answer, client: Sync | Async | Get) -> None:
    """Make one attack, and look at what it cost. Raises Broken."""
    patience = SHORT if attack.expect == ["timeout"] else SECONDS
    # Over a connection that is there, and over a new one.
    for before in (client.ask("/probe/", SECONDS), None):
        if before is not None and before.body != GOOD:
            raise Broken(f"the probe before it: {before.outcome}, {before.text!r}")
        with costs():
            seen = client.ask(f"/attack/{attack.name}", patience)
        seen.judge(attack)
        for text in attack.absent:
            if seen.outcome == "answer" and text.encode() in seen.text + seen.body:
                raise Broken(f"{text!r} is in {seen.text + seen.body!r}")
        if attack.late:
            after = client.ask("/probe/", SECONDS)
            if after.outcome == "answer" and after.body != GOOD:
                raise Broken(f"the next answer is {after.body!r}")
        after = client.ask("/probe/", SECONDS)
        if (after.outcome, after.status, after.body) != ("answer", 200, GOOD):
            raise Broken(f"afterwards: {after.outcome}, {after.text!r}")


@contextlib.contextmanager
def costs() -> Iterator[None]:
    """Hold what is done to its time and memory. Raises Broken."""
    Path("/proc/self/clear_refs").write_text("5")
    memory = has("VmRSS")
    began = time.monotonic()
    yield
    if time.monotonic() - began > SECONDS:
        raise Broken("it took too long")
    if (grown := has("VmHWM") - memory) > MEMORY:
        raise Broken(f"it cost {grown >> 20} MiB")


def has(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def all_fare_well(protocol: str, check: Callable[[Answer], None]) -> None:
    failed = []
    for attack in load(protocol).attacks:
        try:
            check(attack)
        except Broken as error:
            failed.append(f"{attack.name}: {error}")
    assert not failed, "\n".join(failed)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("attacker", PROTOCOLS, indirect=True)
@pytest.mark.parametrize("kind", [Sync, Async])
def test_the_library(kind: type[Sync] | type[Async], attacker: str) -> None:
    client = kind(attacker)
    try:
        all_fare_well(protocol_of(attacker), lambda attack: assault(attack, client))
    finally:
        client.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("attacker", PROTOCOLS, indirect=True)
def test_the_command(attacker: str, folder: Path) -> None:
    client = Get(attacker, folder)
    all_fare_well(protocol_of(attacker), lambda attack: assault(attack, client))


def protocol_of(endpoint: str) -> str:
    return endpoint.partition("+")[0] if "+" in endpoint else "fastcgi"


# the proxy


@pytest.mark.timeout(600)
@pytest.mark.parametrize("attacker", ["fastcgi"], indirect=True)
def test_the_proxy(attacker: str) -> None:
    # Two of them, since one has the patience that the quiet ones would use up.
    with uvicorn_serves(FastCGIProxy(attacker, read_timeout=SECONDS)) as port:
        with uvicorn_serves(FastCGIProxy(attacker, read_timeout=SHORT)) as short:
            all_fare_well(
                "fastcgi",
                lambda attack: proxied(attack, short if attack.expect == ["timeout"] else port),
            )


def proxied(attack: Answer, port: int) -> None:
    for _ in range(2):
        probed(port)
        with costs():
            raw = ask_http(port, f"/attack/{attack.name}")
        status, body, whole = read_http(raw)
        expected = attack.status if attack.expect == ["answer"] else attack.gateway
        if attack.begun and status not in (0, attack.gateway):
            if whole:
                raise Broken(f"the broken answer looks whole: {raw[:300]!r}")
        elif status != expected or not whole:
            raise Broken(f"{raw[:300]!r}")
        for text in [*attack.absent, *attack.hidden]:
            if text.encode() in raw:
                raise Broken(f"{text!r} is in {raw[:500]!r}")
        wanted = body if attack.body is None else attack.body.encode("latin-1")
        if attack.expect == ["answer"] and body != wanted:
            raise Broken(f"the body is {body!r}")
        if attack.late:
            raw = ask_http(port, "/probe/")
            if read_http(raw)[0] == 200 and read_http(raw)[1] != GOOD:
                raise Broken(f"the next answer is {raw!r}")
        probed(port)


def probed(port: int) -> None:
    raw = ask_http(port, "/probe/")
    if read_http(raw) != (200, GOOD, True):
        raise Broken(f"the probe: {raw!r}")


def ask_http(port: int, path: str) -> bytes:
    """Make a request, and give all that comes on its connection."""
    with socket.create_connection(("127.0.0.1", port), SECONDS) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        pieces = []
        with contextlib.suppress(ConnectionError):
            while piece := sock.recv(65536):
                pieces.append(piece)
        return b"".join(pieces)


class _Bytes(io.BytesIO):
    """What http.client takes for a socket, and its file, which it closes at an answer's end."""

    def makefile(self, *_: object) -> Self:
        return self

    def close(self) -> None:
        """What follows can still be read."""


def read_http(raw: bytes) -> tuple[int, bytes, bool]:
    """Give status and body of the one answer, and whether it is whole, with nothing behind it."""
    source = _Bytes(raw)
    answer = http.client.HTTPResponse(source, method="GET")  # type: ignore[arg-type]
    try:
        answer.begin()
        body = answer.read()
    except http.client.IncompleteRead as error:
        return answer.status, error.partial, False
    except (http.client.HTTPException, ConnectionError):
        return 0, b"", False
    return answer.status, body, not source.read()


# what the corpus cannot say


def test_a_body_without_end_has_a_limit_where_it_is_gathered(folder: Path) -> None:
    def endless(peer: Peer) -> None:
        assert peer.request() is not None
        with contextlib.suppress(OSError):
            peer.send(record(STDOUT, 1, b"X: y\r\n\r\n"))
            while True:
                peer.send(record(STDOUT, 1, bytes(65535)))

    with responder(folder / "s", endless) as one, costs():
        with Client(one.endpoint, max_body=1 << 20) as client:
            with pytest.raises(ProtocolError, match="longer than 1048576 bytes"):
                client.get("/")

        async def ask() -> None:
            async with AsyncClient(one.endpoint, max_body=1 << 20) as client:
                with pytest.raises(ProtocolError, match="longer than 1048576 bytes"):
                    await client.get("/")

        asyncio.run(ask())


def test_an_application_that_writes_and_never_reads(folder: Path) -> None:
    """The answer is had while the body waits, and costs no more than is taken of it."""
    gone = threading.Event()

    def deaf(peer: Peer) -> None:
        assert peer.request(whole=False) is not None
        with contextlib.suppress(OSError):
            peer.send(record(STDOUT, 1, b"X: y\r\n\r\n"))
            while True:
                peer.send(record(STDOUT, 1, bytes(65535)))
        gone.set()

    body = bytes(8 << 20)
    with responder(folder / "s", deaf) as one:
        with costs(), Client(one.endpoint) as client:
            with client.stream("POST", "/", body) as answer:
                size = 0
                for piece in answer:
                    size += len(piece)
                    if size > 256 << 20:
                        break
        assert gone.wait(SECONDS)

        async def ask() -> None:
            async with AsyncClient(one.endpoint) as client:
                async with client.stream("POST", "/", body) as answer:
                    size = 0
                    async for piece in answer:
                        size += len(piece)
                        if size > 256 << 20:
                            break

        gone.clear()
        with costs():
            asyncio.run(ask())
        assert gone.wait(SECONDS)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_corpus_is_in_order(protocol: str) -> None:
    corpus = load(protocol)
    names = [attack.name for attack in corpus.attacks]
    assert len(names) == len(set(names))
    for attack in corpus.attacks:
        assert attack.why, attack.name
        assert attack.expect, attack.name
        assert set(attack.expect) <= OUTCOMES, attack.name
        assert attack.end in ENDS, attack.name
        assert not (attack.begun and attack.expect == ["answer"]), attack.name
