"""The load generator tells the truth: what was answered, what was not, what was wrong."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fault.client import END_REQUEST, STDOUT, record
from tests.flup import reachable, until

pytestmark = pytest.mark.requires_program("cc")

BENCH = Path(__file__).parents[1] / "bench"
GOOD = (
    record(STDOUT, 1, b"Status: 200 OK\r\n\r\nhello")
    + record(STDOUT, 1)
    + record(END_REQUEST, 1, bytes(8))
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    for name in ("load", "floor"):
        flags = ["-O2", "-Wall", "-Wextra", "-Werror"]
        subprocess.run(["cc", *flags, "-o", folder / name, BENCH / f"{name}.c"], check=True)
    return folder


@pytest.fixture
def floor(built: Path, folder: Path) -> Iterator[Path]:
    path = folder / "sock"
    process = subprocess.Popen([built / "floor", path])
    until(lambda: reachable(path), "the floor listens")
    yield path
    process.terminate()
    process.wait(10)


def load(built: Path, path: Path, *options: str) -> tuple[dict[str, Any], int]:
    """Give what the load generator reports, and its exit status."""
    command = [str(built / "load"), "--json", "--warmup", "0", *options, f"unix:{path}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=60)
    report: dict[str, Any] = json.loads(done.stdout)
    return report, done.returncode


@pytest.mark.parametrize("options", [[], ["--close"], ["--body", "300000"]], ids=str)
def test_answers_are_counted(options: list[str], built: Path, floor: Path) -> None:
    seen, status = load(built, floor, "--connections", "5", "--requests", "200", *options)
    assert status == 0
    assert 200 <= seen["requests"] < 205
    assert seen["errors"] == seen["never_served"] == 0
    assert seen["answer_bytes"] == 76
    assert seen["connects"] >= (200 if "--close" in options else 5)
    assert 0 < seen["p50_us"] <= seen["p99_us"] <= seen["max_us"] * 1.02


def test_paths_have_their_share(built: Path, floor: Path) -> None:
    seen, _ = load(built, floor, "--requests", "20000", "--mix", "0.1=/wait", "--aside", "2=/other")
    hello, wait, other = seen["paths"]
    assert [hello["path"], wait["path"], other["path"]] == ["/", "/wait", "/other"]
    assert 0.08 < wait["requests"] / seen["requests"] < 0.12
    assert seen["requests"] == hello["requests"] + wait["requests"]
    assert other["aside"]
    assert other["requests"] > 0
    assert seen["requests_all"] == seen["requests"] + other["requests"]


def test_other_connections_stay_aside(built: Path, floor: Path) -> None:
    options = ["--idle", "300", "--silent", "50", "--churn", "2000", "--seconds", "0.3"]
    seen, status = load(built, floor, "--connections", "4", *options)
    assert status == seen["errors"] == seen["never_served"] == 0
    assert seen["idle_open"] == 300
    assert seen["requests_all"] == seen["requests"] + 300
    assert seen["churned"] > 0


def answer_with(folder: Path, data: bytes) -> tuple[socket.socket, Path]:
    """Listen; answer the first bytes of each connection with `data`, and close it."""
    path = folder / "sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(8)

    def serve() -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return  # the test has ended
            with connection, contextlib.suppress(ConnectionError):
                connection.recv(65536)
                connection.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    return listener, path


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "closed before END_REQUEST"),
        (GOOD[:-1], "closed before END_REQUEST"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "a record that does not belong here"),
        (GOOD.replace(b"200 OK", b"500 No"), "a status other than 2xx"),
        (GOOD[:-8] + bytes([0, 0, 0, 0, 1, 0, 0, 0]), "a protocolStatus other"),
        (GOOD + GOOD, "bytes after END_REQUEST"),
    ],
    ids=["nothing", "cut", "http", "500", "refused", "twice"],
)
def test_wrong_answers_are_errors(data: bytes, error: str, built: Path, folder: Path) -> None:
    listener, path = answer_with(folder, data)
    with listener:
        seen, status = load(built, path, "--connections", "1", "--seconds", "1")
        listener.shutdown(socket.SHUT_RDWR)
    assert status == 1
    assert seen["errors"] > 0
    assert error in seen["first_error"]


def test_an_answer_without_a_status_is_200(built: Path, folder: Path) -> None:
    listener, path = answer_with(folder, GOOD.replace(b"Status: 200 OK", b"Server: is PHP"))
    with listener:
        seen, _ = load(built, path, "--connections", "1", "--close", "--seconds", "1")
        listener.shutdown(socket.SHUT_RDWR)
    assert seen["errors"] == 0
    assert seen["requests"] > 0


def test_connections_without_an_answer_are_told(built: Path, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "sock"))
        listener.listen(8)
        seen, status = load(built, folder / "sock", "--connections", "3", "--seconds", "1")
    assert status == 0
    assert seen["never_served"] == 3
    assert seen["oldest_unanswered_us"] >= 150_000  # opening them may take some of the time
