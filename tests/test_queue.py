"""The status tells how full the queue is and was, what it holds, and how often that was too little:
of one process and of several, which each have their own, and of an application on a loop.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from fulgate.client.connection import Answer
from fulgate.client.status import ask
from fulgate.errors import ConfigError
from fulgate.twisted import FastCGIFactory
from tests.command import Served, fulgate
from tests.driver_suite.kit import until
from tests.test_status import APP, get, wait_for
from tests.twistd import Twistd

ASYNC = """\
import asyncio, os
async def app(scope, receive, send):
    assert scope["type"] == "http"
    while scope["path"] == "/wait" and not os.path.exists("go"):
        await asyncio.sleep(0.01)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
"""
# One request is answered, two wait.
LIMITS = {
    "wsgi": ("--threads=1", "--queue=2"),
    "asgi": ("--worker-concurrency=1", "--limit-concurrency=3"),
}


@pytest.fixture(params=["wsgi", "asgi"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@contextmanager
def served(folder: Path, kind: str, *options: str) -> Iterator[Served]:
    (folder / "application.py").write_text(APP if kind == "wsgi" else ASYNC)
    with Served(
        "application:app", f"--bind=unix:{folder}/app.sock",
        f"--status-bind=unix:{folder}/status.sock", *LIMITS[kind], *options, cwd=folder,
    ) as server:  # fmt: skip
        try:
            yield server
        finally:
            (folder / "go").touch()


class Asking:
    """Requests for /wait, each from a thread of its own."""

    def __init__(self, endpoint: str) -> None:
        self.answers: list[Answer] = []
        self._endpoint = endpoint
        self._threads: list[threading.Thread] = []

    def more(self, count: int) -> None:
        for _ in range(count):
            self._threads.append(threading.Thread(target=self._ask))
            self._threads[-1].start()

    def _ask(self) -> None:
        self.answers.append(get(self._endpoint, "/wait"))

    @property
    def refused(self) -> int:
        return sum(answer.status == 503 for answer in self.answers)

    def end(self) -> None:
        for thread in self._threads:
            thread.join(30)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_format_has_the_numbers(folder: Path, kind: str, workers: int) -> None:
    address, each = f"unix:{folder}/status.sock", max(workers, 1)
    with served(folder, kind, f"--workers={workers}") as server:
        asking = Asking(server.endpoints[0])
        wait_for(address, lambda pool: pool["workers"]["ready"] == each)
        pool = wait_for(address, lambda pool: pool["queue_limit"] is not None)["pools"][0]
        assert (pool["queued"], pool["queue_limit"], pool["queue_most"]) == (0, 2, 0)
        while wait_for(address, lambda pool: True)["pools"][0]["queued"] < 2 * each:
            # Which of the workers takes it is open.
            asking.more(1)
            wait_for(address, lambda pool: seen(pool) == asking_all(asking))
        asking.more(each)
        document = wait_for(
            address, lambda p: seen(p) == asking_all(asking) and p["totals"]["queue_full"] >= each
        )
        pool = document["pools"][0]
        assert (pool["queued"], pool["queue_limit"], pool["queue_most"]) == (2 * each, 2, 2)
        assert pool["totals"]["queue_full"] == pool["totals"]["refused"] == asking.refused
        for worker in pool["processes"]:
            assert (worker["queued"], worker["queue_limit"], worker["queue_most"]) == (2, 2, 2)
        told_in_text(folder, address, 2 * each, asking.refused)
        told_in_metrics(address, 2 * each, asking.refused)
        (folder / "go").touch()
        asking.end()
        pool = wait_for(address, lambda pool: not pool["queued"])["pools"][0]
        assert (pool["queue_most"], pool["totals"]["queue_full"]) == (2, asking.refused)


def asking_all(asking: Asking) -> int:
    return len(asking._threads)


def seen(pool: dict[str, Any]) -> int:
    """How many requests have come to their place?"""
    busy: int = pool["threads"]["busy"]
    refused: int = pool["totals"]["queue_full"]
    queued: int = pool["queued"]
    return min(busy, len(pool["processes"])) + queued + refused


def test_a_service_of_twisteds_has_them_too(folder: Path) -> None:
    (folder / "application.py").write_text(APP)
    address = f"unix:{folder}/status.sock"
    options = ("--threads=1", "--queue=2", f"--status-bind={address}")
    with Twistd(
        folder, "-n", "fastcgi", f"--bind=unix:{folder}/app.sock", "--app=application:app", *options
    ):
        until(lambda: (folder / "status.sock").exists(), "it does not start")
        asking = Asking(f"unix:{folder}/app.sock")
        asking.more(5)
        pool = wait_for(address, lambda pool: pool["totals"]["queue_full"] == 2)["pools"][0]
        assert (pool["queued"], pool["queue_limit"], pool["queue_most"]) == (2, 2, 2)
        (folder / "go").touch()
        asking.end()
        assert asking.refused == 2


@pytest.mark.parametrize(
    "setting",
    [{"status_bind": ("tcp:127.0.0.1:0",)}, {"status_path": "/status"}, {"ping_path": "/ping"}],
    ids=str,
)
def test_a_factory_of_twisteds_says_that_it_has_none(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="keeps no status"):
        FastCGIFactory(print, reactor=object(), **setting)  # type: ignore[arg-type]


def told_in_text(folder: Path, address: str, queued: int, full: int) -> None:
    text = fulgate("status", address, "--full", cwd=folder).stdout
    found = dict(re.findall(r"^(.*listen queue.*?): +(.*)$", text, re.MULTILINE))
    assert found == {
        "listen queue": str(queued),
        "max listen queue": "2",
        "listen queue len": "2",
        "listen queue full": str(full),
    }
    assert len(re.findall(r"^queue: +2, at most 2 of 2, \d+ times full$", text, re.MULTILINE)) > 0
    top = fulgate("top", address, "--count=1", cwd=folder).stdout
    assert f"{queued} queued, at most 2 of 2 in a worker  {full} found it full" in top


def told_in_metrics(address: str, queued: int, full: int) -> None:
    parse: Any = text_string_to_metric_families
    found = {
        sample.name: sample.value
        for family in parse(ask(address, "/metrics")[1])
        for sample in family.samples
        if sample.name.startswith("fulgate_queue")
    }
    assert found == {
        "fulgate_queue": queued,
        "fulgate_queue_limit": 2,
        "fulgate_queue_most": 2,
        "fulgate_queue_full_total": full,
    }


def test_what_wakes_a_full_process_is_health(folder: Path) -> None:
    """A process that takes no more is busy, also where its limit is below that of being busy."""
    address = f"unix:{folder}/status.sock"
    with served(folder, "asgi", "--worker-concurrency=64") as server:
        wait_for(address, lambda pool: pool["workers"]["ready"])
        asking = Asking(server.endpoints[0])
        asking.more(3)
        pool = wait_for(address, lambda pool: pool["health"] == "busy")["pools"][0]
        assert (pool["threads"]["busy"], pool["queue_limit"]) == (3, 0)
        (folder / "go").touch()
        asking.end()


def test_without_a_limit_there_is_none(folder: Path) -> None:
    address = f"unix:{folder}/status.sock"
    with served(folder, "asgi", "--limit-concurrency=0") as server:
        wait_for(address, lambda pool: pool["workers"]["ready"])
        asking = Asking(server.endpoints[0])
        asking.more(4)
        pool = wait_for(address, lambda pool: pool["queued"] == 3)["pools"][0]
        assert (pool["queue_limit"], pool["queue_most"]) == (None, 3)
        assert "at most 3 of any number" in fulgate("top", address, "--count=1", cwd=folder).stdout
        (folder / "go").touch()
        asking.end()
