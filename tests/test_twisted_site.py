"""FastCGISite and FastCGIFactory behind a real nginx, in a process of their own."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlencode

import pytest

from tests.model import ABORT_REQUEST, STDIN
from tests.raw import Raw, head, post, record, stream
from tests.servers import Nginx, Running, connect
from tests.servers.fulgate import ROOT, Fulgate
from tests.servers.nginx import location
from tests.servers.web import appears, logs, request

pytestmark = pytest.mark.requires_server("nginx")

END = record(STDIN, 1)
LARGE = b"".join(hashlib.sha256(str(n).encode()).digest() for n in range(100_000))  # 3.2 MB


class Site(Fulgate):
    """tests/twisted_site.py as a process."""

    program: ClassVar[str] = "python"
    says: ClassVar[bytes] = b""

    def __init__(self, folder: Path, kind: str, *options: str) -> None:
        super().__init__(folder, kind, *options)

    def command(self) -> list[str]:
        endpoint = f"unix:{self.socket}:mode=666"
        return [sys.executable, "-m", "tests.twisted_site", endpoint, self.app, *self.options]

    def environment(self) -> dict[str, str]:
        # These themselves use what Twisted deprecates.
        modules = ("twisted.web.resource", "twisted.web.server", "twisted.web.static")
        warnings = ",".join(["error", *(f"ignore::DeprecationWarning:{name}" for name in modules)])
        return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "PYTHONWARNINGS": warnings}


Behind = Callable[..., tuple[Nginx, Site]]


@pytest.fixture
def behind(running: Running) -> Behind:
    def start(
        kind: str, *locations: str, options: tuple[str, ...] = (), **nginx: Any
    ) -> tuple[Nginx, Site]:
        site = running(Site, kind, *options)
        return running(Nginx, site.backend, *locations, **nginx), site

    return start


@pytest.fixture(params=[False, True], ids=["closing", "keepalive"])
def keepalive(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def query(**paths: object) -> str:
    return urlencode({name: str(path) for name, path in paths.items()})


def test_what_a_resource_is_told(behind: Behind, keepalive: bool) -> None:
    nginx, _ = behind("tree", keepalive=keepalive)
    headers = {"X-Thing": "some thing", "Cookie": "a=1; c=yes"}
    headers["Authorization"] = "Basic dXNlcjpzZWNyZXQ="
    for _ in range(3):
        answer = request(nginx.port, "/about/a%2Fb/c?x=1&x=2&y=%20", headers=headers)
        assert answer.status == 200
        assert json.loads(answer.body) == {
            "client": ["127.0.0.1", True],
            "host": ["127.0.0.1", nginx.port],
            "secure": False,
            "url": f"http://127.0.0.1:{nginx.port}/about",
            "name": "127.0.0.1",
            "uri": "/about/a%2Fb/c?x=1&x=2&y=%20",
            "path": "/about/a%2Fb/c",
            "prepath": ["about"],
            "postpath": ["a/b", "c"],
            "args": {"x": ["1", "2"], "y": [" "]},
            "cookie": "yes",
            "header": "some thing",
            "method": "GET",
            "proto": "HTTP/1.1",
            "user": "user",
        }
        assert answer.headers["Content-Length"] == str(len(answer.body))
        assert "Transfer-Encoding" not in answer.headers


def test_a_site_below_a_path_behind_https(behind: Behind) -> None:
    params = location("/app", "fastcgi_param HTTPS on;", "fastcgi_param SERVER_PORT 443;")
    nginx, _ = behind("tree", params, options=("script_name=/app",))
    facts = json.loads(request(nginx.port, "/app/about/x").body)
    assert facts["secure"] is True
    assert facts["url"] == "https://127.0.0.1/app/about"
    assert (facts["prepath"], facts["postpath"]) == (["app", "about"], ["x"])
    assert facts["path"] == "/app/about/x"


def test_answers_that_come_later(behind: Behind, keepalive: bool, tmp_path: Path) -> None:
    nginx, _ = behind("tree", location("/", "fastcgi_buffering off;"), keepalive=keepalive)
    assert request(nginx.port, "/late").body == b"late"
    go = tmp_path / "go"
    client = http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=30)
    client.request("GET", "/stream?" + query(go=go))
    answer = client.getresponse()
    assert answer.read(6) == b"first\n"
    go.touch()
    assert answer.read() == b"second\n"
    client.close()
    go.unlink()
    client.request("GET", "/early?" + query(go=go))
    answer = client.getresponse()  # the head is here, the answer's end is not
    go.touch()
    assert answer.read() == b""
    client.close()


@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "unbuffered"])
def test_bodies(behind: Behind, keepalive: bool, buffered: bool) -> None:
    nginx, _ = behind("tree", keepalive=keepalive, buffer_requests=buffered)
    for body in (b"", b"abc", LARGE):
        answer = request(nginx.port, "/upload", "POST", body)
        assert answer.body.decode() == hashlib.sha256(body).hexdigest()
    pieces = [LARGE[at : at + 50_000] for at in range(0, len(LARGE), 50_000)]
    answer = request(nginx.port, "/upload", "POST", pieces, chunked=True)
    assert answer.body.decode() == hashlib.sha256(LARGE).hexdigest()


def test_forms(behind: Behind) -> None:
    nginx, _ = behind("klein")
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    assert request(nginx.port, "/form?q=0", "POST", b"a=1&b=2&a=3", kind).body == b"a=1,3&b=2&q=0"
    kind = {"Content-Type": "multipart/form-data; boundary=B"}
    part = b'--B\r\nContent-Disposition: form-data; name="f"\r\n\r\nvalue\r\n--B--\r\n'
    assert request(nginx.port, "/form", "POST", part, kind).body == b"f=value"
    assert request(nginx.port, "/form", "POST", b"nonsense", kind).status in (200, 400)
    assert request(nginx.port, "/").body == b"home"


def test_klein(behind: Behind, keepalive: bool) -> None:
    nginx, _ = behind("klein", keepalive=keepalive)
    for name in ("one", "two"):
        assert request(nginx.port, f"/hello/{name}").body == f"hello {name}".encode()
    assert request(nginx.port, "/missing").status == 404
    assert request(nginx.port, "/form").status == 405
    assert json.loads(request(nginx.port, "/branch/about/x").body)["postpath"] == ["x"]


def test_sessions_cookies_and_redirects(behind: Behind) -> None:
    nginx, _ = behind("tree")
    answer = request(nginx.port, "/session")
    assert answer.body == b"1"
    cookie = answer.headers["Set-Cookie"].partition(";")[0]
    assert request(nginx.port, "/session", headers={"Cookie": cookie}).body == b"2"
    assert request(nginx.port, "/session").body == b"1"
    answer = request(nginx.port, "/redirect")
    assert answer.status == 302
    assert answer.headers["Location"].endswith("/elsewhere")
    assert answer.headers.get_all("Set-Cookie") == ["a=1; Path=/", "b=2"]


def test_answers_without_a_body(behind: Behind, keepalive: bool) -> None:
    nginx, _ = behind("tree", keepalive=keepalive)
    for _ in range(2):
        answer = request(nginx.port, "/about", "HEAD")
        assert (answer.status, answer.body) == (200, b"")
        assert int(answer.headers["Content-Length"]) > 0
        for code in (204, 304):
            answer = request(nginx.port, f"/empty?code={code}")
            assert (answer.status, answer.body) == (code, b"")
    assert request(nginx.port, "/late", "HEAD").body == b""


def test_files(behind: Behind, keepalive: bool) -> None:
    nginx, site = behind("tree", keepalive=keepalive)
    (site.folder / "files").mkdir()
    (site.folder / "files" / "large").write_bytes(LARGE)
    answer = request(nginx.port, "/files/large")  # by a producer that is pulled
    assert answer.body == LARGE
    answer = request(nginx.port, "/files/large", headers={"Range": "bytes=1000000-2999999"})
    assert (answer.status, answer.body) == (206, LARGE[1_000_000:3_000_000])
    modified = answer.headers["Last-Modified"]
    answer = request(nginx.port, "/files/large", headers={"If-Modified-Since": modified})
    assert (answer.status, answer.body) == (304, b"")


def test_a_producer_is_held_back_by_a_slow_client(running: Running) -> None:
    site = running(Site, "tree")
    with Raw(site.socket) as raw:
        raw.expect()
        raw.send(head("/push", query(size=5_000_000)), END)
        deadline = time.monotonic() + 30
        while "paused" not in site.log():
            assert time.monotonic() < deadline, site.log()
            time.sleep(0.01)
        assert len(raw.answer().body) == 5_000_000
        # And when the client goes, it is told to stop.
        raw.expect()
        raw.send(head("/push", query(size=500_000_000)), END)
        raw.until(1, bytes(100_000))
    while "stopped" not in site.log():
        assert time.monotonic() < deadline + 30, site.log()
        time.sleep(0.01)
    with Raw(site.socket) as raw:
        assert raw.request("/late").body == b"late"


@pytest.mark.parametrize("kind", ["tree", "klein"])
def test_a_client_that_goes_is_told_of(behind: Behind, kind: str, tmp_path: Path) -> None:
    nginx, _ = behind(kind)
    began, report = tmp_path / "began", tmp_path / "report"
    path = "/gone" if kind == "tree" else "/wait"
    with connect(nginx.port) as client:
        target = f"{path}?{query(began=began, report=report)}"
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        deadline = time.monotonic() + 30
        while not began.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert appears(report) == {"tree": "ConnectionLost", "klein": "cancelled"}[kind]
    assert request(nginx.port, "/about" if kind == "tree" else "/").status == 200


def test_an_abort_by_record(running: Running, tmp_path: Path) -> None:
    site = running(Site, "tree")
    began, report = tmp_path / "began", tmp_path / "report"
    with Raw(site.socket) as raw:
        raw.expect()
        raw.send(head("/gone", query(began=began, report=report)), END)
        while not began.exists():
            time.sleep(0.01)
        raw.send(record(ABORT_REQUEST, 1))
        assert not raw.answer().stdout
        assert appears(report) == "ConnectionLost"
        assert raw.request("/late").body == b"late"
        report.unlink()
        assert raw.request("/done", query(report=report)).body == b"done"
        assert appears(report) == "whole"


@pytest.mark.parametrize("path", ["/breaks", "/short"])
def test_a_broken_answer_does_not_pass_for_whole(
    behind: Behind, keepalive: bool, path: str
) -> None:
    nginx, _ = behind("tree", keepalive=keepalive)
    with pytest.raises(http.client.IncompleteRead):
        request(nginx.port, path)
    assert request(nginx.port, "/about").status == 200


def test_errors(behind: Behind) -> None:
    nginx, site = behind("tree")
    assert request(nginx.port, "/fails").status == 500
    logs(site, "LookupError: this resource fails")
    assert request(nginx.port, "/missing").status == 404
    assert request(nginx.port, "/about", "DELETE").status == 501
    answer = request(nginx.port, "/split")
    assert "X-Injected" not in answer.headers


def test_limits_of_a_site(running: Running) -> None:
    site = running(Site, "tree", "limit_request_body=1000", "body_timeout=0.3")
    with Raw(site.socket) as raw:
        answer = raw.request("/upload", body=bytes(2000))
        assert answer.status == "413 Content Too Large"
    with Raw(site.socket) as raw:
        raw.expect()
        raw.send(head("/upload", REQUEST_METHOD="POST"), stream(STDIN, 1, bytes(2000)))
        assert raw.answer().status == "413 Content Too Large"
        assert raw.request("/late").body == b"late"  # it was to be kept
    with Raw(site.socket) as raw:
        raw.expect()
        raw.send(head("/upload", **post(500)), record(STDIN, 1, bytes(10)))
        assert raw.closed()  # it did not come in time


def test_wsgi_behind_nginx(behind: Behind, keepalive: bool) -> None:
    nginx, _ = behind("wsgi", keepalive=keepalive)
    for _ in range(3):
        assert request(nginx.port, "/hello").body == b"Hello, world!\n"
    facts = json.loads(request(nginx.port, "/digest", "POST", LARGE).body)
    assert facts["sha256"] == hashlib.sha256(LARGE).hexdigest()
    assert len(request(nginx.port, "/sized?size=3000000").body) == 3_000_000
    with pytest.raises(http.client.IncompleteRead):
        request(nginx.port, "/breaks")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", ["tree", "wsgi"])
def test_one_signal_lets_requests_end_and_then_the_reactor(
    running: Running, tmp_path: Path, kind: str, number: int
) -> None:
    site = running(Site, kind)
    go = tmp_path / "go"
    idle = []
    for _ in range(100):
        raw = Raw(site.socket)
        idle.append(raw)
        assert raw.request("/session" if kind == "tree" else "/hello").status == "200 OK"
    with Raw(site.socket) as raw:
        raw.expect()
        raw.send(head("/stream", query(go=go)), END)
        raw.until(1, b"first\n")
        assert site.process is not None
        site.process.send_signal(number)
        for one in idle:
            assert one.closed()
            one.socket.close()
        assert site.process.poll() is None
        go.touch()
        assert raw.answer().body == b"first\nsecond\n"
        assert raw.closed()
    assert site.process.wait(30) in (0, -number)
    assert not site.socket.exists()
    assert not re.search(r"Traceback|Unhandled", site.log()), site.log()


def test_the_deadline_of_a_stop_cuts(running: Running, tmp_path: Path) -> None:
    site = running(Site, "tree", "graceful_timeout=0.3")
    with Raw(site.socket) as raw:
        raw.expect()
        raw.send(head("/stream", query(go=tmp_path / "never")), END)
        raw.until(1, b"first\n")
        assert site.process is not None
        site.process.terminate()
        with pytest.raises(EOFError):
            raw.answer()
    assert site.process.wait(30) in (0, -signal.SIGTERM)
    assert "stopped with 1 requests unfinished after 0.3 s" in site.log()


@pytest.mark.statement("18")
@pytest.mark.parametrize("known", ["asked", "begun"])
def test_uploads_beside_others(running: Running, known: str) -> None:
    """More comes at once than is kept in memory."""
    site = running(Site, "tree")
    with Raw(site.socket) as raw:
        if known == "asked":
            assert raw.values(b"FCGI_MPXS_CONNS") == {b"FCGI_MPXS_CONNS": b"1"}
        for id in (1, 2):
            raw.expect(id)
            raw.send(head("/upload", id=id, **post(len(LARGE))))
        for at in range(0, len(LARGE), 400_000):
            for id in (1, 2):
                piece = LARGE[at : at + 400_000]
                raw.send(stream(STDIN, id, piece, end=at + 400_000 >= len(LARGE)))
        for id in (1, 2):
            assert raw.answer(id).body.decode() == hashlib.sha256(LARGE).hexdigest()
