"""ASGI requests on the scoreboard, their deadlines, and loops that are blocked."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from wsproto.events import TextMessage

from fulgate.client.connection import Answer, call
from fulgate.client.status import document
from fulgate.config import Config
from fulgate.drivers.aio_watch import Watch
from fulgate.errors import FulgateError
from fulgate.exchange import Exchange, Role
from fulgate.processes.scoreboard import OPEN, own_slot
from tests.asgi import Make, serve  # noqa: F401
from tests.command import Served
from tests.test_drivers import log  # noqa: F401
from tests.test_master import Pool, cpu_of, until
from tests.test_status import counted
from tests.test_websocket import Client, Echo

APP = """\
import asyncio, os, time

async def nested(seconds):
    await asyncio.sleep(seconds)

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("only http")
    path = scope["path"]
    start = {"type": "http.response.start", "status": 404 if path == "/404" else 200, "headers": []}
    if path == "/begun":
        await send(start)
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        await nested(60)
    if path == "/sleep":
        await nested(60)
    if path == "/short":
        await nested(1.5)
    if path == "/go":
        while not os.path.exists("go"):
            await asyncio.sleep(0.02)
    if path == "/stubborn":
        for _ in range(60):
            try:
                await nested(1)
            except asyncio.CancelledError:
                pass
    if path == "/block":
        time.sleep(60)
    if path == "/blockshort":
        time.sleep(1.5)
    if path == "/stuck":
        import ctypes
        ctypes.PyDLL(None).sleep(60)  # with the GIL held
    if path == "/fail":
        raise LookupError("on purpose")
    await send(start)
    await send({"type": "http.response.body", "body": f"{os.getpid()} {os.getppid()}".encode()})
"""


class Watched(Pool):
    """A master with ASGI workers, and an observer."""

    def __init__(self, folder: Path, *options: str, workers: int = 1) -> None:
        self.address = f"unix:{folder}/status.sock"
        more = (f"--status-bind={self.address}", "--graceful-timeout=5")
        super().__init__(folder, *more, *options, workers=workers, app=APP)
        self.executor = ThreadPoolExecutor(16)

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = document(self.address)["pools"][0]
        return found

    def pids(self) -> set[int]:
        return {one["pid"] for one in self.state["processes"] if one["state"] == "ready"}

    def get(self, path: str) -> Answer:
        params = {"REQUEST_METHOD": "GET", "REQUEST_URI": path, "PATH_INFO": path}
        return call(
            self.endpoints[0], {**params, "SCRIPT_NAME": "", "REQUEST_ID": "the-id"}, timeout=60
        )

    def asked(self, path: str) -> Future[Answer]:
        return self.executor.submit(self.get, path)

    def until(self, what: Any) -> None:
        until(lambda: what(self.state), lambda: f"{self.state} {self.text}")


def test_requests_are_counted_and_shown_and_the_paths_of_the_status_answered(folder: Path) -> None:
    options = ("--status-path=/own/status", "--ping-path=/own/ping", "--worker-concurrency=4")
    with Watched(folder, *options) as pool:
        pool.until(lambda state: state["workers"]["ready"])
        assert pool.state["threads"] == {"idle": 4, "busy": 0}
        for _ in range(20):
            pool.get("/")
        assert [pool.get(path).status for path in ("/404", "/fail")] == [404, 500]
        waiting = [pool.asked("/go") for _ in range(6)]
        pool.until(lambda state: [one["line"] for one in state["slow"]] == 4 * ["GET /go"])
        state = pool.state
        assert state["slow"][0]["id"] == "the-id"
        assert state["threads"] == {"idle": 0, "busy": 4}
        assert state["health"] == "busy"
        assert pool.get("/own/ping").body == b"pong\n"
        assert b"requests:             22" in pool.get("/own/status").body
        (folder / "go").touch()
        assert [one.result(60).status for one in waiting] == [200] * 6
        pool.until(lambda state: state["totals"]["requests"] == 28)
        pool.until(lambda state: counted(state["totals"]) == 28)
        totals = pool.state["totals"]
        assert totals["answers"] == {"1xx": 0, "2xx": 26, "3xx": 0, "4xx": 1, "5xx": 1}
        assert totals["errors"] == 1
        assert sum(count for _, count in totals["latency"]) == 28
        pool.until(lambda state: state["threads"] == {"idle": 4, "busy": 0})
        pool.until(lambda state: state["totals"]["accepted"] == 30)


def test_a_request_that_takes_too_long_is_cancelled_and_others_go_on(folder: Path) -> None:
    with Watched(folder, "--request-timeout=1") as pool:
        pool.until(lambda state: state["workers"]["ready"])
        (pid,) = pool.pids()
        late, begun = pool.asked("/sleep"), pool.asked("/begun")
        assert pool.get("/").status == 200
        assert late.result(60).status == 504
        with pytest.raises(FulgateError):
            assert begun.result(60).body != b"begun"
        pool.wait_for(
            r'(?s)gave up a request: \d+\.\d s so far: "GET /sleep HTTP/1.[01]" id=the-id\n'
            r".*?await nested\(60\).*?in nested.*?asyncio.sleep\(seconds\)"
        )
        pool.until(lambda state: not state["threads"]["busy"])
        assert pool.pids() == {pid}
        assert pool.state["totals"]["errors"] == 2


def test_one_that_does_not_end_when_it_is_cancelled_costs_its_worker(folder: Path) -> None:
    with Watched(folder, "--request-timeout=0.5") as pool:
        pool.until(lambda state: state["workers"]["ready"])
        before = pool.pids()
        assert pool.get("/stubborn").status == 504
        pool.wait_for(r'"GET /stubborn HTTP/1.[01]" was cancelled, and does not end')
        pool.wait_for("ends: a request did not end in time")
        until(lambda: pool.pids() and not (pool.pids() & before), lambda: pool.text)


@pytest.mark.parametrize("path", ["/block", "/stuck"])
def test_a_worker_whose_loop_is_blocked_is_killed(folder: Path, path: str) -> None:
    with Watched(folder, "--request-timeout=0.5") as pool:
        pool.until(lambda state: state["workers"]["ready"])
        (before,) = pool.pids()
        with pytest.raises(FulgateError):
            pool.get(path)
        if path == "/block":
            pool.wait_for(r'(?s)gave up a loop that is blocked: .*?"GET /block.*?time.sleep\(60\)')
        pool.wait_for(f"worker {before} is killed")
        pool.wait_for(f'it runs "GET {path}"')
        until(lambda: pool.pids() and before not in pool.pids(), lambda: pool.text)
        assert pool.get("/").status == 200


def test_what_is_slow_is_logged_once_also_in_a_process_that_serves_alone(folder: Path) -> None:
    (folder / "application.py").write_text(APP)
    with Served(
        "application:app", f"--bind=unix:{folder}/sock", "--request-slowlog-timeout=0.3",
        cwd=folder,
    ) as server:  # fmt: skip
        server.ask("/short")
        server.ask("/short")
        until(lambda: len(re.findall(r'slow: \d+\.\d s so far: "GET /short', server.text)) == 2)
        assert "await nested(1.5)" in server.text
        server.ask("/blockshort")
        server.wait_for(
            r'(?s)the loop is blocked: \d+\.\d s so far: "GET /blockshort.*?time.sleep\(1.5\)'
        )
        server.ask("/")
        assert server.text.count("the loop is blocked") == 1


def test_a_dynamic_pool_sees_the_load(folder: Path) -> None:
    options = ("--pool-mode=dynamic", "--worker-concurrency=2", "--max-spare-workers=1")
    with Watched(folder, *options, workers=3) as pool, contextlib.ExitStack() as stack:
        pool.until(lambda state: state["workers"]["ready"] == 1)
        stack.callback((folder / "go").touch)
        waiting = [pool.asked("/go")]
        pool.until(lambda state: state["threads"] == {"idle": 1, "busy": 1})
        time.sleep(1.5)
        assert len(pool.pids()) == 1  # it is not full
        while pool.state["workers"]["ready"] < 3:
            waiting.append(pool.asked("/go"))
            time.sleep(0.3)
            assert len(waiting) < 150, pool.text
        (folder / "go").touch()
        assert {one.result(60).status for one in waiting} == {200}
        pool.until(lambda state: state["workers"]["ready"] == 1)


def test_an_ondemand_pool_runs_several_requests_in_one_worker(folder: Path) -> None:
    options = ("--pool-mode=ondemand", "--process-idle-timeout=0.5")
    with Watched(folder, *options, workers=3) as pool:
        waiting = [pool.asked("/go") for _ in range(5)]
        pool.until(lambda state: state["threads"]["busy"] == 5)
        assert pool.state["spawned"] == 1
        (folder / "go").touch()
        assert {one.result(60).status for one in waiting} == {200}
        pool.until(lambda state: not state["workers"]["ready"] + state["workers"]["stopping"])
        assert pool.state["totals"]["requests"] == 5


def test_more_requests_at_once_than_are_allowed_get_503(folder: Path) -> None:
    with Watched(folder, "--limit-concurrency=2") as pool:
        waiting = [pool.asked("/go") for _ in range(2)]
        pool.until(lambda state: state["threads"]["busy"] == 2)
        answer = pool.get("/")
        assert answer.status == 503
        assert dict(answer.headers)["Retry-After"] == "1"
        (folder / "go").touch()
        assert {one.result(60).status for one in waiting} == {200}
        pool.until(lambda state: state["totals"]["refused"] == 1)


def test_a_websocket_has_no_time_to_end_by(serve: Make) -> None:  # noqa: F811
    app = Echo()
    server = serve(app, request_timeout=0.2, request_slowlog_timeout=0.1, status_path="/own/status")
    client = Client(server).open()
    slot = server.slot
    assert slot is not None
    until(lambda: [t.state for t in slot.board.workers()[0].threads] == [OPEN])
    time.sleep(1)
    client.send(TextMessage("still here"))
    assert client.message() == "still here"
    assert slot.board.glance(0).oldest == 0.0
    client.close()
    app.ended.wait()
    until(lambda: slot.board.totals().requests == 1)
    until(lambda: slot.board.workers()[0].busy == 0)


def test_a_worker_that_has_answered_enough_is_replaced(folder: Path) -> None:
    with Watched(folder, "--max-requests=3") as pool:
        pool.until(lambda state: state["workers"]["ready"])
        before = pool.pids()
        for _ in range(3):
            assert pool.get("/").status == 200
        pool.wait_for(r"ends: \d+ requests")
        until(lambda: pool.pids() and not (pool.pids() & before), lambda: pool.text)
        assert pool.state["totals"]["requests"] == 3


@pytest.mark.slow
def test_idle_loops_use_next_to_no_cpu(folder: Path) -> None:
    with Watched(folder, workers=4) as pool:
        pool.until(lambda state: state["workers"]["ready"] == 4)
        pool.get("/")
        time.sleep(1)  # all are at rest
        pids = (pool.process.pid, *pool.workers)
        before, began = cpu_of(pids), time.monotonic()
        time.sleep(6)
        share = (cpu_of(pids) - before) / (time.monotonic() - began)
        assert share < 0.02, share


class Quiet:
    """An answerer that does nothing."""

    lasting = False
    task: asyncio.Task[None] | None = None

    def expire(self) -> None: ...

    begin = moved = aborted = pause = resume = expire


def test_what_is_beyond_the_places_is_counted_all_the_same() -> None:
    slot = own_slot(3)
    watch = Watch(Config(worker_concurrency=2), slot, lambda: (0, 0))
    begun = [Exchange(number, Role.RESPONDER, True) for number in range(5)]
    for exchange in begun:
        exchange.status = "200 OK"
        watch.begun(exchange, Quiet())
    assert slot.board.glance(0).busy == 2
    for exchange in begun:
        watch.over(exchange)
    dropped = Exchange(9, Role.RESPONDER, True)
    dropped.aborted = True
    watch.over(dropped)
    totals = slot.board.totals()
    assert (totals.requests, totals.answers[1], sum(totals.latency)) == (5, 5, 5)
    assert slot.board.glance(0).busy == 0
    assert watch.dropped == 1
