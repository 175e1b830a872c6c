"""Fulgate behind a real H2O, each run by the test as a process of its own."""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.servers import H2O, Fulgate, Running
from tests.servers.web import appears, request

pytestmark = [pytest.mark.requires_server("h2o"), pytest.mark.slow]

APP = "tests.apps:app"
LARGE = b"".join(hashlib.sha256(str(n).encode()).digest() for n in range(40_000))  # 1.3 MB
KEEP = "fastcgi.timeout.keepalive: 5000"

Behind = Callable[..., tuple[H2O, Fulgate]]


@pytest.fixture(params=[(), (KEEP,)], ids=["closing", "keepalive"])
def behind(running: Running, request: pytest.FixtureRequest) -> Behind:
    """Start Fulgate, and H2O in front of it."""

    def start(*options: str, serve: tuple[str, ...] = (), **h2o: Any) -> tuple[H2O, Fulgate]:
        fulgate = running(Fulgate, APP, *serve)
        return running(H2O, fulgate.backend, *request.param, *options, **h2o), fulgate

    return start


def shown(body: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(body)
    return facts


def test_environ(behind: Behind) -> None:
    h2o, _ = behind()
    for _ in range(3):
        answer = request(
            h2o.port,
            "/caf%C3%A9//x/../y?a=1&b=%20",
            headers={"X-Thing": "some thing", "Authorization": "Basic eDp5"},
        )
        environ = shown(answer.body)
        expected = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": "/café//y".encode().decode("latin-1"),
            "QUERY_STRING": "a=1&b=%20",
            "SERVER_PORT": str(h2o.port),
            "REMOTE_ADDR": "127.0.0.1",
            "HTTP_HOST": f"127.0.0.1:{h2o.port}",
            "HTTP_X_THING": "some thing",
            "HTTP_AUTHORIZATION": "Basic eDp5",
        }
        assert {name: environ.get(name) for name in expected} == expected


def test_a_prefix_is_told_to_fulgate(behind: Behind) -> None:
    h2o, _ = behind(prefix="/app", serve=("--script-name", "/app"))
    environ = shown(request(h2o.port, "/app/some/where").body)
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/app", "/some/where")


@pytest.mark.parametrize("body", [b"", b"a=1&b=2", LARGE], ids=["empty", "small", "large"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_upload(behind: Behind, body: bytes, chunked: bool) -> None:
    h2o, _ = behind()
    for _ in range(2):
        sent = [body[at : at + 50_000] for at in range(0, len(body), 50_000)] if chunked else body
        answer = request(h2o.port, "/digest", "POST", sent, chunked=chunked)
        facts = shown(answer.body)
        assert facts["length"] == len(body)
        assert facts["sha256"] == hashlib.sha256(body).hexdigest()


def test_head_and_statuses_without_a_body(behind: Behind) -> None:
    h2o, _ = behind()
    for _ in range(2):
        answer = request(h2o.port, "/hello", "HEAD")
        assert (answer.status, answer.body) == (200, b"")
        for status in (204, 304):
            answer = request(h2o.port, f"/empty?status={status}%20Nothing")
            assert (answer.status, answer.body) == (status, b"")
        answer = request(h2o.port, "/headers")
        assert answer.status == 302
        assert answer.headers["Location"] == "/elsewhere?a=1"
        assert answer.headers.get_all("Set-Cookie") == ["a=1", "b=2"]


@pytest.mark.parametrize("size", [0, 1, 65_535, 3_000_000])
def test_answer_of_any_size(behind: Behind, size: int) -> None:
    h2o, _ = behind()
    for _ in range(2):
        body = request(h2o.port, f"/sized?size={size}").body
        assert body == (bytes(range(256)) * (size // 256 + 1))[:size]


def test_application_that_fails(behind: Behind) -> None:
    h2o, fulgate = behind()
    assert request(h2o.port, "/fails").status == 500
    assert "this application fails before it answers" in fulgate.log()
    assert request(h2o.port, "/hello").status == 200


def test_answer_that_breaks_is_seen_to_be_broken_by_its_length(behind: Behind) -> None:
    h2o, fulgate = behind()
    with pytest.raises(http.client.IncompleteRead):
        request(h2o.port, "/breaks?length=200000")
    assert "this application fails within its answer" in fulgate.log()
    assert request(h2o.port, "/hello").status == 200


def test_answer_of_no_length_that_breaks_is_ended_by_h2o(behind: Behind) -> None:
    """What docs/other-servers.md warns of: the last chunk comes although the answer is broken."""
    h2o, _ = behind()
    assert request(h2o.port, "/breaks").body == b"x" * 100_000


def test_client_that_goes_away_within_its_answer(behind: Behind, tmp_path: Path) -> None:
    h2o, _ = behind()
    report = tmp_path / "report"
    client = http.client.HTTPConnection("127.0.0.1", h2o.port, timeout=30)
    client.request("GET", f"/endless?report={report}")
    answer = client.getresponse()
    assert answer.read(1024) == b"x" * 1024
    answer.close()
    client.close()
    assert appears(report) == "closed, aborted=True"


def test_many_clients_at_once(behind: Behind) -> None:
    h2o, _ = behind(serve=("--threads", "4"))

    def one(n: int) -> bool:
        body = LARGE[n : n + 5000]
        facts = shown(request(h2o.port, "/digest", "POST", body).body)
        return bool(facts["sha256"] == hashlib.sha256(body).hexdigest())

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, range(200))) == [True] * 200
