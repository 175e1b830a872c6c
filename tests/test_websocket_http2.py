"""WebSockets on HTTP/2 (RFC 8441) through lighttpd, by an extended CONNECT."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.autobahn.cases import BULKS, CASES, Bulk, Case
from tests.autobahn.frames import PING, PONG, TEXT, Frame, close, frame
from tests.autobahn.http2 import HTTP2Wire
from tests.autobahn.play import Peer, exchange, play
from tests.autobahn.wires import HTTPWire
from tests.servers import Fulgate, LighttpdNext, Running

pytestmark = [pytest.mark.slow, pytest.mark.requires_server("lighttpd-next")]

OPTIONS = '"upgrade" => "enable"\n"fix-root-scriptname" => "enable"'
H2C = 'server.feature-flags = ("server.h2proto" => "enable", "server.h2c" => "enable")'
# As docs/websocket.md has it: to lighttpd's own socket, by HTTP/1.1, and from there by FastCGI.
TURNED = """\
server.modules += ("mod_extforward", "mod_proxy")
$SERVER["socket"] == "{socket}" {{
    extforward.forwarder = ("all" => "trust")
    extforward.headers = ("X-Forwarded-For")
}}
$HTTP["request-method"] == "CONNECT" {{
    fastcgi.server = ()
    proxy.header = ("upgrade" => "enable")
    proxy.server = ("" => (("socket" => "{socket}")))
}}"""

MAIN = [case for case in CASES if case.number.partition(".")[0] in ("1", "2", "3", "4", "5", "7")]
FEW = {"9.1.3", "9.2.3", "9.3.4", "9.7.3", "10.1.1", "12.1.5", "12.5.18", "13.7.5"}


@pytest.fixture(scope="module")
def started() -> Iterator[Running]:
    path = Path(tempfile.mkdtemp(prefix="fulgate-", dir="/tmp"))
    path.chmod(0o755)
    with ExitStack() as stack:
        yield Running(path, [], stack)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def fulgate(started: Running) -> Fulgate:
    return started(Fulgate, "tests.autobahn.echo:app", "--lifespan", "off")


@pytest.fixture(scope="module")
def port(started: Running, fulgate: Fulgate) -> int:
    turned = TURNED.format(socket=started.folder / "inner.sock")
    return started(LighttpdNext, fulgate.backend, H2C, turned, options=OPTIONS).port


def test_a_conversation(port: int) -> None:
    with closing(HTTP2Wire(port, sec_websocket_protocol="chat, other")) as wire:
        assert wire.status == "200"
        assert wire.headers["sec-websocket-protocol"] == "chat"
        assert "sec-websocket-accept" not in wire.headers  # section 5
        peer = Peer(wire)
        wire.send(frame(TEXT, "caf\u00e9".encode()))
        assert peer.next() == Frame(TEXT, "caf\u00e9".encode())
        wire.send(frame(PING, b"there?"))
        assert peer.next() == Frame(PONG, b"there?")
        wire.send(close(4001, b"done"))
        closed = peer.next()
        assert closed is not None
        assert closed.payload == b"\x0f\xa1done"
        assert peer.next() is None


def test_a_denial(port: int) -> None:
    with closing(HTTP2Wire(port, path="/denied", x_forwarded_for="192.0.2.1")) as wire:
        assert wire.status == "402"
        assert wire.headers["content-type"] == "text/plain"
        assert wire.receive() == b"('127.0.0.1', 0)"  # what the client says of itself is not taken


def test_http_1_1_beside_it(port: int) -> None:
    with closing(HTTPWire(port)) as wire:
        wire.send(frame(TEXT, b"over HTTP/1.1"))
        assert Peer(wire).next() == Frame(TEXT, b"over HTTP/1.1")


@pytest.mark.parametrize("case", MAIN, ids=lambda case: case.number)
def test_frames(case: Case, port: int) -> None:
    with closing(HTTP2Wire(port)) as wire:
        assert wire.status == "200"
        play(case, wire)


@pytest.mark.parametrize("bulk", [b for b in BULKS if b.number in FEW], ids=lambda b: b.number)
def test_messages(bulk: Bulk, port: int) -> None:
    with closing(HTTP2Wire(port, ", ".join(bulk.offers))) as wire:
        assert wire.status == "200"
        exchange(bulk, wire)


def test_lighttpd_passes_none_to_fastcgi_itself(started: Running, fulgate: Fulgate) -> None:
    """It wants a body's length there. Should that change, docs/websocket.md may be shorter."""
    lines = (H2C, "server.stream-request-body = 1")
    lighttpd = started(LighttpdNext, fulgate.backend, *lines, options=OPTIONS)
    with closing(HTTP2Wire(lighttpd.port)) as wire:
        assert wire.status == "411"
