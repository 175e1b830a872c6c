"""flup's servers: how they start, what they bind, and what ends them."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fulgate.errors import BindError
from fulgate.flup.server import cgi, fcgi, fcgi_fork, fcgi_single
from tests import flup
from tests.alone import free_port
from tests.apps import app
from tests.flup import Program, environment, reachable, serving, until
from tests.model import STDIN
from tests.raw import Raw, head, record
from tests.statements import query

KINDS = ["fcgi", "fcgi_single", "fcgi_fork"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("number", "returned"),
    [(signal.SIGTERM, "False"), (signal.SIGINT, "False"), (signal.SIGHUP, "True")],
)
def test_signals_end_run(folder: Path, kind: str, number: int, returned: str) -> None:
    """At once, also with connections that are kept alive."""
    with flup.server(folder, kind) as program:
        idle = [program.raw() for _ in range(5)]
        assert idle[0].request().body == b"Hello, world!\n"
        assert program.ends(number) == 0
        assert program.log() == f"returned {returned}\n"
        for raw in idle:
            assert raw.closed()
            raw.socket.close()
    assert not (folder / "flup.sock").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_that_runs_is_finished_at_the_end(folder: Path, kind: str) -> None:
    go = folder / "go"
    with flup.server(folder, kind) as program, program.raw() as raw:
        raw.expect()
        raw.send(head("/stream", query(go=go)), record(STDIN, 1))
        raw.until(1, b"first\n")
        program.kill(signal.SIGTERM)
        until(lambda: not reachable(program.address) or kind == "fcgi_single", "it stops to listen")
        go.touch()
        assert raw.answer().body == b"first\nsecond\n"
        assert program.ends() == 0
        assert program.log() == "returned False\n"


def cut_again(program: Program) -> bool:
    if gone := program.gone():
        return gone
    program.kill(signal.SIGTERM)
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_signal_cuts(folder: Path, kind: str) -> None:
    with flup.server(folder, kind) as program, program.raw() as raw:
        raw.expect()
        raw.send(head("/stream", query(go=folder / "never")), record(STDIN, 1))
        raw.until(1, b"first\n")
        program.kill(signal.SIGTERM)
        time.sleep(0.2)  # two signals at the same time would be one
        assert not program.gone()
        # On a slow day that was not enough.
        until(lambda: cut_again(program), program.log)
        with pytest.raises(EOFError):
            raw.answer()


@pytest.mark.parametrize("module", [fcgi, fcgi_single, fcgi_fork])
def test_off_the_main_thread(folder: Path, module: Any) -> None:
    """It serves, sets no signal handler, and `shutdown` ends it."""
    path = str(folder / "s")
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    server = module.WSGIServer(app, bindAddress=path)
    for _ in range(2):  # and it runs again
        with serving(server, path), Raw(path) as raw:
            assert raw.request().body == b"Hello, world!\n"
            assert before == [
                signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            ]
        assert not Path(path).exists()
    names = [thread.name for thread in threading.enumerate() if "fulgate" in thread.name]
    assert names == []


@pytest.mark.parametrize("module", [fcgi, fcgi_single, fcgi_fork])
def test_shutdown_before_run(folder: Path, module: Any) -> None:
    server = module.WSGIServer(app, bindAddress=str(folder / "s"))
    server.shutdown()
    assert server.run() is False


@pytest.mark.parametrize("module", [fcgi, fcgi_single])
def test_the_application_ends_it(folder: Path, module: Any) -> None:
    """`shutdown` does not wait, so that a request may call it, and be answered."""
    path = str(folder / "s")

    def ends(environ: Any, start: Any) -> Any:
        server.shutdown()
        start("200 OK", [])
        return [b"the last"]

    server = module.WSGIServer(ends, bindAddress=path)
    with serving(server, path) as thread, Raw(path) as raw:
        assert raw.request().body == b"the last"
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize("module", [fcgi, fcgi_single, fcgi_fork])
def test_nothing_before_run_owns_a_thread_or_a_socket(folder: Path, module: Any) -> None:
    threads = threading.active_count()
    server = module.WSGIServer(app, bindAddress=str(folder / "s"))
    assert threading.active_count() == threads
    assert not (folder / "s").exists()
    assert server.application is app


def test_the_loop_calls_back(folder: Path) -> None:
    class Counting(fcgi.WSGIServer):
        turns = 0

        def _mainloopPeriodic(self) -> None:
            self.turns += 1
            if self.turns == 2:
                self._exit(reload=True)

    assert Counting(app, bindAddress=str(folder / "s")).run() is True


# ---------------------------------------------------------------- bindAddress


@pytest.mark.parametrize(
    ("umask", "mode"), [(None, 0o755), (0o000, 0o777), (0o007, 0o770), (0o077, 0o700)]
)
def test_the_umask_of_the_socket(folder: Path, umask: int | None, mode: int) -> None:
    before = os.umask(0o022)
    try:
        path = folder / "s"
        with serving(fcgi.WSGIServer(app, bindAddress=str(path), umask=umask), str(path)):
            assert stat.S_IMODE(path.stat().st_mode) == mode
            assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_tcp(folder: Path) -> None:
    for host in ("127.0.0.1", "localhost"):
        port = free_port()
        server = fcgi.WSGIServer(app, bindAddress=(host, port))
        with serving(server, ("127.0.0.1", port)), Raw(("127.0.0.1", port)) as raw:
            assert raw.request().body == b"Hello, world!\n"


@pytest.mark.parametrize("rest", [(), (0, 0)])
def test_ipv6(rest: tuple[int, ...]) -> None:
    port = free_port()
    server = fcgi.WSGIServer(app, bindAddress=("::1", port, *rest))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        with socket.socket(socket.AF_INET6) as probe:
            until(lambda: probe.connect_ex(("::1", port)) == 0, "it listens")
    finally:
        server.shutdown()
        thread.join(30)


def test_all_interfaces_are_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    with serving(fcgi.WSGIServer(app, bindAddress=("", port)), ("127.0.0.1", port)):
        with Raw(("127.0.0.1", port)) as raw:
            assert raw.request().body == b"Hello, world!\n"
    assert f"tcp:0.0.0.0:{port} lets every machine" in caplog.text
    caplog.clear()
    monkeypatch.setenv("FCGI_WEB_SERVER_ADDRS", "127.0.0.1")
    with serving(fcgi.WSGIServer(app, bindAddress=("", port)), ("127.0.0.1", port)):
        pass
    assert "every machine" not in caplog.text


@pytest.mark.parametrize("module", [fcgi, fcgi_single, fcgi_fork])
def test_a_file_in_the_way_is_left_alone(folder: Path, module: Any) -> None:
    path = folder / "precious"
    path.write_text("data")
    with pytest.raises(BindError, match="not a socket; it was left alone"):
        module.WSGIServer(app, bindAddress=str(path)).run()
    assert path.read_text() == "data"


def test_a_stale_socket_is_replaced(folder: Path) -> None:
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with serving(fcgi.WSGIServer(app, bindAddress=str(path)), str(path)), Raw(path) as raw:
        assert raw.request().body == b"Hello, world!\n"


def test_a_wrong_address() -> None:
    with pytest.raises(ValueError, match="bindAddress"):
        fcgi.WSGIServer(app, bindAddress=("127.0.0.1",)).run()


@pytest.mark.parametrize("kind", KINDS)
def test_the_socket_on_descriptor_0(folder: Path, kind: str) -> None:
    path = folder / "flup.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(5)
        program = flup.Program(
            folder,
            [flup.HERE / "serve.py", kind, "{}"],
            str(path),
            stdin=listener.fileno(),
        )
    with program:
        program.says_hello()
        assert program.ends(signal.SIGTERM) == 0
    assert path.exists(), "it is the web server's"


def test_descriptor_0_serves_again_after_sighup(folder: Path) -> None:
    path = folder / "flup.sock"
    script = folder / "again.py"
    script.write_text(
        "from fulgate.flup.server.fcgi import WSGIServer\n"
        "from tests.apps import app\n"
        "while WSGIServer(app).run():\n"
        "    print('again', flush=True)\n"
    )
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(5)
        program = Program(folder, [script], str(path), stdin=listener.fileno())
    with program:
        program.says_hello()
        program.kill(signal.SIGHUP)
        until(lambda: "again" in program.log(), program.log)
        program.says_hello()
        assert program.ends(signal.SIGTERM) == 0


# ---------------------------------------------------------------- CGI

CGI = {
    "GATEWAY_INTERFACE": "CGI/1.1",
    "REQUEST_METHOD": "POST",
    "SCRIPT_NAME": "/x.cgi",
    "PATH_INFO": "/about",
    "QUERY_STRING": "",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "SERVER_NAME": "localhost",
    "SERVER_PORT": "80",
    "CONTENT_LENGTH": "5",
}


def as_cgi(arguments: list[str], **env: str) -> str:
    process = subprocess.run(
        [sys.executable, *arguments],
        input="hello",
        capture_output=True,
        text=True,
        timeout=30,
        env=environment(**env),
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_cgi_where_descriptor_0_is_no_socket(kind: str) -> None:
    out = as_cgi([str(flup.HERE / "serve.py"), kind, "{}"], **CGI)
    top, _, body = out.partition("\n\n")
    assert top.splitlines()[0] == "Status: 200 OK"
    facts = json.loads(body)
    assert (facts["run_once"], facts["multiprocess"], facts["multithread"]) == (True, True, False)
    assert facts["main"]


def test_cgi_reads_its_body_and_has_the_environ() -> None:
    script = (
        "from fulgate.flup.server.fcgi import WSGIServer\n"
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [('X-Mine', environ['mine'])])\n"
        "    return [environ['wsgi.input'].read(), environ['SCRIPT_NAME']]\n"
        "WSGIServer(app, environ={'mine': 'yes'}, forceCGI=True).run()\n"
        "raise SystemExit('it went on')\n"
    )
    out = as_cgi(["-c", script], **CGI)
    assert "X-Mine: yes\n" in out
    assert out.endswith("\n\nhello/x.cgi")


@pytest.mark.parametrize("forced", [{"env": "Y"}, {"env": "y"}, {"argument": "1"}])
def test_cgi_is_forced_though_there_is_a_socket(folder: Path, forced: dict[str, str]) -> None:
    arguments = {"forceCGI": True} if "argument" in forced else {}
    env = {**CGI, "CONTENT_LENGTH": ""}
    if "env" in forced:
        env["FCGI_FORCE_CGI"] = forced["env"]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen(5)
        process = subprocess.run(
            [sys.executable, flup.HERE / "serve.py", "fcgi", json.dumps(arguments)],
            stdin=listener.fileno(),
            capture_output=True,
            text=True,
            timeout=30,
            env=environment(**env),
            check=False,
        )
    assert process.stdout.startswith("Status: 200 OK"), process.stderr


def test_the_cgi_server() -> None:
    script = (
        "from fulgate.flup.server.cgi import WSGIServer\n"
        "from tests.apps import app\n"
        "WSGIServer(app).run()\n"
    )
    out = as_cgi(["-c", script], **{**CGI, "PATH_INFO": "/digest"})
    assert '"length": 5' in out
    assert cgi.WSGIServer(app).application is app


# ---------------------------------------------------------------- who may connect


@pytest.mark.statement("2")
@pytest.mark.parametrize("module", [fcgi, fcgi_single, fcgi_fork])
@pytest.mark.parametrize(
    ("addresses", "served"),
    [("127.0.0.1", True), ("10.0.0.1, 127.0.0.1", True), ("10.1.1.1", False)],
)
def test_fcgi_web_server_addrs(
    module: Any, addresses: str, served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FCGI_WEB_SERVER_ADDRS", addresses)
    port = free_port()
    with serving(module.WSGIServer(app, bindAddress=("127.0.0.1", port)), ("127.0.0.1", port)):
        with Raw(("127.0.0.1", port)) as raw:
            if served:
                assert raw.request().body == b"Hello, world!\n"
            else:
                assert raw.closed()


@pytest.mark.parametrize("module", [fcgi, fcgi_single, fcgi_fork])
def test_is_client_allowed_may_be_overridden(folder: Path, module: Any) -> None:
    asked = folder / "asked"

    class Choosy(module.WSGIServer):  # type: ignore[misc]
        def _isClientAllowed(self, addr: Any) -> bool:
            asked.write_text(repr(addr))
            return (folder / "open").exists()

    path = str(folder / "s")
    with serving(Choosy(app, bindAddress=path), path):
        with Raw(path) as raw:
            assert raw.closed()
        assert asked.read_text() == "''"
        (folder / "open").touch()
        with Raw(path) as raw:
            assert raw.request().body == b"Hello, world!\n"
