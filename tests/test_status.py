"""The status: its numbers are those of the load, and it answers while all threads are busy."""

from __future__ import annotations

import json
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from fulgate.client.connection import Answer, call
from fulgate.client.status import ask, document
from fulgate.client.status_view import view
from fulgate.errors import BindError, ConfigError
from fulgate.processes.monitor import Statsd
from fulgate.processes.scoreboard import READY, STOPPING, PoolScore, Scoreboard, own_slot
from fulgate.processes.status import Status, health, open_metrics, text_of
from tests.command import Served, fulgate

APP = """\
import os, time
def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/wait":
        while not os.path.exists("go"):
            time.sleep(0.01)
    if path == "/fail":
        raise LookupError("on purpose")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]
"""


def get(endpoint: str, path: str, query: str = "") -> Answer:
    uri = path + ("?" + query if query else "")
    return call(
        endpoint,
        {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "REQUEST_URI": uri,
            "QUERY_STRING": query,
            "SERVER_PROTOCOL": "HTTP/1.1",
        },
        timeout=100,
    )


def served(folder: Path, *options: str) -> Served:
    (folder / "application.py").write_text(APP)
    return Served(
        "application:app", f"--bind=unix:{folder}/app.sock", "--threads=2",
        f"--status-bind=unix:{folder}/status.sock", "--status-path=/own/status",
        "--ping-path=/own/ping", *options, cwd=folder,
    )  # fmt: skip


@pytest.fixture
def server(folder: Path) -> Iterator[Served]:
    with served(folder) as server:
        yield server


def wait_for(address: str, what: Any) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while not what((found := document(address))["pools"][0]):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def counted(totals: dict[str, Any]) -> int:
    """How many requests are in each of the figures?"""
    latencies = sum(count for _, count in totals["latency"])
    return int(min(totals["requests"], sum(totals["answers"].values()), latencies))


def test_numbers_are_those_of_the_load(server: Served, folder: Path) -> None:
    address = f"unix:{folder}/status.sock"
    for number in range(40):
        get(server.endpoints[0], "/fail" if number % 10 == 0 else f"/{number}")
    # Of a thread that is just counting, some figures may be there before others.
    pool = wait_for(address, lambda pool: counted(pool["totals"]) >= 40)["pools"][0]
    totals = pool["totals"]
    assert totals["requests"] == 40
    assert totals["answers"] == {"1xx": 0, "2xx": 36, "3xx": 0, "4xx": 0, "5xx": 4}
    assert totals["errors"] == 4
    assert sum(count for _, count in totals["latency"]) == 40
    assert sum(thread["requests"] for thread in pool["processes"][0]["threads"]) == 40
    assert pool["processes"][0]["pid"] == server.process.pid
    parse: Any = text_string_to_metric_families
    families = {family.name: family for family in parse(ask(address, "/metrics")[1])}
    assert families["fulgate_requests"].samples[0].value == 40
    counts = [s.value for s in families["fulgate_request_duration_seconds"].samples]
    assert counts == sorted(counts)
    assert counts[-1] == 40
    # What it answers itself is counted by nobody.
    assert get(server.endpoints[0], "/own/ping").body == b"pong\n"
    text = get(server.endpoints[0], "/own/status").body.decode()
    assert re.search(r"^requests: +40$", text, re.MULTILINE)


def test_it_answers_while_all_threads_are_busy(server: Served, folder: Path) -> None:
    address, endpoint = f"unix:{folder}/status.sock", server.endpoints[0]
    wait_for(address, lambda pool: pool["workers"]["ready"])
    assert ask(address, "/health") == (200, "ok\n")
    threads = [threading.Thread(target=get, args=(endpoint, "/wait")) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        pool = wait_for(address, lambda p: p["threads"]["busy"] == 2 and p["slow"])["pools"][0]
        assert pool["slow"][0]["line"] == "GET /wait"
        assert ask(address, "/health") == (200, "busy\n")
        assert get(endpoint, "/own/ping").body == b"pong\n"
        found = json.loads(get(endpoint, "/own/status", "json&full").body)
        assert found["pools"][0]["processes"][0]["busy"] == 2
        text = fulgate("status", address, "--full", cwd=folder)
        assert text.stdout.count("GET /wait") == 2, text
        assert fulgate("status", address, "--health", cwd=folder).stdout == "busy\n"
        assert fulgate("status", "--health", cwd=folder).returncode == 2  # nothing says where
        (folder / "fulgate.toml").write_text(f"status_bind = [{address!r}]\n")
        assert fulgate("status", "--health", cwd=folder).stdout == "busy\n"
        (folder / "fulgate.toml").rename(folder / "other.toml")
        top = fulgate("top", "--config", "other.toml", "--count=1", cwd=folder)
        assert "2 of 2 threads busy" in top.stdout, top
    finally:
        (folder / "go").touch()
        for thread in threads:
            thread.join(60)


def test_an_observer_answers_for_a_pool_of_workers(folder: Path) -> None:
    address = f"unix:{folder}/status.sock"
    with served(folder, "--workers=2") as server:
        wait_for(address, lambda pool: pool["workers"]["ready"] == 2)
        for number in range(20):
            get(server.endpoints[0], f"/{number}")
        pool = wait_for(address, lambda pool: pool["totals"]["requests"] >= 20)["pools"][0]
        assert pool["totals"]["requests"] == 20
        assert len(pool["processes"]) == 2
        assert server.process.pid not in [one["pid"] for one in pool["processes"]]
        found = json.loads(get(server.endpoints[0], "/own/status", "json").body)
        assert found["pools"][0]["totals"]["requests"] == 20
    assert not (folder / "status.sock").exists()


def test_health() -> None:
    board = Scoreboard(1, 1)
    status = Status("1", lambda: {"www": board})
    assert health(status.document()) == ("dead", False)
    slot = board.take(0, 0)
    assert health(status.document()) == ("starting", False)
    slot.become(READY)
    cell = slot.thread()
    assert cell is not None
    assert health(status.document()) == ("ok", True)
    slot.become(STOPPING)
    assert health(status.document()) == ("dead", False)
    assert health({"pools": []})[1] is False
    slot.become(READY)
    slot.board.write(slot.board.first_word(0) + 4, struct.pack("d", time.monotonic() - 20))
    assert health(status.document()) == ("dead", False)
    board.retire(0)
    assert health(status.document()) == ("dead", False)
    board.publish(PoolScore(rests=1))
    assert health(status.document()) == ("ok", True)
    busy = {"pools": [{"health": "ok"}, {"health": "busy"}]}
    assert health(busy) == ("busy", True)


def test_view_and_statsd_tell_what_was_added() -> None:
    slot = own_slot(1)
    slot.become(READY)
    slot.thread()
    slot.board.publish(PoolScore(started=time.monotonic()))
    status = Status("1", lambda: {"a.b": slot.board})
    now = status.document()
    later = json.loads(json.dumps(now))
    later["time"] += 2
    later["pools"][0]["totals"].update(requests=50, latency=[[300, 50]])
    assert view(later, now)
    assert now["pools"][0]["queue_limit"] is None
    assert "listen queue len:     no limit" in text_of(now)
    assert b"fulgate_queue_limit{" not in open_metrics(now)[0]
    later["pools"][0].update(queued=2, queue_limit=5, queue_most=5)
    later["pools"][0]["totals"]["queue_full"] = 7
    statsd = Statsd(("127.0.0.1", 1), "pre.", status)
    told = statsd.lines(now)
    assert not [line for line in told if line.endswith("|c") or "queue_limit" in line]
    told = statsd.lines(later)
    assert {"pre.a_b.requests:50|c", "pre.a_b.queue_full:7|c", "pre.a_b.workers:1|g"} < set(told)
    assert {"pre.a_b.queue:2|g", "pre.a_b.queue_limit:5|g", "pre.a_b.queue_most:5|g"} < set(told)


@pytest.mark.parametrize("workers", [0, 2])
def test_statsd_is_told(folder: Path, workers: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(20)
        host = f"--statsd-host=127.0.0.1:{sock.getsockname()[1]}"
        with served(folder, host, f"--workers={workers}") as server:
            told = asked = 0
            while told < 8:
                if asked == told:
                    for _ in range(4):
                        get(server.endpoints[0], "/")
                    asked += 4
                    if workers:
                        server.process.send_signal(signal.SIGHUP)  # another reports
                data = sock.recv(9999)
                assert b"|g" in data
                found = re.search(
                    rb"^fulgate\.(?:fulgate|app)\.requests:([0-9]+)\|c$", data, re.MULTILINE
                )
                told += int(found[1]) if found else 0
            assert told == 8


def test_no_page_of_elsewhere_reads_it(folder: Path) -> None:
    (folder / "application.py").write_text(APP)
    with Served(
        "application:app", f"--bind=unix:{folder}/app.sock", "--status-bind=tcp:127.0.0.1:0",
        cwd=folder,
    ) as server:  # fmt: skip
        port = server.wait_for(r"status is on tcp:127.0.0.1:\d+").rpartition(":")[2]
        with socket.create_connection(("127.0.0.1", int(port)), 20) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
            assert sock.recv(99).startswith(b"HTTP/1.1 403 ")
        assert ask(f"http://127.0.0.1:{port}", "/ping") == (200, "pong\n")


def test_who_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BindError, match="no status from"):
        ask(str(tmp_path / "no"), "/")
    with pytest.raises(ConfigError, match="write http"):
        ask("ftp://x/y", "/")
