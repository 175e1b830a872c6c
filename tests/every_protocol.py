"""What holds on each driver, whatever is spoken. A module imports all of it, and has a PROTOCOL.

The servers are those of `tests.every_driver`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fulgate import Aborted
from tests import ajp_model, ajp_peer, scgi
from tests.driver_suite.kit import (
    TEXT,
    Environ,
    Flag,
    Gate,
    Log,
    Served,
    Start,
    answer,
    digest,
    hello,
    pattern,
    until,
)
from tests.every_driver import SEVERAL_AT_ONCE, MakeServed


@dataclass(frozen=True)
class Wire:
    """A web server's side of a protocol, as bytes."""

    peer: Callable[[Any], Any]  # a connection to an address
    get: Callable[[str], bytes]  # a whole request for a path
    post: Callable[[int], bytes]  # the head of one with a body of so many bytes
    body: Callable[[bytes], bytes]  # a piece of that

    def both(self, served: Served) -> Iterator[Any]:
        """Connect over each kind of socket."""
        for address in (served.address, served.tcp):
            with self.peer(address) as peer:
                yield peer


WIRES = {
    "ajp": Wire(
        ajp_peer.Peer, lambda path: ajp_model.forward(uri=path), ajp_model.post, ajp_model.body
    ),
    "scgi": Wire(scgi.Peer, scgi.request, lambda length: scgi.head(length=length), bytes),
}


@pytest.fixture
def wire(request: pytest.FixtureRequest) -> Wire:
    return WIRES[request.module.PROTOCOL]


def test_one_byte_at_a_time(make_server: MakeServed, wire: Wire) -> None:
    served = make_server(lambda environ, start: answer(start, environ["wsgi.input"].read()))
    data = wire.post(9) + wire.body(b"some body")
    for peer in wire.both(served):
        for at in range(len(data)):
            peer.send(data[at : at + 1])
        assert peer.answer().body == b"some body"


def test_a_client_that_goes_while_it_is_answered(make_server: MakeServed, wire: Wire) -> None:
    raised = Flag()

    def app(environ: Environ, start: Start) -> Iterator[bytes]:
        start("200 OK", TEXT)
        try:
            while True:
                yield bytes(100_000)
        finally:
            if environ["fulgate.aborted"]():
                raised.set()

    served = make_server(app, write_behind=200_000)
    for peer in wire.both(served):
        raised.clear()
        peer.send(wire.get("/hello"))
        peer.until(bytes(1000))
        peer.socket.close()
        raised.come()


def test_a_client_that_goes_while_the_application_reads(
    make_server: MakeServed, wire: Wire
) -> None:
    reading = Flag()
    raised = list[type]()

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        reading.set()
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            raised.append(type(error))
            raise
        return answer(start)

    served = make_server(app, body_wait=0.0)
    for peer in wire.both(served):
        reading.clear()
        raised.clear()
        peer.send(wire.post(100_000), wire.body(bytes(10)))
        reading.come()
        peer.socket.close()
        until(lambda: raised == [Aborted], "the read did not raise")


def test_deadlines(make_server: MakeServed, wire: Wire, log: Log) -> None:
    served = make_server(hello, arrival_timeout=0.3, body_timeout=0.3, body_wait=0.0)
    for data in (b"", wire.get("/hello")[:1], wire.get("/hello")[:20]):
        with wire.peer(served.address) as peer:
            peer.send(data)
            assert peer.closed(), data
    reads = make_server(digest, body_timeout=0.3, body_wait=0.0)
    with wire.peer(reads.address) as peer:
        peer.send(wire.post(3))
        assert peer.closed()
    until(lambda: "a request's body did not arrive in time" in log.lines(), "no word of it")


def test_a_file_is_an_answer(make_server: MakeServed, wire: Wire, tmp_path: Path) -> None:
    data = pattern(3_000_000)
    (tmp_path / "file").write_bytes(data)

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        file = (tmp_path / "file").open("rb")
        start("200 OK", [*TEXT, ("Content-Length", str(len(data)))])
        found: Iterable[bytes] = environ["wsgi.file_wrapper"](file)
        return found

    served = make_server(app)
    for peer in wire.both(served):
        peer.send(wire.get("/file"))
        assert peer.answer().body == data


def test_long_answers_are_whole(make_server: MakeServed, wire: Wire) -> None:
    data = pattern(3 << 20)

    def app(environ: Environ, start: Start) -> Iterator[bytes]:
        start("200 OK", TEXT)
        for at in range(0, len(data), 100_003):
            yield data[at : at + 100_003]

    served = make_server(app, write_behind=300_000)
    for peer in wire.both(served):
        peer.send(wire.get("/long"))
        assert peer.answer().body == data


@pytest.mark.parametrize("driver", SEVERAL_AT_ONCE, indirect=True)
def test_a_full_queue_is_answered(make_server: MakeServed, wire: Wire) -> None:
    gate = Gate()
    served = make_server(gate, threads=1, queue=0)
    with wire.peer(served.address) as held:
        held.send(wire.get("/wait"))
        until(lambda: gate.inside == 1, "it did not start")
        with wire.peer(served.address) as peer:
            peer.send(wire.get("/hello"))
            got = peer.answer()
        assert got.status == 503
        assert got.header("retry-after") == "1"
        gate.open.set()
        assert held.answer().body == b"/wait"
