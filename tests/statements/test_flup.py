"""What flup 1.0.3 did wrong, as far as no statement says it."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

import pytest

from tests.apps import wait_for
from tests.model import STDIN
from tests.raw import Raw, begin, head, post, record
from tests.servers import Fulgate, Running
from tests.statements import APP, eventually, query, sockets, still_serves, written


@pytest.mark.slow
def test_the_linger_after_an_answer_ends(running: Running) -> None:
    """A peer that has its answer and neither sends nor closes is closed, and holds no thread."""
    server = running(Fulgate, APP, "--threads", "1")
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            raw = stack.enter_context(Raw(server.socket))
            raw.expect()
            raw.send(head(keep=False, **post(200_000)), record(STDIN, 1, b"abc"))
            raw.answer()
        still_serves(server)
        eventually(lambda: sockets(server) == 1, "only the listening socket is left")


def test_running_out_of_descriptors_does_not_end_the_server(running: Running) -> None:
    server = running(Fulgate, APP, "--threads", "1")
    still_serves(server)
    used = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (used + 10, used + 10))
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(Raw(server.socket)) for _ in range(30)]
        for raw in crowd:
            raw.expect()
            raw.send(head(), record(STDIN, 1))
        for raw in crowd:  # those that were let in make room for the others
            assert raw.answer().body == b"Hello, world!\n"
            raw.socket.close()
    still_serves(server)
    complaints = [line for line in server.log().splitlines() if "cannot accept" in line]
    assert 1 <= len(complaints) <= 3


def test_more_than_1024_descriptors(running: Running) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= 3000, "this machine allows too few descriptors for the test"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3000), hard))
    try:
        server = running(Fulgate, APP, "--threads", "1")
        with contextlib.ExitStack() as stack:
            for _ in range(1100):
                raw = stack.enter_context(Raw(server.socket))
                raw.send(begin())
            last = stack.enter_context(Raw(server.socket))
            assert last.request("/sized", "size=1000000").body[-1:] == b"\x3f"
            assert sockets(server) > 1100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("threads", [1, 5])
def test_threads_are_as_many_as_were_asked_for(running: Running, threads: int) -> None:
    """Beside them there are the main thread and the one that keeps deadlines."""
    server = running(Fulgate, APP, "--threads", str(threads))
    expected = str(threads + 2)
    eventually(lambda: server.status("Threads") == expected, f"{expected} threads")
    still_serves(server)
    assert server.status("Threads") == expected


def test_exceptions_do_not_vanish(running: Running) -> None:
    server = running(Fulgate, APP, "--threads", "1")
    with Raw(server.socket) as raw:
        assert raw.request("/fails").status == "500 Internal Server Error"
        assert raw.request().body == b"Hello, world!\n"
    assert "GET /fails HTTP/1.1" in server.log()
    assert "LookupError: this application fails before it answers" in server.log()


def test_peers_that_close_within_a_body_leak_nothing(running: Running, tmp_path: Path) -> None:
    server = running(Fulgate, APP, "--threads", "2")
    for n in range(10):
        began, report = tmp_path / f"began{n}", tmp_path / f"report{n}"
        with Raw(server.socket) as raw:
            raw.expect()
            raw.send(head("/reader", query(began=began, report=report), **post(200_000)))
            raw.send(record(STDIN, 1, b"abc"))
            wait_for(began)
        assert written(report) == "Aborted"
    still_serves(server)
    assert server.status("Threads") == "4"
    eventually(lambda: sockets(server) == 1, "only the listening socket is left")


def test_a_file_in_the_way_is_left_alone(folder: Path) -> None:
    path = folder / "precious"
    path.write_text("data")
    server = Fulgate(folder, APP)
    server.socket = path
    with pytest.raises(RuntimeError, match="not a socket; it was left alone"):
        server.start()
    assert path.read_text() == "data"


def test_a_full_server_answers_503(running: Running, tmp_path: Path) -> None:
    go = tmp_path / "go"
    server = running(Fulgate, APP, "--threads", "1", "--queue", "0")
    with Raw(server.socket) as busy, Raw(server.socket) as raw:
        busy.expect()
        busy.send(head("/stream", query(go=go)), record(STDIN, 1))
        busy.until(1, b"first\n")
        answer = raw.request()
        assert answer.status == "503 Service Unavailable"
        assert any(line.startswith(b"Retry-After: ") for line in answer.head)
        assert answer.stdout_ended
        go.touch()
        assert busy.answer().body == b"first\nsecond\n"
        # The thread has answered, and is free a moment later.
        eventually(lambda: raw.request().body == b"Hello, world!\n", "a free thread")
