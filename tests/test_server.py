"""The embedding API: Server, as a context manager too, and serve with its signals."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import fulgate
from fulgate import BindError, Config, ConfigError, NoThreads, Server
from fulgate.serve import run
from tests.driver_suite.kit import Environ, Flag, Gate, Start, answer, hello, until
from tests.model import ABORT_REQUEST, STDIN
from tests.processes import python
from tests.raw import Raw, head, record


def address(endpoint: str) -> Any:
    kind, _, rest = endpoint.partition(":")
    if kind == "unix":
        return rest
    host, _, port = rest.rpartition(":")
    return host.strip("[]"), int(port)


def threads() -> set[str]:
    """The driver's threads; a pool of flup's that another test made may outlive it."""
    ours = re.compile(r"fulgate-(\d+|control|stop)")
    return {thread.name for thread in threading.enumerate() if ours.fullmatch(thread.name)}


def test_a_context_manager_starts_and_stops() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Server(hello, Config(bind=("tcp:127.0.0.1:0",)), threads=2) as server:
        (endpoint,) = server.endpoints
        assert re.fullmatch(r"tcp:127\.0\.0\.1:[1-9]\d*", endpoint)
        with Raw(address(endpoint)) as raw:
            assert raw.request().body == b"hello\n"
        assert threads() == {"fulgate-1", "fulgate-2", "fulgate-control"}
    assert server.endpoints == []
    assert threads() == set()
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ConnectionRefusedError):
        Raw(address(endpoint))


@pytest.mark.parametrize("asked", [{}, {"status_path": "/own"}, {"ping_path": "/own"}])
def test_a_scoreboard_is_kept_where_somebody_can_look_at_it(asked: dict[str, str]) -> None:
    with Server(hello, Config(bind=("tcp:127.0.0.1:0",), **asked)) as server:  # type: ignore[arg-type]
        with Raw(address(server.endpoints[0])) as raw:
            assert raw.request().body == b"hello\n"
        if asked:
            assert server.slot is not None
            board = server.slot.board
            until(lambda: board.totals().requests == 1, "it is not counted")
        else:
            assert server.slot is None


def test_an_error_inside_stops_it_too() -> None:
    with pytest.raises(LookupError), Server(hello, bind=("tcp:127.0.0.1:0",)):
        raise LookupError
    assert threads() == set()


def test_a_program_has_no_workers() -> None:
    """It would serve alone, and nobody would know."""
    with pytest.raises(ConfigError, match=r"workers: .*fulgate serve"):
        Server(hello, bind=("tcp:127.0.0.1:0",), workers=3)
    with pytest.raises(ConfigError, match=r"workers: .*fulgate serve"):
        fulgate.serve(hello, bind="tcp:127.0.0.1:0", workers=1)


def test_nothing_exists_before_it_starts(folder: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    path = folder / "sock"
    server = Server(hello, bind=(f"unix:{path}",))
    assert threads() == set()
    assert len(os.listdir("/proc/self/fd")) == before
    assert not path.exists()
    server.bind()
    assert server.endpoints == [f"unix:{path}"]
    assert threads() == set()
    server.bind()  # once is enough
    with Raw(path) as raw:  # who comes now is served later
        server.start()
        assert raw.request().body == b"hello\n"
    server.stop()
    assert not path.exists()


def test_several_endpoints_are_served_at_once(folder: Path) -> None:
    bind = ("tcp:127.0.0.1:0", f"unix:{folder}/one", f"unix:{folder}/two", "tcp:[::1]:0")
    with Server(hello, bind=bind) as server:
        assert len(server.endpoints) == 4
        for endpoint in server.endpoints:
            with Raw(address(endpoint)) as raw:
                assert raw.request().body == b"hello\n"


def test_a_server_starts_once() -> None:
    server = Server(hello, bind=("tcp:127.0.0.1:0",))
    server.start()
    with pytest.raises(RuntimeError, match="started already"):
        server.start()
    with Raw(address(server.endpoints[0])) as raw:  # and is none the worse
        assert raw.request().body == b"hello\n"
    assert server.stop() is True
    assert server.stop() is True
    with pytest.raises(RuntimeError, match="make a new one"):
        server.start()
    assert threads() == set()


def test_stop_without_start() -> None:
    server = Server(hello, bind=("tcp:127.0.0.1:0",))
    server.bind()
    endpoint = server.endpoints[0]
    assert server.stop() is True
    server.cut()
    with pytest.raises(ConnectionRefusedError):
        Raw(address(endpoint))


def test_a_start_that_fails_leaves_nothing(folder: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    path = folder / "sock"
    with pytest.raises(ConfigError, match="no poller"):
        Server(hello, bind=(f"unix:{path}",), poller="kqueue").start()
    assert not path.exists()
    with pytest.raises(ConfigError, match="access"):
        Server(hello, bind=(f"unix:{path}",), access_logfile=str(folder / "no" / "access")).start()
    assert not path.exists()
    assert threads() == set()
    assert len(os.listdir("/proc/self/fd")) == before


def scarce(monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """Have the system give no thread of this name."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == first:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)


@pytest.mark.parametrize("first", ["fulgate-control", "fulgate-1"])
def test_without_any_thread_it_does_not_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    scarce(monkeypatch, first)
    with pytest.raises(NoThreads):
        Server(hello, bind=(f"unix:{folder}/sock",)).start()
    assert not (folder / "sock").exists()
    assert threads() == set()
    assert len(os.listdir("/proc/self/fd")) == before


def test_with_few_threads_it_serves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scarce(monkeypatch, "fulgate-3")
    with Server(hello, bind=(f"unix:{folder}/sock",), threads=8):
        assert threads() == {"fulgate-1", "fulgate-2", "fulgate-control"}
        with Raw(folder / "sock") as raw:
            assert raw.request().body == b"hello\n"
    assert threads() == set()


def test_a_socket_that_cannot_be_had(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = Server(hello, bind=(f"unix:{folder}/sock", f"tcp:127.0.0.1:{port}"))
        with pytest.raises(BindError, match="in use"):
            server.start()
    assert not (folder / "sock").exists()
    assert threads() == set()


def test_settings_are_checked_when_it_is_made() -> None:
    with pytest.raises(ConfigError, match="there is no setting 'thraeds'"):
        Server(hello, thraeds=2)
    with pytest.raises(ConfigError, match="threads"):
        Server(hello, threads=0)


def test_settings_override_those_of_the_config() -> None:
    server = Server(hello, Config(threads=3, queue=7), threads=5)
    assert (server.config.threads, server.config.queue) == (5, 7)


@pytest.mark.statement("2")
def test_web_servers_may_be_named_in_the_environment() -> None:
    bind = ("tcp:127.0.0.1:0",)
    for listed, served in (("127.0.0.1", True), ("127.0.0.2", False)):
        with Server(hello, bind=bind, environ={"FCGI_WEB_SERVER_ADDRS": listed}) as server:
            with Raw(address(server.endpoints[0])) as raw:
                if served:
                    assert raw.request().body == b"hello\n"
                else:
                    assert raw.closed()


@pytest.mark.statement("11")
def test_what_it_says_of_itself() -> None:
    with Server(hello, bind=("tcp:127.0.0.1:0",), threads=3, queue=4) as server:
        with Raw(address(server.endpoints[0])) as raw:
            assert raw.values(b"FCGI_MAX_CONNS", b"FCGI_MAX_REQS", b"FCGI_MPXS_CONNS", b"X") == {
                b"FCGI_MAX_CONNS": str(Config().worker_connections).encode(),
                b"FCGI_MAX_REQS": b"7",
                b"FCGI_MPXS_CONNS": b"1",
            }


@pytest.mark.parametrize("count", [1, 2])
def test_multithread_is_said(count: int) -> None:
    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        return answer(start, str(environ["wsgi.multithread"]).encode())

    with Server(app, bind=("tcp:127.0.0.1:0",), threads=count) as server:
        with Raw(address(server.endpoints[0])) as raw:
            assert raw.request().body == str(count > 1).encode()


def test_the_access_log_has_a_line_for_each_request(folder: Path) -> None:
    path = folder / "access.log"
    gate = Gate()
    with Server(
        gate,
        bind=(f"unix:{folder}/sock",),
        access_logfile=str(path),
        threads=1,
        queue=1,
        limit_request_body=10,
    ) as server:
        with Raw(folder / "sock") as raw, Raw(folder / "sock") as held:
            raw.request("/one")
            raw.request("/large", CONTENT_LENGTH="11", REQUEST_METHOD="POST")
            held.expect()
            held.send(whole("/wait"))
            until(lambda: gate.inside, "it did not start")
            with Raw(folder / "sock") as queued, Raw(folder / "sock") as shed:
                queued.expect()
                queued.send(whole("/queued"))
                queued.values(b"FCGI_MPXS_CONNS")
                assert shed.request("/shed").status.startswith("503")
                held.send(record(ABORT_REQUEST, 1))
                assert queued.answer().body == b"/queued"
        server.stop()
    found = re.findall(r'"\w+ (/\w+) [^"]*" (\S+) .* (\S+)\n', path.read_text())
    assert sorted(found) == [
        ("/large", "413", "refused"),
        ("/one", "200", "ok"),
        ("/queued", "200", "ok"),
        ("/shed", "503", "refused"),
        ("/wait", "-", "aborted"),
    ]


def whole(path: str) -> bytes:
    return head(path) + record(STDIN, 1)


# serve, and its signals, in processes of their own

SERVER = """\
    import os, signal, sys, threading
    import fulgate

    path, how = os.environ["SERVE"].split()
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def app(environ, start):
        if environ["PATH_INFO"] == "/wait":
            open(path + ".inside", "w").close()
            while not os.path.exists(path + ".go") and not environ["fulgate.aborted"]():
                threading.Event().wait(0.01)
        if environ["PATH_INFO"] == "/signal":
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        if environ["PATH_INFO"] == "/stuck":
            open(path + ".inside", "w").close()
            threading.Event().wait()
        start("200 OK", [])
        return [b"ok"]

    status = fulgate.serve(app, bind="unix:" + path, threads=4, graceful_timeout=float(how))
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    assert not os.path.exists(path) or status
    sys.exit(status)
"""


@contextmanager
def serving(path: Path, graceful: float = 60.0) -> Iterator[subprocess.Popen[str]]:
    process = python(SERVER, env={"SERVE": f"{path} {graceful}"})
    try:
        until(lambda: connects(path), "it does not listen")
        yield process
    finally:
        process.kill()
        _, errors = process.communicate()
        assert "Traceback" not in errors, errors


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def held(path: Path, where: str = "/wait") -> Raw:
    raw = Raw(path)
    raw.expect()
    raw.send(whole(where))
    until(Path(f"{path}.inside").exists, "it is not in the application")
    return raw


@pytest.mark.statement("29")
def test_a_signal_that_another_thread_gets_ends_it(folder: Path) -> None:
    path = folder / "sock"
    with serving(path) as process:
        with Raw(path) as raw:
            assert raw.request("/signal").body == b"ok"
        assert process.wait(30) == 0


@pytest.mark.statement("29")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_idle_connections_open(folder: Path, number: int) -> None:
    path = folder / "sock"
    with serving(path) as process:
        clients = [Raw(path) for _ in range(100)]
        for raw in clients:
            raw.request()
        process.send_signal(number)
        assert process.wait(30) == 0
        for raw in clients:
            assert raw.closed()
            raw.socket.close()


@pytest.mark.statement("29")
def test_a_signal_lets_requests_end(folder: Path) -> None:
    path = folder / "sock"
    with serving(path) as process:
        raw = held(path)
        process.terminate()
        until(lambda: not connects(path), "it accepts")
        Path(f"{path}.go").touch()
        assert raw.answer().body == b"ok"
        assert process.wait(30) == 0
        raw.socket.close()


def test_the_graceful_timeout_ends_what_runs(folder: Path) -> None:
    path = folder / "sock"
    with serving(path, graceful=0.2) as process:
        raw = held(path)
        process.terminate()
        assert process.wait(30) == 0
        with pytest.raises(EOFError):
            raw.answer()
        raw.socket.close()


@pytest.mark.parametrize("where", ["/wait", "/stuck"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(folder: Path, number: int, where: str) -> None:
    path = folder / "sock"
    with serving(path) as process:
        raw = held(path, where)
        process.terminate()
        until(lambda: not connects(path), "it accepts")
        process.send_signal(number)
        assert process.wait(30) == 128 + number
        with pytest.raises(EOFError):
            raw.answer()
        raw.socket.close()


def test_run_wants_the_main_thread() -> None:
    raised = Flag()

    def call() -> None:
        try:
            run(Server(hello, bind=("tcp:127.0.0.1:0",)))
        except ValueError:
            raised.set()

    thread = threading.Thread(target=call)
    thread.start()
    raised.come()
    thread.join()
    assert threads() == set()


def test_serve_raises_what_start_raises(folder: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    (folder / "sock").write_text("a file of somebody's")
    with pytest.raises(BindError):
        fulgate.serve(hello, bind=f"unix:{folder}/sock")
    assert (folder / "sock").read_text() == "a file of somebody's"
    assert signal.getsignal(signal.SIGTERM) is before
