"""sd_notify(3), with a socket in the place of systemd's."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fulgate.config import Config
from fulgate.drivers.threads import Threads
from fulgate.drivers.worker import Worker
from fulgate.exchange import Carrier, Exchange, Limits, Role
from fulgate.protocols.fastcgi import FastCGI
from fulgate.systemd import Watchdog, notify, remember
from tests.command import APP, Served, environment
from tests.model import STDIN
from tests.raw import Raw, head, stream
from tests.test_master import Pool

PATIENCE = 30.0  # seconds
SILENCE = 2.0  # seconds without a word, of who is to say something three times in each

SITE = """\
import asyncio, ctypes, time

def hold(seconds):
    ctypes.PyDLL(None).sleep(seconds)  # with the GIL held

def app(environ, start_response):
    if environ["PATH_INFO"] == "/stuck":
        hold(60)
    if environ["PATH_INFO"] == "/slow":
        time.sleep(60)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]

async def coroutine(scope, receive, send):
    if scope["type"] == "http":
        if scope["path"] == "/stuck":
            time.sleep(60)
        if scope["path"] == "/slow":
            await asyncio.sleep(60)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})
"""


def manager(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(address)
    sock.settimeout(PATIENCE)
    return sock


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_a_state_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    name = f"{folder}/notify" if kind == "path" else f"@fulgate-{os.getpid()}"
    with manager(name.replace("@", "\0")) as sock:
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        assert notify("READY=1") is True
        assert sock.recv(100) == b"READY=1"


@pytest.mark.parametrize("name", ["", "relative", "vsock:2:1234", "/nowhere/at/all"])
def test_nobody_to_tell(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    assert notify("READY=1") is False
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert notify("READY=1") is False


def test_the_command_tells_when_it_is_ready_and_when_it_stops(folder: Path) -> None:
    (folder / "hello.py").write_text(APP)
    arguments = ["serve", "hello:app", "--bind", f"unix:{folder}/app.sock"]
    with manager(f"{folder}/notify") as sock:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "fulgate", *arguments],
            cwd=folder,
            env=environment(NOTIFY_SOCKET=f"{folder}/notify"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert sock.recv(100) == b"READY=1"
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(f"{folder}/app.sock")  # it is true
            process.send_signal(signal.SIGTERM)
            assert sock.recv(100) == b"STOPPING=1"
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            process.wait()


# The watchdog


def test_a_watchdog_is_that_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert math.isinf(Watchdog().interval)
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    assert Watchdog().interval == 1.0
    monkeypatch.setenv("WATCHDOG_PID", str(os.getppid()))
    assert math.isinf(Watchdog().interval)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert Watchdog().interval == 1.0
    for nothing in ("0", "-1", "x", ""):
        monkeypatch.setenv("WATCHDOG_USEC", nothing)
        assert math.isinf(Watchdog().interval)


def test_a_watchdog_is_told_when_it_is_due(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with manager(f"{folder}/notify") as sock:
        monkeypatch.setenv("NOTIFY_SOCKET", f"{folder}/notify")
        monkeypatch.setenv("WATCHDOG_USEC", "3000000")
        watchdog = Watchdog()
        for now in (100.0, 100.5, 101.0, 101.9, 102.1):
            watchdog.beat(now)
        notify("READY=1")
        told = [sock.recv(100) for _ in range(4)]
        assert told == [b"WATCHDOG=1"] * 3 + [b"READY=1"]


def test_who_is_told_is_known_when_the_environment_is_cleared(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fulgate.systemd._known", {})
    with manager(f"{folder}/notify") as sock:
        monkeypatch.setenv("NOTIFY_SOCKET", f"{folder}/notify")
        remember()
        monkeypatch.delenv("NOTIFY_SOCKET")
        assert notify("READY=1") is True
        assert sock.recv(100) == b"READY=1"


class Watched:
    """Systemd's part: it hears a server, and ends it by SIGKILL when it is silent for too long."""

    def __init__(self, folder: Path) -> None:
        self.socket = manager(f"{folder}/notify")
        self.env = {"NOTIFY_SOCKET": f"{folder}/notify", "WATCHDOG_USEC": "1000000"}

    def heard(self, wanted: bytes, times: int = 1) -> None:
        """Wait until this has been said so often."""
        while times:
            times -= self.socket.recv(100) == wanted

    def silent(self) -> None:
        """Wait until nothing is said any more."""
        self.socket.settimeout(SILENCE)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                self.socket.recv(100)
            except TimeoutError:
                return
        raise AssertionError("it goes on to say that it is well")


def ask(raw: Raw, path: str) -> None:
    raw.expect()
    raw.send(head(path), stream(STDIN, 1, b""))


@pytest.fixture
def watched(folder: Path) -> Iterator[Watched]:
    (folder / "dogged.py").write_text(SITE)
    watched = Watched(folder)
    with watched.socket:
        yield watched


@pytest.mark.parametrize("app", ["dogged:app", "dogged:coroutine"])
@pytest.mark.parametrize("clear", [(), ("--clear-env",)], ids=["", "clear"])
def test_a_process_that_is_stuck_is_silent(
    folder: Path, watched: Watched, app: str, clear: tuple[str, ...]
) -> None:
    served = Served(
        app, "-b", f"unix:{folder}/s", "--threads", "2", *clear, cwd=folder, env=watched.env
    )
    try:
        watched.heard(b"READY=1")
        watched.heard(b"WATCHDOG=1", 3)  # without a request
        with Raw(folder / "s") as slow, Raw(folder / "s") as stuck:
            ask(slow, "/slow")
            watched.heard(b"WATCHDOG=1", 6)  # to be busy is well
            ask(stuck, "/stuck")
            watched.silent()
        assert served.process.poll() is None
    finally:
        served.process.kill()  # as systemd does
        served.process.wait()


def test_a_request_that_waits_beside_a_free_thread_is_not_well(folder: Path) -> None:
    def gateway(exchange: Exchange, carrier: Carrier) -> None:
        raise AssertionError("nothing is served here")

    driver = Threads([], lambda listener: FastCGI(Limits(), {}), gateway, Config(threads=2))
    driver._workers = [Worker(), Worker()]
    waiting, running = Exchange(1, Role.RESPONDER, True), Exchange(2, Role.RESPONDER, True)
    waiting.began = 100.0
    try:
        assert driver._well(1000.0)
        driver._left_over = waiting  # it was there at the last tick, too
        assert driver._well(104.0)
        assert not driver._well(106.0)
        for worker in driver._workers:
            worker.exchange = running
        assert driver._well(106.0)  # it is only busy
        driver._left_over = None
        driver._leader = driver._workers[0]
        driver._leader.thread = threading.Thread(target=int)
        assert not driver._well(106.0)  # a leader that is not there
    finally:
        for worker in driver._workers:
            worker.close()


def test_a_master_that_is_stuck_is_silent_and_one_with_stuck_workers_is_not(
    folder: Path, watched: Watched
) -> None:
    pool = Pool(folder, env=watched.env, app=SITE)
    try:
        watched.heard(b"READY=1")
        watched.heard(b"WATCHDOG=1", 3)
        with Raw(folder / "sock") as stuck:
            ask(stuck, "/stuck")
            watched.heard(b"WATCHDOG=1", 6)
        workers = pool.workers
        pool.signal(signal.SIGSTOP)
        watched.silent()
    finally:
        pool.process.kill()
        pool.process.wait()
    for pid in workers:  # one holds its interpreter, so does not see that its master is gone
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_reload_and_a_new_program_are_told(folder: Path, watched: Watched) -> None:
    with Pool(folder, env=watched.env) as pool:
        watched.heard(b"READY=1")
        before = pool.workers
        pool.signal(signal.SIGHUP)
        while not (said := watched.socket.recv(100)).startswith(b"RELOADING=1\nMONOTONIC_USEC="):
            assert said == b"WATCHDOG=1"
        watched.heard(b"READY=1")
        assert before != pool.workers
        pool.ask()
        pool.signal(signal.SIGUSR2)
        watched.heard(b"READY=1")  # of the same process, so WATCHDOG_PID is right
        watched.heard(b"WATCHDOG=1", 3)
        pool.signal(signal.SIGTERM)
        watched.heard(b"STOPPING=1")
        assert pool.process.wait(20) == 0
