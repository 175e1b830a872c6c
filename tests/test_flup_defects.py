"""What flup 1.0.3 did wrong, held against each of the servers that bear its names."""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fulgate.flup.server import fcgi
from fulgate.flup.server.fcgi_base import Connection
from fulgate.flup.server.singleserver import SingleServer
from fulgate.flup.server.threadedserver import ThreadedServer
from fulgate.flup.server.threadpool import ThreadPool
from tests import flup
from tests.apps import app, wait_for
from tests.flup import Program, serving, until
from tests.model import PARAMS, STDIN, WebServer
from tests.raw import PATIENCE, Raw, begin, environ, head, pairs, post, record, stream
from tests.statements import query, written

KINDS = ["fcgi", "fcgi_single", "fcgi_fork"]
ONE: dict[str, dict[str, Any]] = {  # worker
    "fcgi": {"maxThreads": 1},
    "fcgi_single": {},
    "fcgi_fork": {"maxSpare": 1, "maxChildren": 1},
}


@pytest.fixture(params=KINDS)
def program(request: pytest.FixtureRequest, folder: Path) -> Iterator[Program]:
    """One worker of each kind, which serves at the end as it did at the beginning."""
    with flup.server(folder, request.param, **ONE[request.param]) as program:
        yield program
        program.says_hello()
        assert program.ends(signal.SIGTERM) == 0


def worker(program: Program) -> Program:
    """The process that serves: the program's own, or its child."""
    with contextlib.suppress(IndexError):
        program = _Child(program)
    return program


class _Child(Program):
    def __init__(self, program: Program) -> None:
        self.pid = program.children()[0]


@pytest.mark.parametrize("kind", KINDS)
def test_sigterm_while_a_connection_is_kept_alive(folder: Path, kind: str) -> None:
    with flup.server(folder, kind, **ONE[kind]) as program, program.raw() as raw:
        assert raw.request().body == b"Hello, world!\n"
        program.says_hello()  # it holds no thread, and no process, up
        assert program.ends(signal.SIGTERM) == 0
        assert raw.closed()


def test_the_linger_after_an_answer_ends(program: Program) -> None:
    """A peer that has its answer and neither sends nor closes is closed."""
    serving_one = worker(program)
    program.says_hello()  # so that it has all that it keeps open
    before = serving_one.sockets()
    with contextlib.ExitStack() as held:
        for _ in range(5):
            raw = held.enter_context(program.raw())
            raw.expect()
            raw.send(head(keep=False, **post(200_000)), record(STDIN, 1, b"abc"))
            raw.answer()
        program.says_hello()
        until(lambda: serving_one.sockets() <= before, "they are closed")


@pytest.mark.statement("R1")
@pytest.mark.parametrize("size", [0, 1, 7, 9])
def test_a_short_begin_request(program: Program, size: int) -> None:
    with program.raw() as raw:
        raw.send(record(1, 1, b"\0" * size))
        assert raw.closed()
    program.says_hello()


@pytest.mark.parametrize("kind", KINDS)
def test_running_out_of_descriptors(folder: Path, kind: str) -> None:
    with flup.server(folder, kind, **ONE[kind]) as program:
        program.says_hello()
        one = worker(program)
        used = len(list(Path(f"/proc/{one.pid}/fd").iterdir()))
        limit = (used + 10, used + 10)
        for process in {program.pid, one.pid}:
            resource.prlimit(process, resource.RLIMIT_NOFILE, limit)
        with contextlib.ExitStack() as stack:
            crowd = [stack.enter_context(program.raw()) for _ in range(30)]
            for raw in crowd:
                raw.expect()
                raw.send(head(), record(STDIN, 1))
            until(lambda: "cannot accept" in program.log(), "it says so")
            for raw in crowd:  # those that were let in make room for the others
                assert raw.answer().body == b"Hello, world!\n"
                raw.socket.close()
        program.says_hello()
        # Once for each time that it runs out again, and not for each try.
        assert program.log().count("cannot accept") < len(crowd)
        assert program.ends(signal.SIGTERM) == 0


def test_more_than_1024_descriptors(folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= 4000, "this machine allows too few descriptors for the test"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4000), hard))
    try:
        for kind in KINDS:
            with flup.server(folder, kind, **ONE[kind]) as program, contextlib.ExitStack() as stack:
                for _ in range(1100):
                    stack.enter_context(program.raw()).send(begin())
                last = stack.enter_context(program.raw())
                assert last.request("/sized", "size=1000000").body[-1:] == b"\x3f"
                assert worker(program).sockets() > 1100
                assert last.request().body == b"Hello, world!\n"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("threads", [1, 3])
def test_max_threads_is_the_number_of_threads(folder: Path, threads: int) -> None:
    """Beside them there are the main thread and the one that keeps deadlines."""
    with flup.server(folder, "fcgi", maxThreads=threads) as program:
        program.says_hello()
        assert program.threads() == threads + 2


def test_the_pool_has_as_many_threads_as_it_may() -> None:
    """Also where minSpare and maxSpare say more."""
    gate = threading.Event()
    running: list[int] = []

    class Job:
        def run(self) -> None:
            running.append(threading.get_ident())
            gate.wait(PATIENCE)

    pool = ThreadPool(minSpare=3, maxSpare=5, maxThreads=1)
    assert pool._threads == []
    assert pool.addJob(Job())
    until(lambda: running, "it runs")
    assert not pool.addJob(Job(), allowQueuing=False)
    assert pool.addJob(Job())
    assert len(pool._threads) == 1
    gate.set()
    pool.shutdown()
    assert len(running) == 2, "what was queued ran"
    assert len(set(running)) == 1
    assert not pool.addJob(Job())


def test_exceptions_in_a_job_do_not_vanish(caplog: pytest.LogCaptureFixture) -> None:
    ran = threading.Event()

    class Job:
        def run(self) -> None:
            if self is bad[0]:
                raise LookupError("in a job")
            if self is bad[1]:
                raise SystemExit
            ran.set()

    bad = [Job(), Job()]
    pool = ThreadPool(maxThreads=1)
    for job in (*bad, Job()):
        assert pool.addJob(job)
    assert ran.wait(PATIENCE), "the thread goes on"
    pool.shutdown()
    assert caplog.text.count("a job in the thread pool raised") == 2
    assert "LookupError: in a job" in caplog.text


@pytest.mark.parametrize("kind", [ThreadedServer, SingleServer])
def test_the_generic_servers_survive_a_job_that_raises(
    kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Job:
        def __init__(self, sock: socket.socket, address: Any, word: bytes) -> None:
            self.sock, self.word = sock, word

        def run(self) -> None:
            with self.sock:
                if self.sock.recv(1) == b"!":
                    raise LookupError("in a job")
                self.sock.sendall(self.word)

    server = kind(jobClass=Job, jobArgs=(b"word",))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        thread = threading.Thread(target=server.run, args=(listener,))
        thread.start()
        try:
            for said, heard in ((b"!", b""), (b"?", b"word"), (b"?", b"word")):
                with socket.create_connection(address, PATIENCE) as peer:
                    peer.sendall(said)
                    assert peer.recv(10) == heard
        finally:
            server.shutdown()
            thread.join(PATIENCE)
        assert not thread.is_alive()
    until(lambda: "LookupError: in a job" in caplog.text, "the log says so")


def test_peers_that_close_within_a_body_leak_nothing(program: Program, tmp_path: Path) -> None:
    program.says_hello()
    one = worker(program)
    threads, sockets = one.threads(), one.sockets()
    for n in range(10):
        began, report = tmp_path / f"began{n}", tmp_path / f"report{n}"
        with program.raw() as raw:
            raw.expect()
            raw.send(head("/reader", query(began=began, report=report), **post(200_000)))
            raw.send(record(STDIN, 1, b"abc"))
            wait_for(began)
        assert written(report) == "Aborted"
    program.says_hello()
    assert one.threads() == threads
    until(lambda: one.sockets() <= sockets, "their sockets are closed")


@pytest.mark.statement("11")
def test_get_values_is_answered(program: Program) -> None:
    with program.raw() as raw:
        values = raw.values(b"FCGI_MAX_CONNS", b"FCGI_MPXS_CONNS", b"FCGI_NONSENSE")
        assert int(values[b"FCGI_MAX_CONNS"]) > 0
        assert values[b"FCGI_MPXS_CONNS"] == b"0"
        assert b"FCGI_NONSENSE" not in values
        assert raw.request().body == b"Hello, world!\n"


@pytest.mark.statement("7")
@pytest.mark.parametrize("cut", [1, 3, 7])
def test_pairs_across_records(program: Program, cut: int) -> None:
    params = environ("/x", HTTP_X_LONG="v" * 200)
    with program.raw() as raw:
        raw.expect()
        raw.send(begin(), stream(PARAMS, 1, pairs(params), cut=cut), record(STDIN, 1))
        assert b'"HTTP_X_LONG": "' + b"v" * 200 + b'"' in raw.answer().body


# ---------------------------------------------------------------- what an application sees


def readline(environ: Any, start: Any) -> Any:
    source = environ["wsgi.input"]
    start("200 OK", [])
    return [b"|".join([source.readline(3), source.readline(3), source.readline(), source.read()])]


def test_readline_gives_no_more_than_was_asked_for(folder: Path) -> None:
    path = str(folder / "s")
    with serving(fcgi.WSGIServer(readline, bindAddress=path), path), Raw(path) as raw:
        answer = raw.request(body=b"abcdefg\nhij\n")
        assert answer.body == b"abc|def|g\n|hij\n"


@pytest.mark.parametrize("bad", ["a\r\nSet-Cookie: b=c", "a\nb", "a\rb", "a\0b"])
def test_no_line_end_in_a_header(folder: Path, bad: str) -> None:
    path = str(folder / "s")

    def injected(environ: Any, start: Any) -> Any:
        start("200 OK", [("X-Header", bad)])
        return [b"body"]

    with serving(fcgi.WSGIServer(injected, bindAddress=path), path), Raw(path) as raw:
        answer = raw.request()
        assert answer.status == "500 Internal Server Error"
        assert b"Set-Cookie" not in answer.stdout


def test_one_call_sends_a_whole_answer() -> None:
    """On a socket that keeps the borders of messages."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = fcgi.WSGIServer(app, bindAddress="never bound")
    thread = threading.Thread(target=Connection(its, "", server).run)
    thread.start()
    with ours:
        ours.settimeout(PATIENCE)
        reader = WebServer()
        answer = reader.expect(1)
        ours.send(head(keep=False) + record(STDIN, 1))
        reader.read(ours.recv(65536))
        assert answer.ended
        assert answer.body == b"Hello, world!\n"
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_the_log_is_not_lost(program: Program) -> None:
    """What an application raises is logged here, and told to the web server."""
    with program.raw() as raw:
        answer = raw.request("/fails")
        assert answer.status == "500 Internal Server Error"
        assert b"LookupError: this application fails before it answers" in answer.stderr
    assert "LookupError: this application fails before it answers" in program.log()
    assert "GET /fails" in program.log()
