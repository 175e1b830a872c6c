"""`fulgate bench`: what it counts is what happened, on the wire of real servers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgate.client.bench_answer import AnswerReader, Wrong
from fulgate.client.bench_figures import Counts, Histogram
from fulgate.client.bench_plan import Plan
from fulgate.client.bench_report import Report, rows
from tests.command import Served, environment, fulgate, refused_here
from tests.fault.client import END_REQUEST, STDERR, STDOUT, record
from tests.flup import reachable, until

BENCH = Path(__file__).parents[1] / "bench"
END = record(STDOUT, 1) + record(END_REQUEST, 1, bytes(8))
GOOD = record(STDOUT, 1, b"Status: 200 OK\r\n\r\nhello") + END

APP = """\
import itertools

numbers = itertools.count()

def app(environ, start_response):
    size = 0
    while piece := environ["wsgi.input"].read(65536):
        size += len(piece)
    path = environ["PATH_INFO"]
    body = {"/": b"hello", "/large": bytes(300_000), "/size": str(size).encode(),
            "/different": str(next(numbers)).encode() * 20}[path]
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""


def bench(path: Path, *options: str) -> tuple[dict[str, Any], int]:
    """Give what it reports as JSON, and its exit status."""
    done = fulgate("bench", f"unix:{path}", "--json", *options, cwd=path.parent)
    assert not done.stderr, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode == 0) == report["good"]
    return report, done.returncode


# against real servers


@pytest.fixture
def floor(folder: Path) -> Iterator[Path]:
    path = folder / "sock"
    flags = ["-O2", "-o", str(folder / "floor")]
    subprocess.run(["cc", *flags, str(BENCH / "floor.c")], check=True)
    process = subprocess.Popen([folder / "floor", path])
    until(lambda: reachable(path), "the floor listens")
    yield path
    process.terminate()
    process.wait(10)


@pytest.mark.requires_program("cc")
def test_answers_of_the_floor_are_counted(floor: Path) -> None:
    for options, connects in (
        (["--count", "500"], 8),
        (["--count", "500", "--no-keep-alive"], 500),
        (["--count", "200", "--body-size", "300000"], 8),
        (["--count", "500", "--processes", "3"], 8),
        (["--count", "300", "--rate", "3000"], 8),
    ):
        seen, status = bench(floor, "--connections", "8", *options)
        assert status == 0, seen
        assert seen["requests"] == int(options[1])
        assert seen["statuses"] == {"200": seen["requests"]}
        assert seen["errors"] == {}
        assert seen["received_bytes"] == 108 * seen["requests"]
        assert seen["connects"] == connects
        assert seen["never_served"] == seen["unanswered"] == seen["unsent"] == 0
        latency = seen["latency_ms"]
        assert 0 < latency["min"] <= latency["p50"] <= latency["p99"] <= latency["max"]
        assert sum(count for _, _, count in seen["histogram"]) == seen["requests"]


@pytest.mark.requires_program("cc")
def test_a_time_ends_it(floor: Path) -> None:
    seen, status = bench(floor, "--duration", "1")
    assert status == 0
    assert seen["requests"] > 0
    assert 0 < seen["seconds"] <= 1
    assert seen["requests_per_second"] == pytest.approx(seen["requests"] / seen["seconds"])
    assert 0 < seen["generator"]["cpu_share"] <= 1.1


def test_requests_that_our_own_server_answers(folder: Path) -> None:
    (folder / "bench_site.py").write_text(APP)
    with Served("bench_site:app", "--bind", f"unix:{folder}/sock", cwd=folder):
        for path, options in {
            "/": ["--processes", "2"],
            "/large": [],
            "/different": [],
            "/?no": ["--no-keep-alive", "-X", "HEAD"],
            "/size": ["--body-size", "200000"],
        }.items():
            seen, status = bench(folder / "sock", path, "--count", "60", "-c", "4", *options)
            assert status == 0, seen
            assert seen["statuses"] == {"200": 60}
        size = 60 * 300_000
        seen, _ = bench(folder / "sock", "/large", "--count", "60", "-c", "4")
        assert size < seen["received_bytes"] < size * 1.01


def test_a_request_is_what_the_options_ask_for(folder: Path) -> None:
    (folder / "body").write_bytes(b"one\ntwo")
    with Recording(folder / "sock", GOOD) as server:
        options = ["-d", "@body", "-H", "X-One: 1", "--param", "REMOTE_USER=me"]
        seen, status = bench(folder / "sock", "/p%20q?a=b", *options, "--count", "3", "-c", "1")
        assert (status, seen["method"]) == (0, "POST")
    for data in server.seen:
        assert b"REQUEST_METHODPOST" in data
        assert b"\x0e\x01CONTENT_LENGTH6" in data
        assert b"onetwo" in data
        assert b"\x0a\x01HTTP_X_ONE1" in data
        assert b"\x0b\x02REMOTE_USERme" in data
        assert b"\x09\x04PATH_INFO/p q" in data
        assert b"\x0b\x0aREQUEST_URI/p%20q?a=b" in data


# what goes wrong


class Recording:
    """Listens; gives each connection to `behave`, or answers each request on it with bytes."""

    def __init__(self, path: Path, behave: bytes | Callable[[socket.socket], None]) -> None:
        self.seen: list[bytes] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._answer = behave if isinstance(behave, bytes) else b""
        self._behave = self._answers if isinstance(behave, bytes) else behave
        self._threads: list[threading.Thread] = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Recording:
        self._threads[0].start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            connection.settimeout(30)
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            self._behave(connection)

    def _answers(self, connection: socket.socket) -> None:
        while data := connection.recv(65536):
            self.seen.append(data)
            connection.sendall(self._answer)


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (GOOD.replace(b"200 OK", b"500 No"), "status", "status 500"),
        (GOOD.replace(b"200 OK", b"302 No"), "status", "status 302"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "protocol", "no record of an answer"),
        (GOOD.replace(b"Status: 200 OK", b"HTTP/1.1 200 O"), "protocol", "HTTP"),
        (GOOD[:-8] + bytes((0, 0, 0, 0, 2, 0, 0, 0)), "refused", "OVERLOADED"),
        (GOOD[:-8] + bytes((0, 0, 0, 1, 0, 0, 0, 0)), "app_status", "appStatus 1"),
        (GOOD + GOOD, "protocol", "bytes after END_REQUEST"),
        (END, "protocol", "without a head"),
        (record(STDOUT, 1, b"Content-Length: 9\r\n\r\nhello") + END, "length", "5 bytes"),
        (record(STDOUT, 2, b"Status: 200 OK\r\n\r\nhello"), "protocol", "no record"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_answers_are_errors(answer: bytes, kind: str, text: str, folder: Path) -> None:
    with Recording(folder / "sock", answer):
        seen, status = bench(folder / "sock", "--count", "20", "-c", "2")
    assert status == 1
    assert seen["errors"].keys() == {kind}
    assert seen["errors"][kind]["count"] == 20
    assert text in seen["errors"][kind]["first"]


def test_a_good_answer_among_others_is_told_apart(folder: Path) -> None:
    answers = [GOOD, GOOD, GOOD.replace(b"hello", b"HELLO"), GOOD.replace(b"200", b"404"), GOOD]
    noisy = record(STDERR, 1, b"warning") + GOOD

    def behave(connection: socket.socket) -> None:
        for answer in [*answers, noisy]:
            if connection.recv(65536):
                half = len(answer) // 2
                connection.sendall(answer[:half])
                time.sleep(0.001)
                connection.sendall(answer[half:])
        connection.recv(65536)

    with Recording(folder / "sock", behave):
        seen, status = bench(folder / "sock", "--count", "6", "-c", "1")
    assert status == 1
    assert seen["statuses"] == {"200": 5, "404": 1}
    assert seen["errors"]["status"]["count"] == 1
    assert seen["received_bytes"] == sum(map(len, answers)) + len(noisy)


def test_a_cut_answer_is_an_error_and_a_close_between_two_is_none(folder: Path) -> None:
    def once(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(GOOD)

    with Recording(folder / "sock", once):
        seen, status = bench(folder / "sock", "--count", "30", "-c", "3")
    assert status == 0, seen
    assert seen["requests"] == 30
    assert seen["connects"] == 30
    assert seen["reconnects"] >= 27
    assert any("closed after an answer" in note for note in seen["notes"])
    (folder / "sock").unlink()

    def cut(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(GOOD[:-1])

    with Recording(folder / "sock", cut):
        seen, status = bench(folder / "sock", "--count", "30", "-c", "3")
    assert (status, seen["requests"]) == (1, 0)
    assert seen["errors"]["closed"]["count"] == 30


def test_silence_is_told(folder: Path) -> None:
    def behave(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass

    with Recording(folder / "sock", behave):
        seen, status = bench(folder / "sock", "--duration", "1", "-c", "3")
    assert (status, seen["requests"], seen["never_served"], seen["unanswered"]) == (1, 0, 3, 3)
    assert seen["oldest_unanswered_ms"] > 200
    assert any("3 of 3 connections were never served" in note for note in seen["notes"])


def test_what_takes_too_long_is_given_up(folder: Path) -> None:
    def behave(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass

    with Recording(folder / "sock", behave):
        seen, status = bench(folder / "sock", "--count", "2", "-c", "2", "--timeout", "0.2")
    assert status == 1
    assert seen["errors"]["timeout"]["count"] == 2


def test_a_rate_has_the_waiting_of_those_that_could_not_be_sent_counted(folder: Path) -> None:
    """A server that stops for a while stops all that are due meanwhile, not only one."""

    def behave(connection: socket.socket) -> None:
        answered = 0
        while connection.recv(65536):
            answered += 1
            if answered == 10:
                time.sleep(0.5)
            connection.sendall(GOOD)

    with Recording(folder / "sock", behave):
        options = ["--count", "150", "--rate", "200", "-c", "1"]
        seen, status = bench(folder / "sock", *options)
    assert (status, seen["requests"]) == (0, 150)
    # About 100 requests fell due in the half second, and each waited for its rest.
    assert seen["latency_ms"]["p75"] > 100
    assert seen["service_ms"]["p75"] < seen["latency_ms"]["p75"]
    assert seen["latency_ms"]["max"] >= 500


def test_a_rate_that_cannot_be_kept_is_told(folder: Path) -> None:
    def behave(connection: socket.socket) -> None:
        while connection.recv(65536):
            time.sleep(0.05)
            connection.sendall(GOOD)

    with Recording(folder / "sock", behave):
        seen, _ = bench(folder / "sock", "--duration", "0.5", "--rate", "1000", "-c", "2")
    assert seen["requests"] + seen["unanswered"] + seen["unsent"] == pytest.approx(500, abs=2)
    assert seen["unsent"] > 300
    assert any("were due and never sent" in note for note in seen["notes"])


def test_a_full_accept_queue_is_waited_for(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "sock"))
        listener.listen(0)
        seen, status = bench(folder / "sock", "--duration", "0.3", "-c", "4")
    assert status == 1
    assert seen["queue_full"] > 0
    assert seen["never_served"] == 4


def test_nobody_listens(folder: Path) -> None:
    text = refused_here(1, "bench", f"unix:{folder}/none", cwd=folder)
    assert text == f"cannot connect to unix:{folder}/none: No such file or directory"


@pytest.mark.parametrize(
    "arguments",
    [
        ["fd:0"],
        ["tcp:127.0.0.1:0"],
        ["nonsense"],
        [],
        ["unix:s", "no-path"],
        ["unix:s", "--connections", "0"],
        ["unix:s", "-c", "2", "--processes", "3"],
        ["unix:s", "--body-size", "1", "-d", "x"],
        ["unix:s", "-d", "@none"],
        ["unix:s", "-H", "no header"],
        ["unix:s", "--param", "name"],
        ["unix:s", "--rate", "0"],
        ["unix:s", "-c", "100000000"],
    ],
    ids=" ".join,
)
def test_misuse_is_told(arguments: list[str], folder: Path) -> None:
    refused_here(2, "bench", *arguments, cwd=folder)


# the terminal


@pytest.mark.requires_program("cc")
def test_the_report_is_for_people(floor: Path) -> None:
    arguments = ["bench", f"unix:{floor}", "--count", "300", "--json-file", "figures.json"]
    done = fulgate(*arguments, cwd=floor.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"GET / of unix:{floor}\n" in done.stdout
    for word in ("requests", "300 in", "status", "99.9 %", "latency", "█", "generator"):
        assert word in done.stdout
    written = json.loads((floor.parent / "figures.json").read_text())
    assert written["requests"] == 300


@pytest.mark.requires_program("cc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_what_was_seen(number: signal.Signals, floor: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "fulgate", "bench", f"unix:{floor}",
         "--duration", "100", "--json"],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )  # fmt: skip
    until(lambda: children(process.pid), "it has processes")
    until(lambda: connections(floor) > 1, "they have connected")
    time.sleep(0.5)  # for some answers
    # As a terminal does it: to all processes of the group.
    os.killpg(process.pid, number)
    out, _ = process.communicate(timeout=60)
    seen = json.loads(out)
    assert process.returncode == 0
    assert 0 < seen["seconds"] < 90
    assert not children(process.pid)


def connections(path: Path) -> int:
    """How many connections does a Unix socket have, beside the one that listens?"""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return sum([line.endswith(f" {path}") for line in lines]) - 1


def children(pid: int) -> list[str]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return path.read_text().split() if path.exists() else []


# the figures


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=60))
def test_a_histogram_is_right_within_a_hundredth(values: list[int]) -> None:
    whole, halves = Histogram(), [Histogram(), Histogram()]
    for number, value in enumerate(values):
        whole.add(value)
        halves[number % 2].add(value)
    halves[0].merge(Histogram.of(halves[1].as_list()))
    values.sort()
    for found in (whole, halves[0]):
        assert found.count == len(values)
        for share in (50.0, 90.0, 100.0):
            exact = values[max(-(-int(share * len(values)) // 100) - 1, 0)]
            assert found.percentiles(share)[0] == pytest.approx(exact, rel=0.01, abs=1100)
        assert found.max == pytest.approx(values[-1], rel=0.01, abs=1100)
        assert found.mean == pytest.approx(sum(values) / len(values), rel=0.01, abs=1100)
        shown = rows(found)
        assert len(shown) <= 16
        assert sum(count for _, _, count in shown) == len(values)
        assert all(low < high for low, high, _ in shown)


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), max_size=20))
def test_an_answer_does_not_depend_on_cuts(sizes: list[int]) -> None:
    data = record(STDERR, 1, b"oh") + GOOD
    reader = AnswerReader()
    for size in sizes:
        piece, data = data[:size], data[size:]
        assert reader.feed(piece) == (not data)
        if not data:
            break
    else:
        assert reader.feed(data)
    assert (reader.status, reader.length) == (200, 5)
    assert reader.raw == record(STDERR, 1, b"oh") + GOOD


def test_a_head_that_never_ends_is_wrong() -> None:
    reader = AnswerReader()
    assert not reader.feed(record(STDOUT, 1, b"X: " + b"y" * 60000))
    with pytest.raises(Wrong, match="longer than"):
        reader.feed(record(STDOUT, 1, b"y" * 60000))


def test_a_share_is_a_part_of_the_whole() -> None:
    plan = Plan(1, "", b"", connections=10, count=7, rate=30.0)
    parts = [plan.share(number, 3) for number in range(3)]
    assert sum(part.connections for part in parts) == 10
    assert sum(part.count for part in parts) == 7
    assert sum(part.rate for part in parts) == pytest.approx(30)
    assert [part.delay for part in parts] == pytest.approx([0, 1 / 30, 2 / 30])


@pytest.mark.parametrize(
    ("counts", "plan", "note"),
    [
        (Counts(cpu_share=0.95), {}, "The load generator was the limit itself: it used 95%"),
        (Counts(cpu_share=0.95), {"rate": 5.0}, ""),
        (Counts(starved_share=0.4), {}, "waited for a core 40% of the time"),
        (Counts(fatal="no more sockets"), {}, "no more sockets"),
        (Counts(queue_full=3), {}, "accept queue was full 3 times"),
        (Counts(), {}, ""),
    ],
)
def test_it_says_what_has_to_be_known(counts: Counts, plan: dict[str, Any], note: str) -> None:
    report = Report("unix:s", "GET", "/", 0, 1, Plan(1, "", b"", **plan), counts)
    assert note in " ".join(report.notes())
    assert bool(report.notes()) == bool(note)
