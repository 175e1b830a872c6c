"""What a client must see of an application, whatever web server and protocol are in between.

A test module imports all of it, and gives a fixture `site(*options)`, which starts Fulgate with
`tests.apps:app` at the root of a web server, and gives a `Site`.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import pytest

from tests.servers import RealServer, connect
from tests.servers.web import appears, logs, request

APP = "tests.apps:app"
LARGE = b"".join(hashlib.sha256(str(n).encode()).digest() for n in range(100_000))  # 3.2 MB


class Behind(Protocol):
    """Fulgate, as a process of the test's or of the web server's."""

    def log(self) -> str: ...
    def accepts(self) -> bool: ...
    def stop(self) -> int: ...


@dataclass(frozen=True)
class Site:
    """A web server, and Fulgate behind it."""

    web: RealServer
    fulgate: Behind
    chunked: int = 200  # the status of an upload whose length is not told
    sees_breaks: bool = True  # does a client of it see that an answer broke?
    tells_of_leaving: bool = True  # does the application learn that the client went?

    @property
    def port(self) -> int:
        return self.web.port


MakeSite = Callable[..., Site]


def shown(body: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(body)
    return facts


def test_get_and_head(site: MakeSite) -> None:
    one = site()
    for _ in range(5):
        got = request(one.port, "/hello")
        assert (got.status, got.body) == (200, b"Hello, world!\n")
        assert got.headers["Content-Type"] == "text/plain; charset=utf-8"
        head = request(one.port, "/hello", "HEAD")
        assert (head.status, head.body) == (200, b"")


def test_environ(site: MakeSite) -> None:
    one = site()
    got = request(one.port, "/some/where?a=1&b=%20", headers={"X-Thing": "some thing"})
    environ = shown(got.body)
    expected = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/some/where",
        "QUERY_STRING": "a=1&b=%20",
        "SERVER_PORT": str(one.port),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_X_THING": "some thing",
        "wsgi.url_scheme": "http",
    }
    assert {name: environ.get(name) for name in expected} == expected


PATHS = {
    "/": "/",
    "/plain": "/plain",
    "/a/": "/a/",
    "/a%20b/c+d": "/a b/c+d",
    "/100%25": "/100%",
    "/a%3Fb%23c%26d": "/a?b#c&d",
    "/caf%C3%A9/%E2%82%AC": "/café/€",
    "/x%2520y": "/x%20y",
}


def test_paths(site: MakeSite) -> None:
    one = site()
    for target, path in PATHS.items():
        got = request(one.port, target + "?q=%C3%A9")
        assert got.status == 200, (target, got)
        environ = shown(got.body)
        assert environ["SCRIPT_NAME"] == ""
        assert environ["PATH_INFO"].encode("latin-1").decode() == path, target
        assert environ["QUERY_STRING"] == "q=%C3%A9"


def test_bodies(site: MakeSite) -> None:
    one = site()
    for body in (b"", b"a=1&b=2", LARGE):
        facts = shown(request(one.port, "/digest", "POST", body).body)
        assert facts["length"] == len(body)
        assert facts["sha256"] == hashlib.sha256(body).hexdigest()


def test_a_body_is_what_pep_3333_says(site: MakeSite) -> None:
    one = site()
    binary = {"Content-Type": "application/octet-stream"}
    got = request(one.port, "/validated", "POST", b"abc", binary)
    assert got.status == 200
    assert got.body.decode() == hashlib.sha256(b"abc").hexdigest()


def test_a_body_whose_length_is_not_told(site: MakeSite) -> None:
    one = site()
    pieces = [LARGE[at : at + 50_000] for at in range(0, len(LARGE), 50_000)]
    if one.chunked != 200:
        pieces = pieces[:1]  # it is refused before more of it is read
    got = request(one.port, "/digest", "POST", pieces, chunked=True)
    assert got.status == one.chunked
    if one.chunked == 200:
        assert shown(got.body)["sha256"] == hashlib.sha256(LARGE).hexdigest()


def test_answers_of_any_size(site: MakeSite) -> None:
    one = site()
    for size in (0, 1, 65_535, 65_536, 5_000_000):
        pattern = bytes(range(256)) * (size // 256 + 1)
        assert request(one.port, f"/sized?size={size}").body == pattern[:size]


def test_a_status_without_a_body(site: MakeSite) -> None:
    one = site()
    for status in ("204 No Content", "304 Not Modified"):
        got = request(one.port, f"/empty?status={quote(status)}")
        assert (got.status, got.body) == (int(status[:3]), b"")


def test_a_redirect_and_cookies(site: MakeSite) -> None:
    one = site()
    got = request(one.port, "/headers")
    assert got.status == 302
    assert got.headers["Location"].removeprefix(one.web.url) == "/elsewhere?a=1"
    assert got.headers.get_all("Set-Cookie") == ["a=1", "b=2"]


def test_large_and_dangerous_headers(site: MakeSite) -> None:
    one = site()
    cookie = "; ".join(f"cookie{n}={'v' * 90}" for n in range(41))
    environ = shown(request(one.port, "/", headers={"Cookie": cookie, "Proxy": "evil"}).body)
    assert environ["HTTP_COOKIE"] == cookie
    assert "HTTP_PROXY" not in environ


def test_a_stream_is_seen_before_it_ends(site: MakeSite, tmp_path: Path) -> None:
    one = site()
    go = tmp_path / "go"
    connection = http.client.HTTPConnection("127.0.0.1", one.port, timeout=30)
    connection.request("GET", f"/stream?go={quote(str(go))}")
    response = connection.getresponse()
    assert response.readline() == b"first\n"
    go.touch()
    assert response.read() == b"second\n"
    connection.close()


def test_a_client_that_goes_away(site: MakeSite, tmp_path: Path) -> None:
    one = site()
    report, began = tmp_path / "report", tmp_path / "began"
    with connect(one.port) as client:
        client.sendall(
            f"GET /endless?report={report}&began={began} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        )
        assert b"200 OK" in client.recv(100)
    if one.tells_of_leaving:
        assert "aborted=True" in appears(report)
    assert request(one.port, "/hello").status == 200
    assert "Traceback" not in one.fulgate.log()


def test_an_application_that_fails(site: MakeSite) -> None:
    one = site()
    got = request(one.port, "/fails")
    assert got.status == 500
    assert b"LookupError" not in got.body
    logs(one.fulgate, "LookupError: this application fails before it answers")
    assert request(one.port, "/hello").status == 200


def test_an_answer_that_breaks(site: MakeSite, tmp_path: Path) -> None:
    one = site()
    go = tmp_path / "go"
    connection = http.client.HTTPConnection("127.0.0.1", one.port, timeout=30)
    connection.request("GET", f"/breaks?go={quote(str(go))}")
    response = connection.getresponse()
    # What has not begun to leave when it breaks, lighttpd takes for the whole of it.
    assert response.read(1000) == b"x" * 1000
    go.touch()
    if one.sees_breaks:
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
    else:
        response.read()
    connection.close()
    logs(one.fulgate, "LookupError: this application fails within its answer")
    assert request(one.port, "/hello").status == 200


def test_limits(site: MakeSite) -> None:
    one = site("--limit-request-body", "1000", "--limit-params-size", "4000")

    def status(target: str, *sent: Any, **more: Any) -> int:
        return request(one.port, target, *sent, **more).status

    assert status("/digest", "POST", bytes(1000)) == 200
    assert status("/digest", "POST", bytes(1001)) == 413
    assert status("/digest", "POST", LARGE) == 413
    assert status("/hello", headers={"Cookie": "x" * 5000}) == 431
    assert status("/hello") == 200


def test_work_after_the_answer(site: MakeSite, tmp_path: Path) -> None:
    one = site()
    go, report = tmp_path / "go", tmp_path / "report"
    assert request(one.port, f"/after?go={go}&report={report}").body == b"at once\n"
    assert not report.exists()
    go.touch()
    assert appears(report) == "done"


def test_many_clients_at_once(site: MakeSite) -> None:
    one = site("--threads", "4")

    def ask(n: int) -> bool:
        body = LARGE[n : n + 5000]
        facts = shown(request(one.port, "/digest", "POST", body).body)
        return bool(facts["sha256"] == hashlib.sha256(body).hexdigest())

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(200))) == [True] * 200


def test_a_request_that_runs_ends_before_the_server_does(site: MakeSite, tmp_path: Path) -> None:
    one = site()
    go = tmp_path / "go"
    connection = http.client.HTTPConnection("127.0.0.1", one.port, timeout=30)
    connection.request("GET", f"/stream?go={quote(str(go))}")
    response = connection.getresponse()
    assert response.readline() == b"first\n"
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(one.fulgate.stop)
        while one.fulgate.accepts() and not stopped.done():
            time.sleep(0.005)
        go.touch()
        assert response.read() == b"second\n"
        assert stopped.result(30) == 0
    connection.close()
