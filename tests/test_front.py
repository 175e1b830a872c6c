"""The HTTP front: uvicorn in a thread before a real server, and static files."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from fulgate.client.static import parse_static
from fulgate.config import Config
from fulgate.errors import BindError, ConfigError
from fulgate.front import Front
from fulgate.server import Server
from tests import apps
from tests.command import Served

PATIENCE = 30.0


class Client:
    """Asks a front, each time over a connection of its own."""

    def __init__(self, front: Front, stack: contextlib.ExitStack) -> None:
        self.front = front
        self.stack = stack

    def open(self) -> http.client.HTTPConnection:
        host, _, port = self.front.url.removeprefix("http://").rpartition(":")
        client = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=PATIENCE)
        self.stack.callback(client.close)
        return client

    def ask(
        self, method: str, target: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> http.client.HTTPResponse:
        client = self.open()
        client.request(method, target, body, headers or {})
        return client.getresponse()


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def start_server(folder: Path, stack: contextlib.ExitStack, app: Any) -> str:
    config = Config(bind=(f"unix:{folder}/app.sock",), graceful_timeout=0)
    return stack.enter_context(Server(app, config)).endpoints[0]


def start_front(stack: contextlib.ExitStack, endpoint: str, *static: str) -> Client:
    front = Front("127.0.0.1:0", endpoint, static)
    front.start()
    stack.callback(front.stop)
    return Client(front, stack)


def switch(environ: dict[str, Any], start_response: Any) -> Any:
    """Run the application of `tests.apps` that the path names."""
    app = getattr(apps, environ["PATH_INFO"].strip("/"))
    return app(environ, start_response)


@pytest.fixture
def client(folder: Path, stack: contextlib.ExitStack) -> Client:
    return start_front(stack, start_server(folder, stack, switch))


# before a real server


def test_requests_pass(client: Client) -> None:
    answer = client.ask("GET", "/hello")
    assert (answer.status, answer.read()) == (200, b"Hello, world!\n")
    assert len(answer.headers.get_all("Date") or []) == 1
    assert "Server" not in answer.headers
    assert client.ask("HEAD", "/hello").read() == b""
    found = json.loads(client.ask("GET", "/environ?a=%20b", headers={"X-A": "b"}).read())
    assert found["SCRIPT_NAME"] == ""
    assert found["PATH_INFO"] == "/environ"
    assert found["QUERY_STRING"] == "a=%20b"
    assert found["HTTP_X_A"] == "b"
    assert found["REMOTE_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize("size", [0, 70_000, 5_000_000])
def test_bodies_pass(client: Client, size: int) -> None:
    body = os.urandom(size)
    pieces = [body[n : n + 100_000] for n in range(0, size, 100_000)]
    for sent, length in ((body, str(size)), (iter(pieces), None)):
        found = json.loads(client.ask("POST", "/digest", sent).read())
        assert found["length"] == size
        assert found["sha256"] == hashlib.sha256(body).hexdigest()
        assert found["content_length"] == length


def test_an_answer_is_seen_before_it_ends(client: Client, folder: Path) -> None:
    go = folder / "go"
    answer = client.ask("GET", f"/stream?go={go}")
    assert answer.readline() == b"first\n"
    go.touch()
    assert answer.read() == b"second\n"


def test_an_application_that_fails_midway_is_no_whole_answer(
    folder: Path, stack: contextlib.ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"half"
        raise ValueError("midway")

    client = start_front(stack, start_server(folder, stack, app))
    answer = client.ask("GET", "/")
    assert answer.status == 200
    with pytest.raises(http.client.IncompleteRead):
        answer.read()
    # One line from the front: the traceback of the application is in the application's log.
    deadline = time.monotonic() + PATIENCE
    while not [r for r in caplog.records if r.name == "fulgate.proxy"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not [r for r in caplog.records if r.name.startswith("uvicorn")]


def test_a_client_that_goes_is_told_to_the_application(
    folder: Path, stack: contextlib.ExitStack
) -> None:
    gone = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"there"
        deadline = time.monotonic() + PATIENCE
        while not environ["fulgate.aborted"]() and time.monotonic() < deadline:
            time.sleep(0.01)
        if environ["fulgate.aborted"]():
            gone.set()

    client = start_front(stack, start_server(folder, stack, app))
    connection = client.open()
    connection.request("GET", "/")
    assert connection.getresponse().read1(5) == b"there"
    connection.close()
    assert gone.wait(PATIENCE)


# its life


def test_a_port_in_use_is_a_bind_error(client: Client) -> None:
    taken = client.front.url.removeprefix("http://")
    front = Front(taken, "unix:/none")
    with pytest.raises(BindError, match="in use"):
        front.start()
    assert front.stop()
    with pytest.raises(BindError):
        Front("no-such-host.invalid:0", "unix:/none").start()


@pytest.mark.parametrize("http", ["", "8000", "host:", "host:65536", "[::1:80", "a/b:80"])
def test_an_address_that_is_none_is_a_config_error(http: str) -> None:
    with pytest.raises(ConfigError):
        Front(http, "unix:/none")


@pytest.mark.parametrize(
    ("http", "url"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        (":8000", "http://127.0.0.1:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("localhost:80", "http://localhost:80"),
    ],
)
def test_the_url_is_one_to_open(http: str, url: str) -> None:
    assert Front(http, "unix:/none").url == url


def test_a_front_starts_once(client: Client) -> None:
    with pytest.raises(RuntimeError):
        client.front.start()
    assert client.front.stop()
    assert client.front.stop()
    assert Front("127.0.0.1:0", "unix:/none").stop()


def test_a_stop_lets_answers_end(client: Client, folder: Path) -> None:
    go = folder / "go"
    answer = client.ask("GET", f"/stream?go={go}")
    assert answer.readline() == b"first\n"
    stopped: list[bool] = []
    stopper = threading.Thread(target=lambda: stopped.append(client.front.stop(PATIENCE)))
    stopper.start()
    host, port = client.front.url.removeprefix("http://").split(":")
    while True:  # until it accepts no more
        try:
            socket.create_connection((host, int(port)), PATIENCE).close()
        except (ConnectionRefusedError, ConnectionResetError):  # reset: it was about to
            break
    go.touch()
    assert answer.read() == b"second\n"
    stopper.join(PATIENCE)
    assert stopped == [True]


def test_a_stop_cuts_what_does_not_end(
    client: Client, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go = folder / "go"
    idle = client.open()
    idle.request("GET", "/hello")
    idle.getresponse().read()
    socket.create_connection((idle.host, idle.port)).close()
    silent = socket.create_connection((idle.host, idle.port))
    client.stack.enter_context(silent)
    answer = client.ask("GET", f"/stream?go={go}")
    assert answer.readline() == b"first\n"
    # On a slow day its thread is still about to end then; the requests are cut in any case.
    assert client.front.stop(0.5) or client.front.stop(PATIENCE)
    with pytest.raises(http.client.IncompleteRead):
        answer.read()
    assert silent.recv(1) == b""
    assert not [thread for thread in threading.enumerate() if thread.name == "fulgate-http"]
    assert not [r for r in caplog.records if r.levelno > logging.INFO]
    go.touch()


def test_the_handlers_of_signals_stay(client: Client) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert client.ask("GET", "/hello").status == 200
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_uvicorn_is_quiet(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert client.ask("GET", "/hello").status == 200
    client.front.stop()
    assert [r.getMessage() for r in caplog.records if r.name.startswith("uvicorn")] == []
    assert [r.getMessage() for r in caplog.records if r.name == "fulgate.front"] == []


def test_what_is_no_http_is_logged_by_fulgate(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    connection = client.open()
    connection.connect()
    connection.sock.sendall(b"nonsense\r\n\r\n")
    assert connection.sock.recv(12) == b"HTTP/1.1 400"
    assert "fulgate.front" in {record.name for record in caplog.records}


def test_without_uvicorn_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ImportError('not there')")
    code = "import fulgate.front"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert "fulgate[http]" in result.stderr.splitlines()[-1]


# static files


@pytest.fixture
def site(folder: Path) -> Path:
    site = folder / "site"
    (site / "sub").mkdir(parents=True)
    (site / ".hidden").mkdir()
    (site / "hello.txt").write_text("hello world")
    (site / "a b\u00fc.css").write_text("x{}")
    (site / "app.js").write_text("1")
    (site / "data").write_bytes(b"\0\1")
    (site / "empty.html").write_text("")
    (site / "archive.tar.gz").write_bytes(b"\x1f\x8b")
    (site / "sub" / "index.html").write_text("<p>index")
    (site / ".hidden" / "x.txt").write_text("hidden")
    (site / ".env").write_text("secret")
    (folder / "outside.txt").write_text("outside")
    (site / "out.txt").symlink_to(folder / "outside.txt")
    (site / "in.txt").symlink_to("hello.txt")
    (folder / "site2").mkdir()
    (folder / "site2" / "x.txt").write_text("outside")
    return site


@pytest.fixture
def files(folder: Path, stack: contextlib.ExitStack, site: Path) -> Client:
    other = folder / "other"
    other.mkdir()
    (other / "deep.txt").write_text("deep")
    endpoint = start_server(folder, stack, apps.hello)
    return start_front(stack, endpoint, f"/static={site}", f"/static/deeper/={other}")


@pytest.mark.parametrize(
    ("target", "kind", "body"),
    [
        ("/static/hello.txt", "text/plain; charset=utf-8", b"hello world"),
        ("/static/hello.txt?v=1", "text/plain; charset=utf-8", b"hello world"),
        ("/static/in.txt", "text/plain; charset=utf-8", b"hello world"),
        ("/static/a%20b%C3%BC.css", "text/css; charset=utf-8", b"x{}"),
        ("/static/app.js", "text/javascript; charset=utf-8", b"1"),
        ("/static/data", "application/octet-stream", b"\0\1"),
        ("/static/empty.html", "text/html; charset=utf-8", b""),
        ("/static/archive.tar.gz", "application/gzip", b"\x1f\x8b"),
        ("/static/sub/", "text/html; charset=utf-8", b"<p>index"),
        ("/static/deeper/deep.txt", "text/plain; charset=utf-8", b"deep"),
    ],
)
def test_files_are_served(files: Client, target: str, kind: str, body: bytes) -> None:
    answer = files.ask("GET", target)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == kind
    assert answer.headers["Content-Length"] == str(len(body))
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "Content-Encoding" not in answer.headers
    assert answer.read() == body
    head = files.ask("HEAD", target)
    assert head.headers["Content-Length"] == str(len(body))
    assert head.read() == b""


@pytest.mark.parametrize(
    "target",
    [
        "/static/none",
        "/static/",
        "/static/.env",
        "/static/.hidden/x.txt",
        "/static/../outside.txt",
        "/static/%2e%2e/outside.txt",
        "/static/..%2foutside.txt",
        "/static/sub/../../outside.txt",
        "/static/sub%2findex.html",
        "/static/../site2/x.txt",
        "/static//outside.txt",
        "/static/out.txt",
        "/static/hello.txt/",
        "/static/hello.txt/x",
        "/static/hello.txt%00",
        "/static/" + "x" * 300,
        "/static/%FF",
    ],
)
def test_nothing_else_is_served(files: Client, target: str) -> None:
    answer = files.ask("GET", target)
    assert answer.status == 404
    assert answer.read() == b"Not Found\n"


def test_all_else_goes_to_the_application(files: Client) -> None:
    for target in ("/", "/static", "/staticx", "/hello.txt"):
        assert files.ask("GET", target).read() == b"Hello, world!\n"


def test_a_folder_without_its_slash_redirects(files: Client) -> None:
    answer = files.ask("GET", "/static/sub")
    assert (answer.status, answer.headers["Location"]) == (301, "./sub/")


def test_other_methods_are_not_allowed(files: Client) -> None:
    answer = files.ask("POST", "/static/hello.txt", b"x")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("asked", "status", "body", "content_range"),
    [
        ("bytes=0-4", 206, b"hello", "bytes 0-4/11"),
        ("bytes=6-", 206, b"world", "bytes 6-10/11"),
        ("bytes=-3", 206, b"rld", "bytes 8-10/11"),
        ("bytes=-99", 206, b"hello world", "bytes 0-10/11"),
        ("bytes=10-99", 206, b"d", "bytes 10-10/11"),
        ("bytes=11-", 416, b"", "bytes */11"),
        ("bytes=-0", 416, b"", "bytes */11"),
        ("bytes=5-2", 200, b"hello world", None),
        ("bytes=0-1,3-4", 200, b"hello world", None),
        ("bytes=-", 200, b"hello world", None),
        ("lines=0-1", 200, b"hello world", None),
    ],
)
def test_ranges(
    files: Client, asked: str, status: int, body: bytes, content_range: str | None
) -> None:
    answer = files.ask("GET", "/static/hello.txt", headers={"Range": asked})
    assert answer.status == status
    assert answer.headers["Content-Range"] == content_range
    assert answer.read() == body


def test_what_the_client_has_is_not_sent_again(files: Client, site: Path) -> None:
    first = files.ask("GET", "/static/hello.txt")
    etag, modified = first.headers["ETag"], first.headers["Last-Modified"]
    old = formatdate(0, usegmt=True)

    def ask(**headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return files.ask("GET", "/static/hello.txt", headers=named).status

    assert ask(If_None_Match=etag) == 304
    assert ask(If_None_Match=f'"x", W/{etag}') == 304
    assert ask(If_None_Match="*") == 304
    assert ask(If_None_Match='"x"', If_Modified_Since=modified) == 200
    assert ask(If_Modified_Since=modified) == 304
    assert ask(If_Modified_Since=old) == 200
    assert ask(If_Modified_Since="nonsense") == 200
    assert ask(Range="bytes=0-1", If_Range=etag) == 206
    assert ask(Range="bytes=0-1", If_Range=modified) == 206
    assert ask(Range="bytes=0-1", If_Range='"x"') == 200
    assert ask(Range="bytes=0-1", If_Range=old) == 200
    (site / "hello.txt").write_text("changed, and longer")
    assert ask(If_None_Match=etag) == 200


def test_a_large_file_passes_whole(files: Client, site: Path) -> None:
    content = os.urandom(3_000_000)
    (site / "large").write_bytes(content)
    assert files.ask("GET", "/static/large").read() == content


@pytest.mark.parametrize("text", ["", "/static", "static=x", "/static=", "/static=/no/where"])
def test_static_settings_that_cannot_be_used(text: str) -> None:
    with pytest.raises(ConfigError, match="static"):
        parse_static(text)


def test_ctrl_c_does_not_wait_for_a_stream_in_development(folder: Path) -> None:
    command = ("fulgate.demo:app", "--http", "127.0.0.1:0")
    with Served(*command, cwd=folder) as served:
        url = served.wait_for(r"Open \S+")
        host = url.removeprefix("Open http://").rstrip("/")
        client = http.client.HTTPConnection(host, timeout=20)
        client.request("GET", "/stream")
        answer = client.getresponse()
        assert answer.readline()
        assert served.end(signal.SIGINT) == 0
        with contextlib.suppress(OSError, http.client.HTTPException):
            assert b"Back</a>" not in answer.read()
        client.close()
    assert "after 0.3 s" in served.text


@pytest.mark.parametrize("bound", [True, False])
def test_lines_for_nginx_are_of_a_socket_that_it_may_use(folder: Path, bound: bool) -> None:
    bind = ("--bind", f"unix:{folder}/sock") if bound else ()
    command = ("fulgate.demo:app", "--http", "127.0.0.1:0", *bind)
    with Served(*command, cwd=folder) as served:
        served.wait_for(r"Open \S+\n")
        assert ("For nginx:" in served.text) == (f"{folder}/sock;" in served.text) == bound
