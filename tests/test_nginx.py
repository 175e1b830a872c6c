"""Fulgate behind a real nginx, each run by the test as a process of its own."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.servers import Fulgate, Nginx, Running, connect
from tests.servers.nginx import location
from tests.servers.web import appears, eventually, logs, request

pytestmark = pytest.mark.requires_server("nginx")

APP = "tests.apps:app"
LARGE = b"".join(hashlib.sha256(str(n).encode()).digest() for n in range(100_000))  # 3.2 MB

Behind = Callable[..., tuple[Nginx, Fulgate]]


@pytest.fixture
def behind(running: Running) -> Behind:
    """Start Fulgate, and nginx in front of it."""

    def start(
        *locations: str, options: tuple[str, ...] = (), **nginx: Any
    ) -> tuple[Nginx, Fulgate]:
        fulgate = running(Fulgate, APP, *options)
        return running(Nginx, fulgate.backend, *locations, **nginx), fulgate

    return start


@pytest.fixture(params=[False, True], ids=["closing", "keepalive"])
def keepalive(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def connections(fulgate: Fulgate) -> set[str]:
    """The inodes of the connections that Fulgate holds on its socket, as the kernel lists them."""
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    connected = "03"
    path = str(fulgate.socket)
    return {f[6] for f in fields if len(f) == 8 and f[7] == path and f[5] == connected}


def shown(body: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(body)
    return facts


def test_get(behind: Behind, keepalive: bool) -> None:
    nginx, _ = behind(keepalive=keepalive)
    for _ in range(5):
        answer = request(nginx.port, "/hello")
        assert answer.status == 200
        assert answer.body == b"Hello, world!\n"
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert answer.headers["Content-Length"] == "14"
        assert answer.headers["Server"].startswith("nginx")


def test_head_has_the_length_and_no_body(behind: Behind, keepalive: bool) -> None:
    nginx, _ = behind(keepalive=keepalive)
    for _ in range(3):
        answer = request(nginx.port, "/hello", "HEAD")
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["Content-Length"] == "14"
    assert request(nginx.port, "/hello").body == b"Hello, world!\n"


def test_environ(behind: Behind) -> None:
    nginx, _ = behind()
    answer = request(nginx.port, "/some/where?a=1&b=%20", headers={"X-Thing": "some thing"})
    environ = shown(answer.body)
    expected = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/some/where",
        "QUERY_STRING": "a=1&b=%20",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": str(nginx.port),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_X_THING": "some thing",
        "wsgi.url_scheme": "http",
    }
    assert {name: environ.get(name) for name in expected} == expected
    # Debian's fastcgi_params give $host since 2026, which has no port.
    assert environ["HTTP_HOST"] in ("127.0.0.1", f"127.0.0.1:{nginx.port}")


@pytest.mark.parametrize("body", [b"", b"a=1&b=2", LARGE], ids=["empty", "small", "large"])
@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "unbuffered"])
def test_post(behind: Behind, keepalive: bool, buffered: bool, body: bytes) -> None:
    nginx, _ = behind(keepalive=keepalive, buffer_requests=buffered)
    for _ in range(2):
        facts = shown(request(nginx.port, "/digest", "POST", body).body)
        assert facts == {
            "length": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            "content_length": str(len(body)),
        }


def test_post_is_what_pep_3333_says(behind: Behind) -> None:
    nginx, _ = behind()
    answer = request(
        nginx.port, "/validated", "POST", b"abc", {"Content-Type": "application/octet-stream"}
    )
    assert answer.status == 200
    assert answer.body.decode() == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.statement("23")
@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "unbuffered"])
def test_chunked_upload(behind: Behind, keepalive: bool, buffered: bool) -> None:
    nginx, _ = behind(keepalive=keepalive, buffer_requests=buffered)
    pieces = [LARGE[at : at + 50_000] for at in range(0, len(LARGE), 50_000)]
    facts = shown(request(nginx.port, "/digest", "POST", pieces, chunked=True).body)
    assert facts["sha256"] == hashlib.sha256(LARGE).hexdigest()
    # nginx tells the length when it has the whole body before it passes the request on.
    assert facts["content_length"] == (str(len(LARGE)) if buffered else None)


@pytest.mark.statement("23")
def test_answer_begins_before_the_upload_has_ended(behind: Behind) -> None:
    nginx, _ = behind(location("/", "fastcgi_buffering off;"), buffer_requests=False)
    with connect(nginx.port) as client:
        client.sendall(b"POST /echo HTTP/1.0\r\nHost: localhost\r\nContent-Length: 40000\r\n\r\n")
        client.sendall(b"x" * 20_000)
        seen = b""
        while seen.count(b"x") < 8192:
            piece = client.recv(65536)
            assert piece, seen
            seen += piece
        client.sendall(b"x" * 20_000)
        while piece := client.recv(65536):
            seen += piece
    assert seen.partition(b"\r\n\r\n")[2] == b"x" * 40_000


@pytest.mark.statement("9")
@pytest.mark.statement("10")
def test_connections_are_kept_only_when_nginx_asks_for_it(behind: Behind, keepalive: bool) -> None:
    nginx, fulgate = behind(keepalive=keepalive)
    request(nginx.port, "/hello")
    if keepalive:  # and the one of before, which saw whether Fulgate accepts, is over
        eventually(lambda: len(connections(fulgate)) == 1, "one connection is kept")
    first = connections(fulgate)
    for _ in range(10):
        request(nginx.port, "/hello")
    if keepalive:
        assert len(first) == 1
        assert connections(fulgate) == first
    else:
        eventually(lambda: not connections(fulgate), "none is kept")


def test_client_sees_the_stream_before_the_application_ends(
    behind: Behind, keepalive: bool, tmp_path: Path
) -> None:
    nginx, _ = behind(location("/", "fastcgi_buffering off;"), keepalive=keepalive)
    go = tmp_path / "go"
    connection = http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=30)
    connection.request("GET", f"/stream?go={quote(str(go))}")
    response = connection.getresponse()
    assert response.readline() == b"first\n"
    go.touch()
    assert response.read() == b"second\n"
    connection.close()


@pytest.mark.parametrize(
    ("target", "body"),
    [("endless", b""), ("patient", b"")],
    ids=["while the application writes", "while it computes"],
)
def test_client_that_goes_away(
    behind: Behind, keepalive: bool, tmp_path: Path, target: str, body: bytes
) -> None:
    nginx, fulgate = behind(keepalive=keepalive)
    report, began = tmp_path / "report", tmp_path / "began"
    with connect(nginx.port) as client:
        client.sendall(
            f"GET /{target}?report={report}&began={began} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        )
        if target == "endless":
            assert b"200 OK" in client.recv(100)
        else:
            deadline = time.monotonic() + 30
            while not began.exists() and time.monotonic() < deadline:
                time.sleep(0.005)
    assert "aborted=True" in appears(report)
    assert request(nginx.port, "/hello").status == 200
    assert "Traceback" not in fulgate.log()


def test_client_that_goes_away_within_its_upload(behind: Behind, tmp_path: Path) -> None:
    nginx, fulgate = behind(buffer_requests=False)
    report, began = tmp_path / "report", tmp_path / "began"
    with connect(nginx.port) as client:
        client.sendall(
            f"POST /reader?report={report}&began={began} HTTP/1.1\r\nHost: x\r\n"
            "Content-Length: 1000000\r\n\r\n".encode()
        )
        client.sendall(b"x" * 200_000)
        deadline = time.monotonic() + 30
        while not began.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
    assert appears(report) == "Aborted"
    assert request(nginx.port, "/hello").status == 200
    assert "Traceback" not in fulgate.log()


PATHS = {
    "/plain": "/plain",
    "/a%20b/c+d": "/a b/c+d",
    "/100%25": "/100%",
    "/a%3Fb%23c%26d": "/a?b#c&d",
    "/caf%C3%A9/%E2%82%AC": "/café/€",
    "/a%2Fb": "/a/b",
    "/x%2520y": "/x%20y",
    "/a%5Cb%22c": '/a\\b"c',
}


@pytest.mark.parametrize("target", PATHS)
def test_percent_encoded_path(behind: Behind, target: str) -> None:
    nginx, _ = behind()
    environ = shown(request(nginx.port, target + "?q=%41").body)
    assert environ["PATH_INFO"].encode("latin-1").decode() == PATHS[target]
    assert environ["SCRIPT_NAME"] == ""
    assert environ["QUERY_STRING"] == "q=%41"


def test_path_in_bare_utf8(behind: Behind) -> None:
    nginx, _ = behind()
    with connect(nginx.port) as client:
        client.sendall("GET /café/€?x=é HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    environ = shown(answer.partition(b"\r\n\r\n")[2])
    assert environ["PATH_INFO"].encode("latin-1").decode() == "/café/€"
    assert environ["QUERY_STRING"].encode("latin-1").decode() == "x=é"


def test_path_that_is_not_utf8(behind: Behind) -> None:
    nginx, _ = behind()
    environ = shown(request(nginx.port, "/caf%E9").body)
    assert environ["PATH_INFO"].encode("latin-1") == b"/caf\xe9"


PREFIXES = {
    "told to fulgate": (location("/app"), ("--script-name", "/app")),
    "told by nginx": (location("/app", "fastcgi_param SCRIPT_NAME /app;"), ()),
    "split by nginx": (
        location(
            "/app",
            r"fastcgi_split_path_info ^(/app)(/.*)$;",
            "fastcgi_param PATH_INFO $fastcgi_path_info;",
        ),
        (),
    ),
}


@pytest.mark.parametrize("how", PREFIXES)
def test_location_prefix(behind: Behind, how: str) -> None:
    block, options = PREFIXES[how]
    nginx, _ = behind(block, options=options)
    for target, info in {"/app/x/y": "/x/y", "/app/": "/", "/app/caf%C3%A9": "/cafÃ©"}.items():
        environ = shown(request(nginx.port, target).body)
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/app", info)


def test_four_kilobytes_of_cookies(behind: Behind, keepalive: bool) -> None:
    nginx, _ = behind(keepalive=keepalive)
    cookie = "; ".join(f"cookie{n}={'v' * 90}" for n in range(41))
    assert 4096 < len(cookie) < 8192
    for _ in range(3):
        environ = shown(request(nginx.port, "/", headers={"Cookie": cookie}).body)
        assert environ["HTTP_COOKIE"] == cookie


def test_proxy_header_is_dropped(behind: Behind) -> None:
    nginx, _ = behind()
    environ = shown(request(nginx.port, "/", headers={"Proxy": "http://192.0.2.1:3128"}).body)
    assert "HTTP_PROXY" not in environ


def raw_status(nginx: Nginx, *lines: str) -> int:
    text = "\r\n".join(["GET / HTTP/1.0", "Host: localhost", *lines, "", ""])
    with connect(nginx.port) as client:
        client.sendall(text.encode())
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    return int(answer.split(b" ", 2)[1])


def test_repeated_header(behind: Behind) -> None:
    """nginx 1.22 and older send a parameter for each; newer ones join them."""
    nginx, _ = behind()
    with connect(nginx.port) as client:
        client.sendall(
            b"GET / HTTP/1.0\r\nHost: x\r\nAccept: text/html\r\nAccept: text/plain\r\n"
            b"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 192.0.2.2\r\n\r\n"
        )
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    environ = shown(answer.partition(b"\r\n\r\n")[2])
    assert environ["HTTP_ACCEPT"] == "text/html, text/plain"
    assert environ["HTTP_X_FORWARDED_FOR"] == "192.0.2.1, 192.0.2.2"
    assert raw_status(nginx, "X-User: me") == 200
    version = nginx_version(nginx)
    if version < (1, 23):
        assert raw_status(nginx, "X-User: me", "X-User: root") == 400


def nginx_version(nginx: Nginx) -> tuple[int, ...]:
    server = request(nginx.port, "/hello").headers["Server"]
    return tuple(int(part) for part in server.split("/")[1].split(" ")[0].split("."))


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 10_000_000])
def test_answer_of_any_size(behind: Behind, keepalive: bool, size: int) -> None:
    nginx, _ = behind(keepalive=keepalive)
    pattern = bytes(range(256)) * (size // 256 + 1)
    for _ in range(2):
        assert request(nginx.port, f"/sized?size={size}").body == pattern[:size]


def test_client_that_reads_slowly_gets_everything(behind: Behind) -> None:
    nginx, _ = behind(location("/", "fastcgi_max_temp_file_size 0;"), options=("--threads", "2"))
    size = 4_000_000
    slow = [connect(nginx.port) for _ in range(4)]
    for client in slow:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.sendall(f"GET /sized?size={size} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
    for client in slow:
        with client:
            answer = b"".join(iter(lambda c=client: c.recv(16384), b""))  # type: ignore[misc]
        assert len(answer.partition(b"\r\n\r\n")[2]) == size


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_status_without_a_body(behind: Behind, keepalive: bool, status: str) -> None:
    nginx, _ = behind(keepalive=keepalive)
    for _ in range(3):
        answer = request(nginx.port, f"/empty?status={quote(status)}")
        assert (answer.status, answer.body) == (int(status[:3]), b"")


def test_redirect_and_cookies(behind: Behind) -> None:
    nginx, _ = behind()
    answer = request(nginx.port, "/headers")
    assert answer.status == 302
    assert answer.headers["Location"] == "/elsewhere?a=1"
    assert answer.headers.get_all("Set-Cookie") == ["a=1", "b=2"]


@pytest.mark.statement("30")
def test_application_that_fails(behind: Behind, keepalive: bool) -> None:
    nginx, fulgate = behind(keepalive=keepalive)
    answer = request(nginx.port, "/fails")
    assert answer.status == 500
    assert b"LookupError" not in answer.body
    logs(fulgate, "LookupError: this application fails before it answers")
    assert "LookupError" not in nginx.log()
    assert request(nginx.port, "/hello").status == 200


def test_answer_that_breaks_is_seen_to_be_broken(behind: Behind, keepalive: bool) -> None:
    nginx, fulgate = behind(keepalive=keepalive)
    with pytest.raises(http.client.IncompleteRead):
        request(nginx.port, "/breaks")
    logs(fulgate, "LookupError: this application fails within its answer")
    assert request(nginx.port, "/hello").status == 200


def test_work_after_the_answer(behind: Behind, tmp_path: Path) -> None:
    nginx, _ = behind()
    go, report = tmp_path / "go", tmp_path / "report"
    answer = request(nginx.port, f"/after?go={go}&report={report}")
    assert answer.body == b"at once\n"
    assert not report.exists()
    go.touch()
    assert appears(report) == "done"


def test_many_clients_at_once(behind: Behind, keepalive: bool) -> None:
    nginx, _ = behind(keepalive=keepalive, options=("--threads", "4"))

    def one(n: int) -> bool:
        body = LARGE[n : n + 5000]
        facts = shown(request(nginx.port, "/digest", "POST", body).body)
        return bool(facts["sha256"] == hashlib.sha256(body).hexdigest())

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, range(300))) == [True] * 300


@pytest.mark.statement("29")
def test_sigterm_with_kept_connections(behind: Behind) -> None:
    nginx, fulgate = behind(keepalive=True)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: request(nginx.port, "/hello"), range(40)))
    assert connections(fulgate)
    assert fulgate.stop() == 0
    assert not fulgate.socket.exists()


def test_request_that_runs_ends_before_the_server_does(behind: Behind, tmp_path: Path) -> None:
    nginx, fulgate = behind(location("/", "fastcgi_buffering off;"))
    go = tmp_path / "go"
    connection = http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=30)
    connection.request("GET", f"/stream?go={quote(str(go))}")
    response = connection.getresponse()
    assert response.readline() == b"first\n"
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(fulgate.stop)
        while fulgate.accepts() and not stopped.done():
            time.sleep(0.005)
        go.touch()
        assert response.read() == b"second\n"
        assert stopped.result(30) == 0
    connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("chunked", [False, True], ids=["of a known length", "chunked"])
def test_gibibyte_upload_in_bounded_memory(behind: Behind, chunked: bool) -> None:
    nginx, fulgate = behind(buffer_requests=False)
    size = 1 << 30
    piece = bytes(range(256)) * 4096  # 1 MiB

    def pieces() -> Iterator[bytes]:
        for _ in range(size // len(piece)):
            yield piece

    headers = {} if chunked else {"Content-Length": str(size)}
    answer = request(nginx.port, "/digest", "POST", pieces(), headers, chunked=chunked)
    facts = shown(answer.body)
    sha256 = hashlib.sha256()
    for data in pieces():
        sha256.update(data)
    assert (facts["length"], facts["sha256"]) == (size, sha256.hexdigest())
    peak, unit = fulgate.status("VmHWM").split()
    assert unit == "kB"
    assert int(peak) < 60 * 1024
