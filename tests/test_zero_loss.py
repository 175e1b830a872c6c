"""While workers come and go under load, through nginx, no request is lost or answered twice."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.command import Served
from tests.sequence import APP, Sequence
from tests.servers import Running
from tests.servers.nginx import Nginx

pytestmark = [pytest.mark.requires_server("nginx"), pytest.mark.slow]


def served(folder: Path, *options: str, bind: str = "", app: str = APP) -> Served:
    (folder / "counted.py").write_text(app)
    bind = bind or f"unix:{folder}/sock?mode=666"
    common = ("counted:app", "--bind", bind, "--threads", "3", "--log-level", "debug")
    return Served(*common, *options, cwd=folder)


def nginx(running: Running, folder: Path) -> Nginx:
    return running(Nginx, f"unix:{folder}/sock", keepalive=True)


def wait_for_ready(server: Served, count: int) -> None:
    """Wait until so many workers have got ready, those that have gone since among them."""
    end = time.monotonic() + 100
    while len(re.findall(r"is ready$", server.text, re.MULTILINE)) < count:
        assert time.monotonic() < end, server.text
        time.sleep(0.02)


def test_ten_reloads(folder: Path, running: Running) -> None:
    with served(folder, "--workers", "2") as server:
        wait_for_ready(server, 2)
        with Sequence(nginx(running, folder).port) as load:
            load.some_more()
            for version in range(2, 12):
                source = (folder / "counted.py").read_text()
                text = re.sub(r"VERSION = \d+", f"VERSION = {version}", source)
                (folder / "counted.py").write_text(text)
                server.process.send_signal(signal.SIGHUP)
                wait_for_ready(server, 2 * version)
                load.some_more(60)
        load.check(folder / "notes")
        assert len(load.pids) >= 12
        assert {"1", "11"} <= load.versions


def test_twenty_recyclings(folder: Path, running: Running) -> None:
    options = ("--workers", "2", "--max-requests", "100", "--max-requests-jitter", "20")
    with served(folder, *options) as server:
        wait_for_ready(server, 2)
        with Sequence(nginx(running, folder).port) as load:
            wait_for_ready(server, 22)
            load.some_more(10)
        load.check(folder / "notes")


def test_the_program_is_executed_anew(folder: Path, running: Running) -> None:
    with served(folder, "--workers", "2") as server:
        wait_for_ready(server, 2)
        with Sequence(nginx(running, folder).port) as load:
            load.some_more()
            old = set(load.pids)
            server.process.send_signal(signal.SIGUSR2)
            wait_for_ready(server, 4)
            load.some_more(500)
        load.check(folder / "notes")
        assert old
        assert load.pids > old


# wrk asks for a number after the other, by GET and by POST, and says what it has seen.
WRK = """\
local number = 0
function request()
    number = number + 1
    if number % 4 == 0 then
        return wrk.format("POST", "/" .. number, nil, string.rep("x", number % 3000 + 1))
    end
    return wrk.format("GET", "/" .. number)
end
function done(summary)
    local e = summary.errors
    io.write(string.format(
        '\\nSEEN {"requests": %d, "errors": [%d, %d, %d, %d, %d]}\\n',
        summary.requests, e.connect, e.read, e.write, e.status, e.timeout))
end
"""
CONNECTIONS = 32

# The same as the application of tests/sequence.py.
ASGI = """\
import os

NOTES = os.open("notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

async def app(scope, receive, send):
    assert scope["type"] == "http"
    number = scope["path"][1:]
    size, more = 0, True
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        size, more = size + len(message["body"]), message["more_body"]
    os.write(NOTES, f"{number}\\n".encode())
    await send({"type": "http.response.start", "status": 200, "headers": []})
    body = f"{number} {size} {VERSION} {os.getpid()}".encode()
    await send({"type": "http.response.body", "body": body})

VERSION = 1
"""


def answered_by(port: int, numbers: Counter[str], path: str) -> tuple[str, str]:
    """Ask once, beside wrk; give the version and the process that answered."""
    numbers[path] += 1
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", f"/{path}")
        answer = connection.getresponse()
        body = answer.read().decode()
    finally:
        connection.close()
    assert answer.status == 200, body
    _, _, version, pid = body.split()
    return version, pid


def until_answered(port: int, numbers: Counter[str], wanted: str = "", other_than: str = "") -> str:
    """Wait until a version, or another process than before, answers; give the process."""
    end = time.monotonic() + 90
    while True:
        version, pid = answered_by(port, numbers, f"beside{len(numbers)}")
        if version == wanted or (not wanted and pid not in other_than):
            return pid
        assert time.monotonic() < end, (version, pid)
        time.sleep(0.02)


@pytest.mark.requires_program("wrk")
@pytest.mark.parametrize(
    ("app", "transport", "keepalive"),
    [
        pytest.param(APP, "unix", True, id="unix"),
        pytest.param(APP, "unix", False, id="unix-close"),
        pytest.param(APP, "tcp", True, id="tcp"),
        pytest.param(APP, "tcp", False, id="tcp-close"),
        pytest.param(ASGI, "unix", True, id="asgi"),
    ],
)
def test_wrk_at_full_load(
    folder: Path, running: Running, app: str, transport: str, keepalive: bool
) -> None:
    """Ten reloads, twenty recyclings and one execution anew, in one run of wrk."""
    (folder / "load.lua").write_text(WRK)
    recycled = re.compile(r"worker \d+ ends: \d+ requests$", re.MULTILINE)
    options = ("--workers", "2", "--max-requests", "1000", "--max-requests-jitter", "200")
    bind = "" if transport == "unix" else "tcp:127.0.0.1:0"
    with served(folder, *options, bind=bind, app=app) as server:
        wait_for_ready(server, 2)
        address = server.endpoints[0].partition("?")[0].removeprefix("tcp:")
        port = running(Nginx, address, keepalive=keepalive).port
        load = subprocess.Popen(
            ["wrk", "-t1", f"-c{CONNECTIONS}", "-d600", "-s", "load.lua", f"http://127.0.0.1:{port}/"],
            cwd=folder, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        beside: Counter[str] = Counter()
        try:
            for version in range(2, 12):
                source = (folder / "counted.py").read_text()
                text = re.sub(r"VERSION = \d+", f"VERSION = {version}", source)
                (folder / "counted.py").write_text(text)
                server.process.send_signal(signal.SIGHUP)
                until_answered(port, beside, wanted=str(version))
            end = time.monotonic() + 90
            while len(recycled.findall(server.text)) < 20:
                assert time.monotonic() < end, server.text
                time.sleep(0.05)
            ready = server.text.count("is ready")
            server.process.send_signal(signal.SIGUSR2)
            server.wait_for(r"(?s)serves .* serves ")
            wait_for_ready(server, ready + 2)
            time.sleep(1)
        finally:
            load.send_signal(signal.SIGINT)
            said, _ = load.communicate(timeout=60)
    seen = json.loads(said.partition("SEEN ")[2])
    assert seen["errors"] == [0, 0, 0, 0, 0], said + server.text
    notes = Counter((folder / "notes").read_text().split())
    assert [number for number, times in notes.items() if times != 1] == []
    mine = sum(notes[number] for number in beside)
    assert mine == len(beside)
    # Those that were on their way when wrk ended were served, too, or were not sent any more.
    assert 0 <= notes.total() - mine - seen["requests"] <= CONNECTIONS
