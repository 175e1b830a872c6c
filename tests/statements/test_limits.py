"""Limits and deadlines: R5 and R6."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator

import pytest

from tests.model import BEGIN_REQUEST, PARAMS, STDIN
from tests.raw import PATIENCE, Raw, begin, environ, head, pair, pairs, post, record, stream
from tests.servers import Fulgate, Running
from tests.statements import APP, eventually, serving, sockets, statement, still_serves


@pytest.fixture(scope="module")
def narrow() -> Iterator[Fulgate]:
    options = [
        ("--threads", "1"),
        ("--limit-params-size", "2000"),
        ("--limit-params", "20"),
        ("--limit-request-body", "1000"),
    ]
    with serving(*[word for pair in options for word in pair]) as server:
        yield server


def goes_on(raw: Raw) -> None:
    """KEEP_CONN: a refusal closes nothing that the web server may have reused already [3.5]."""
    assert raw.request("/hello").status == "200 OK"
    assert raw.request("/hello", keep=False).status == "200 OK"
    assert raw.closed()


@statement("R5")
@pytest.mark.parametrize(
    "params",
    [
        {"LONG": "v" * 2000},
        {"N" * 2000: "long"},
        {"LONG": "v" * 60_000},
        {"LONG": "v" * 1_000_000},
        {f"X{n}": "" for n in range(13)},
    ],
    ids=["long value", "long name", "in one record", "in many records", "too many"],
)
def test_params_beyond_a_limit(narrow: Fulgate, params: dict[str, str]) -> None:
    with Raw(narrow.socket) as raw:
        answer = raw.request(**params)
        assert answer.status == "431 Request Header Fields Too Large"
        assert answer.stdout_ended
        goes_on(raw)
    still_serves(narrow)


@statement("R5")
def test_params_within_the_limits(narrow: Fulgate) -> None:
    with Raw(narrow.socket) as raw:
        room = 2000 - len(pairs(environ("/"))) - len(pairs([("LONG", "v" * 200)])) + 200
        assert raw.request("/", LONG="v" * room).status == "200 OK"
        some = {f"X{n}": "" for n in range(12)}
        assert raw.request("/", **some).status == "200 OK"


@statement("R5")
def test_params_without_an_end(narrow: Fulgate) -> None:
    """They are read a while, to be answered, but not for ever."""
    with Raw(narrow.socket) as raw:
        raw.expect()
        raw.send(begin())
        with contextlib.suppress(ConnectionError):
            for _ in range(6000):
                raw.send(record(PARAMS, 1, pair(b"A", b"b" * 996)))
        assert raw.closed()
    still_serves(narrow)


@statement("R5")
@pytest.mark.parametrize("path", ["/digest", "/hello"])
@pytest.mark.parametrize("length", ["1001", "100000000000", "9" * 30])
def test_content_length_beyond_the_limit(narrow: Fulgate, path: str, length: str) -> None:
    with Raw(narrow.socket) as raw:
        raw.expect()
        raw.send(head(path, REQUEST_METHOD="POST", CONTENT_LENGTH=length))
        assert raw.answer().status == "413 Content Too Large"  # before any of it came
        goes_on(raw)
    still_serves(narrow)


@statement("R5")
@pytest.mark.parametrize("length", ["", "-1", "10"])
@pytest.mark.parametrize("cut", [100, 65535])
def test_body_beyond_the_limit(narrow: Fulgate, length: str, cut: int) -> None:
    """Whatever was said, what comes is counted; and who sends more still gets the answer."""
    with Raw(narrow.socket) as raw:
        raw.expect()
        raw.send(head("/digest", REQUEST_METHOD="POST", CONTENT_LENGTH=length))
        raw.send(stream(STDIN, 1, b"x" * 300_000, cut=cut))
        answer = raw.answer()
        assert answer.status == "413 Content Too Large"
        assert answer.stdout_ended
        goes_on(raw)
    still_serves(narrow)


@statement("R5")
def test_body_within_the_limit(narrow: Fulgate) -> None:
    with Raw(narrow.socket) as raw:
        for length in ("1000", "", "-1"):
            answer = raw.request("/digest", body=b"x" * 1000, CONTENT_LENGTH=length)
            assert json.loads(answer.body)["length"] == 1000


def dribble(dribblers: list[Raw], piece: bytes) -> None:
    """Send `piece` on each connection every tenth of a second, until all of them are closed."""
    deadline = time.monotonic() + PATIENCE
    left = list(dribblers)
    while left:
        assert time.monotonic() < deadline, f"{len(left)} connections are still open"
        for raw in list(left):
            try:
                raw.send(piece)
                raw.socket.settimeout(0.001)
                with contextlib.suppress(TimeoutError):
                    if not raw.socket.recv(65536):
                        left.remove(raw)
            except ConnectionError:
                left.remove(raw)
        time.sleep(0.1)


@pytest.mark.slow
@statement("R6")
@pytest.mark.parametrize("poller", ["auto", "poll"])
def test_dribbled_params_cost_no_thread(running: Running, poller: str) -> None:
    options = ("--threads", "1", "--arrival-timeout", "1", "--poller", poller)
    server = running(Fulgate, APP, *options)
    with contextlib.ExitStack() as stack:
        dribblers = [stack.enter_context(Raw(server.socket)) for _ in range(40)]
        for n, raw in enumerate(dribblers):
            # Some send whole records, some do not get as far as the first one's end.
            raw.send(begin() if n % 2 else record(BEGIN_REQUEST, 1, bytes(8), 255)[:100])
        still_serves(server)
        for n, raw in enumerate(dribblers):
            if n % 2:
                with contextlib.suppress(ConnectionError):  # on a slow day its second is over
                    raw.send(record(PARAMS, 1, b"\xff"))
        still_serves(server)
        dribble(dribblers[1::2], record(PARAMS, 1, b"x"))
        dribble(dribblers[::2], b"x")
        still_serves(server)
    eventually(lambda: sockets(server) == 1, "only the listening socket is left")


@pytest.mark.slow
@statement("R6")
def test_who_says_nothing_is_closed(running: Running) -> None:
    server = running(Fulgate, APP, "--arrival-timeout", "1", "--keep-alive", "1")
    with Raw(server.socket) as silent, Raw(server.socket) as idle:
        idle.request()
        assert silent.closed()
        assert idle.closed()


@statement("R6")
def test_a_dribbled_body_costs_no_thread_for_a_time(running: Running) -> None:
    server = running(Fulgate, APP, "--threads", "1", "--body-wait", "60")
    with contextlib.ExitStack() as stack:
        dribblers = [stack.enter_context(Raw(server.socket)) for _ in range(20)]
        for raw in dribblers:
            raw.expect()
            raw.send(head("/digest", **post(10)), record(STDIN, 1, b"abc"))
        still_serves(server)
        for raw in dribblers:
            raw.send(record(STDIN, 1, b"def"))
        still_serves(server)
        for raw in dribblers:
            raw.send(record(STDIN, 1, b"ghij"), record(STDIN, 1))
            assert json.loads(raw.answer().body)["length"] == 10


@pytest.mark.slow
@statement("R6")
def test_a_body_that_stops_is_closed_at_its_deadline(running: Running) -> None:
    options = ("--threads", "1", "--body-wait", "0.1", "--body-timeout", "1")
    server = running(Fulgate, APP, *options)
    with Raw(server.socket) as small, Raw(server.socket) as large:
        for raw, length in ((small, 10), (large, 200_000)):
            raw.expect()
            raw.send(head("/digest", **post(length)), record(STDIN, 1, b"abc"))
        assert small.closed()
        assert large.closed()
    still_serves(server)
