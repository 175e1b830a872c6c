"""A request that the server refuses before the application gets it, or while that reads: whatever
the driver, one warning and one line of the access log, which say the same.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.driver_suite.kit import END, Environ, Gate, Log, Start, digest, until
from tests.every_driver import *  # noqa: F403
from tests.every_driver import SEVERAL_AT_ONCE, MakeServed
from tests.model import PARAMS, STDIN
from tests.raw import Raw, begin, environ, head, pairs, post, record, stream
from tests.test_drivers import Records

PROTOCOL = "fastcgi"
LIMITS = {"limit_request_body": 1000, "limit_params": 20, "limit_params_size": 2000}
LARGE = "413 Content Too Large"
FIELDS = "431 Request Header Fields Too Large"
SHED = "503 Service Unavailable"
NO_ROOM = "there is no room for another request"


def warnings(log: Log) -> list[str]:
    assert isinstance(log, Records)
    return [one.getMessage() for one in log.records if one.levelno >= logging.WARNING]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def many() -> dict[str, str]:
    return {f"HTTP_X_{number}": "" for number in range(20)}


CASES: dict[str, tuple[bytes, str, str, str]] = {
    # What is sent, the status, the request on a line, and why.
    "a length": (
        head("/a?b", **post(1001)), LARGE, "POST /a?b HTTP/1.1",
        "a body of 1001 bytes is more than 1000",
    ),
    "a body that is waited for": (
        head("/a", REQUEST_METHOD="POST") + stream(STDIN, 1, bytes(1001), end=False), LARGE,
        "POST /a HTTP/1.1", "the body is longer than 1000 bytes",
    ),
    "a body that is read": (
        head("/a", REQUEST_METHOD="POST", HTTP_UPGRADE="x")
        + stream(STDIN, 1, bytes(600), end=False) + stream(STDIN, 1, bytes(401), end=False),
        LARGE, "POST /a HTTP/1.1", "the body is longer than 1000 bytes",
    ),
    "many parameters": (
        head("/a", **many()) + END, FIELDS, "GET /a HTTP/1.1", "28 parameters are more than 20",
    ),
    "long parameters": (
        head("/a", HTTP_COOKIE="x" * 2000) + END, FIELDS, "- -",
        "PARAMS are longer than 2000 bytes",
    ),
    "without a body to answer with": (
        head("/a", REQUEST_METHOD="HEAD", CONTENT_LENGTH="1001"), LARGE, "HEAD /a HTTP/1.1",
        "a body of 1001 bytes is more than 1000",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_refusal_is_logged_once(
    make_server: MakeServed, log: Log, folder: Path, case: str
) -> None:
    sent, status, line, why = CASES[case]
    path = folder / "access.log"
    served = make_server(
        digest, access_logfile=str(path), access_log_format="json", body_wait=30.0, **LIMITS
    )
    with Raw(served.address) as raw:
        raw.expect()
        raw.send(sent)
        answer = raw.answer()
    assert answer.status == status
    until(lambda: lines(path), "there is no line")
    check(path, log, status, line, why, len(answer.body))


def check(path: Path, log: Log, status: str, line: str, why: str, size: int) -> None:
    (found,) = lines(path)
    assert (found["status"], found["bytes"], found["end"]) == (int(status[:3]), size, "refused")
    method, uri, *version = line.split()
    wanted = [method.strip("-"), uri.strip("-"), *(version or [""])]
    assert [found["method"], found["uri"], found["protocol"]] == wanted
    assert found["duration"] >= 0
    assert warnings(log) == [f"{line}: {status}: {why}"]


@pytest.mark.parametrize("driver", SEVERAL_AT_ONCE, indirect=True)
@pytest.mark.parametrize("overload", ["503", "overloaded"])
def test_one_for_which_there_is_no_room_is_logged_once(
    make_server: MakeServed, log: Log, folder: Path, overload: str
) -> None:
    path = folder / "access.log"
    gate = Gate()
    served = make_server(
        gate, threads=1, queue=0, overload=overload,
        access_logfile=str(path), access_log_format="json",
    )  # fmt: skip
    held = gate.hold(served, 1)
    with Raw(served.address) as raw:
        answer = raw.request("/more")
    assert answer.protocol_status == (2 if overload == "overloaded" else 0)
    until(lambda: lines(path), "there is no line")
    check(path, log, SHED, "GET /more HTTP/1.1", NO_ROOM, len(answer.body))
    gate.open.set()
    held[0].answer()
    held[0].socket.close()


@pytest.mark.parametrize("driver", SEVERAL_AT_ONCE, indirect=True)
@pytest.mark.parametrize("case", CASES)
def test_one_beside_others_is_logged_once(
    make_server: MakeServed, log: Log, folder: Path, case: str
) -> None:
    sent, status, line, why = CASES[case]
    path = folder / "access.log"
    gate = Gate()

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        return (gate if environ["PATH_INFO"] == "/wait" else digest)(environ, start)

    served = make_server(
        app, access_logfile=str(path), access_log_format="json", body_wait=30.0, **LIMITS
    )
    with Raw(served.address) as raw:
        assert raw.values(b"FCGI_MPXS_CONNS") == {b"FCGI_MPXS_CONNS": b"1"}
        raw.expect(2)
        raw.send(head("/wait", id=2), record(STDIN, 2))
        until(lambda: gate.inside, "it did not reach the application")
        raw.expect()
        raw.send(sent)
        answer = raw.answer()
        assert answer.status == status
        until(lambda: lines(path), "there is no line")
        check(path, log, status, line, why, len(answer.body))
        gate.open.set()
        raw.answer(2)


def test_parameters_without_end_are_told_of(make_server: MakeServed, log: Log) -> None:
    served = make_server(digest, **LIMITS)
    with Raw(served.address) as raw:
        raw.expect()
        raw.send(begin(), record(PARAMS, 1, pairs(environ())))
        piece = record(PARAMS, 1, bytes(65535))
        with contextlib.suppress(OSError):  # it is closed meanwhile
            for _ in range(200):
                raw.send(piece)
        assert raw.closed()
    assert warnings(log) == ["closed a connection: PARAMS are longer than 2000 bytes"]
