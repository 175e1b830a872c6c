"""Signals and errors: statements 29 and 30, R1 to R4."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model import BEGIN_REQUEST, GET_VALUES, PARAMS, STDIN
from tests.raw import PATIENCE, Raw, begin, environ, head, pair, pairs, post, record, stream
from tests.servers import Fulgate, Running
from tests.statements import APP, eventually, query, serving, statement, still_serves


@statement("29")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0(running: Running, signum: int) -> None:
    """Idle connections are not waited for: the server would have 30 seconds, `stop` has 20."""
    server = running(Fulgate, APP)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(Raw(server.socket)) for _ in range(100)]
        for raw in idle:
            assert raw.request().body == b"Hello, world!\n"
        lingering = stack.enter_context(Raw(server.socket))
        lingering.expect()
        lingering.send(head(keep=False, **post(200_000)), record(STDIN, 1, b"abc"))
        lingering.answer()
        assert server.stop(signum) == 0
        assert all(raw.closed() for raw in idle)
    assert not server.socket.exists()


@statement("29")
def test_a_signal_lets_running_requests_end(running: Running, tmp_path: Path) -> None:
    go = tmp_path / "go"
    server = running(Fulgate, APP)
    process = server.process
    assert process is not None
    with Raw(server.socket) as raw, Raw(server.socket) as idle:
        idle.request()
        raw.expect()
        raw.send(head("/stream", query(go=go)), record(STDIN, 1))
        raw.until(1, b"first\n")
        process.send_signal(signal.SIGTERM)
        assert idle.closed()
        assert process.poll() is None
        go.touch()
        assert raw.answer().body == b"first\nsecond\n"
        assert raw.closed()
    assert process.wait(PATIENCE) == 0


@statement("29")
def test_a_signal_lets_a_request_arrive_that_has_begun_to(running: Running) -> None:
    server = running(Fulgate, APP)
    process = server.process
    assert process is not None
    data = head() + record(STDIN, 1)
    with Raw(server.socket) as raw, Raw(server.socket) as idle:
        idle.request()
        raw.expect()
        raw.send(data[:100])
        still_serves(server)
        process.send_signal(signal.SIGTERM)
        assert idle.closed()
        raw.send(data[100:])
        assert raw.answer().body == b"Hello, world!\n"
        assert raw.closed()
    assert process.wait(PATIENCE) == 0


BROKEN = {
    "R1: no content": record(BEGIN_REQUEST, 1),
    "R1: too short": record(BEGIN_REQUEST, 1, b"\0\1\1\0\0\0\0"),
    "R1: too long": record(BEGIN_REQUEST, 1, b"\0\1\1\0\0\0\0\0\0"),
    "R2: version 0": record(STDIN, 1, version=0),
    "R2: version 2": record(BEGIN_REQUEST, 1, b"\0\1\1\0\0\0\0\0", version=2),
    "R2: version 255": record(GET_VALUES, 0, version=255),
    "R2: HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "R2: within a request": head() + record(STDIN, 1, version=2),
    "R3: no value": begin() + stream(PARAMS, 1, pairs(environ()) + b"\4\0NAM"),
    "R3: a value cut short": begin() + stream(PARAMS, 1, pairs(environ()) + b"\1\5Nabc"),
    "R3: one length": begin() + stream(PARAMS, 1, pairs(environ()) + b"\4"),
    "R3: a long length cut short": begin() + stream(PARAMS, 1, pairs(environ()) + b"\4\x80\0\0"),
    "R3: a length of 2 GiB": begin() + stream(PARAMS, 1, b"\xff\xff\xff\xff\1ab"),
    "R3: in GET_VALUES": record(GET_VALUES, 0, b"\5\0FCG"),
    "R4: before PARAMS": begin() + begin(),
    "R4: another role": begin() + begin(role=2),
    "R4: while STDIN comes": head(**post(10)) + record(STDIN, 1, b"abc") + begin(),
    "PARAMS after their end": head() + record(PARAMS, 1, pair(b"A", b"b")),
    "STDIN before PARAMS": begin() + record(STDIN, 1, b"abc"),
    "STDIN after its end": head(**post(200_000)) + record(STDIN, 1) + record(STDIN, 1),
}


def of(number: str) -> list[str]:
    return [name for name in BROKEN if name.startswith(f"{number}:")]


@pytest.fixture(scope="module")
def logging() -> Iterator[Fulgate]:
    """A server that has nothing to log but what is wrong."""
    with serving("--threads", "1", "--body-wait", "60") as server:
        yield server


def one_line_and_closed(server: Fulgate, data: bytes) -> None:
    before = server.log()
    with Raw(server.socket) as raw:
        raw.send(data)
        assert raw.closed()  # nothing is shown to the client
    eventually(lambda: server.log() != before, "it is logged")
    new = server.log().removeprefix(before).splitlines()
    assert len(new) == 1, new
    assert "closed a connection" in new[0]
    still_serves(server)
    assert server.log() == before + new[0] + "\n"


@statement("30")
@pytest.mark.parametrize("name", [name for name in BROKEN if name[0] != "R"])
def test_protocol_errors_are_logged_and_not_shown(logging: Fulgate, name: str) -> None:
    one_line_and_closed(logging, BROKEN[name])


@statement("R1")
@statement("30")
@pytest.mark.parametrize("name", of("R1"))
def test_begin_request_of_a_wrong_length(logging: Fulgate, name: str) -> None:
    one_line_and_closed(logging, BROKEN[name])


@statement("R2")
@statement("30")
@pytest.mark.parametrize("name", of("R2"))
def test_version_other_than_1(logging: Fulgate, name: str) -> None:
    one_line_and_closed(logging, BROKEN[name])


@statement("R3")
@statement("30")
@pytest.mark.parametrize("name", of("R3"))
def test_malformed_pair(logging: Fulgate, name: str) -> None:
    one_line_and_closed(logging, BROKEN[name])


@statement("R4")
@statement("30")
@pytest.mark.parametrize("name", of("R4"))
def test_begin_request_of_an_active_id(logging: Fulgate, name: str) -> None:
    one_line_and_closed(logging, BROKEN[name])


@statement("R4")
@statement("30")
def test_begin_request_of_an_id_whose_application_runs(logging: Fulgate, tmp_path: Path) -> None:
    go = tmp_path / "go"
    before = logging.log()
    with Raw(logging.socket) as raw:
        raw.expect()
        raw.send(head("/stream", query(go=go)), record(STDIN, 1))
        raw.until(1, b"first\n")
        raw.send(begin())
        assert raw.closed()
        assert raw.reader.answers[1].body == b"first\n"
        assert not go.exists()
        go.touch()
    still_serves(logging)
    assert len(logging.log().removeprefix(before).splitlines()) == 1


@statement("30")
def test_bytes_of_a_peer_cannot_forge_a_line(logging: Fulgate) -> None:
    before = logging.log()
    with Raw(logging.socket) as raw:
        raw.send(begin(role=1), stream(PARAMS, 1, b"\x7f\x7f\nERROR %s %d forged\n"))
        assert raw.closed()
    assert len(logging.log().removeprefix(before).splitlines()) == 1
    assert "forged" not in logging.log()
