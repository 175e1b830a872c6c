"""The observer answers for the status of all pools, whatever the workers and its clients do."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fulgate.client.status import ask, document
from fulgate.errors import BindError, FulgateError
from fulgate.processes import monitor
from tests.command import Served
from tests.test_master import Pool, alive, get, until


class Watched(Pool):
    """A master with workers of `test_master.APP`, and an observer."""

    def __init__(self, folder: Path, *options: str, workers: int = 2) -> None:
        self.address = f"unix:{folder}/status.sock"
        super().__init__(folder, f"--status-bind={self.address}", *options, workers=workers)

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = document(self.address)["pools"][0]
        return found

    @property
    def observers(self) -> set[int]:
        serving = {worker["pid"] for worker in self.state["processes"]}
        return {pid for pid in self.workers - serving if alive(pid)}

    def wait_for_workers(self, count: int) -> None:
        until(lambda: self.state["workers"]["ready"] == count, lambda: self.text)


@contextlib.contextmanager
def asking(address: str) -> Iterator[list[float]]:
    """Ask all the time; whoever is not answered fails the test."""
    over, answered, failed = threading.Event(), [], []

    def run() -> None:
        while not over.is_set():
            began = time.monotonic()
            try:
                assert ask(address, "/ping") == (200, "pong\n")
            except Exception as error:
                failed.append(error)
            answered.append(time.monotonic() - began)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        over.set()
        for thread in threads:
            thread.join(20)
    assert not failed
    assert answered


def test_it_answers_while_every_worker_holds_its_interpreter(folder: Path) -> None:
    with Watched(folder, "--request-timeout=600", "--graceful-timeout=0", workers=1) as pool:
        pool.wait_for_workers(1)
        (worker,) = [one["pid"] for one in pool.state["processes"]]
        assert len(pool.observers) == 1

        def stuck() -> None:
            with contextlib.suppress(FulgateError, OSError):
                get(folder, "/stuck")

        thread = threading.Thread(target=stuck)
        thread.start()
        until(lambda: pool.state["slow"], lambda: pool.text)
        slow = pool.state["slow"][0]
        assert (slow["pid"], slow["line"]) == (worker, "GET /stuck")
        os.kill(worker, signal.SIGKILL)
        thread.join(20)


def test_it_answers_for_a_pool_without_a_worker(folder: Path) -> None:
    with Watched(folder, "--pool-mode=ondemand", "--process-idle-timeout=0.2") as pool:
        until(lambda: names(pool.address))
        assert pool.state["workers"] == {"starting": 0, "ready": 0, "stopping": 0}
        assert ask(pool.address, "/health") == (200, "ok\n")
        pool.answer()
        until(lambda: pool.state["totals"]["requests"] == 1, lambda: pool.text)
        # It answers a moment before it is called ready.
        until(lambda: not any(pool.state["workers"].values()), lambda: pool.text)
        assert pool.state["totals"]["requests"] == 1
        assert ask(pool.address, "/health") == (200, "ok\n")


def names(address: str) -> list[str]:
    """Give the pools of which a status tells; none where nobody answers."""
    try:
        return [one["name"] for one in document(address)["pools"]]
    except BindError:
        return []


def test_a_reload_leaves_nobody_without_an_answer_and_takes_new_pools(folder: Path) -> None:
    (folder / "counted.py").write_text("def app(e, s):\n s('200 OK', [])\n return []\n")
    site = folder / "site.toml"
    status = f"unix:{folder}/status.sock"
    pool = '[pool.{0}]\napp = "counted:app"\nbind = ["unix:' + str(folder) + '/{0}.sock"]\n'
    head = f'status_bind = ["{status}"]\nworkers = 1\n'
    site.write_text(head + pool.format("one"))
    with Served("--config", str(site), cwd=folder) as served:
        until(lambda: document(status)["pools"][0]["workers"]["ready"] == 1)
        site.write_text(head + pool.format("one") + pool.format("two"))
        with asking(status):
            for generation in (1, 2, 3):
                served.process.send_signal(signal.SIGHUP)
                until(
                    lambda generation=generation: (
                        [  # type: ignore[misc]
                            (one["generation"], one["workers"]["ready"])
                            for one in document(status)["pools"]
                        ]
                        == [(generation, 1), (generation if generation > 1 else 0, 1)]
                    ),
                    lambda: served.text,
                )
        assert [one["name"] for one in document(status)["pools"]] == ["one", "two"]
        other = f"unix:{folder}/other.sock"
        site.write_text(head.replace(status, other) + pool.format("two"))
        served.process.send_signal(signal.SIGHUP)
        until(lambda: names(other) == ["two"], lambda: served.text)
        until(lambda: names(status) == [], lambda: served.text)
        until(lambda: not (folder / "status.sock").exists(), lambda: served.text)


def test_an_execution_of_the_program_anew_leaves_nobody_without_an_answer(folder: Path) -> None:
    with Watched(folder) as pool:
        pool.wait_for_workers(2)
        pool.answer()
        before, observers = pool.workers, pool.observers
        with asking(pool.address):
            pool.signal(signal.SIGUSR2)
            until(lambda: not (before & pool.workers), lambda: pool.text)
            pool.wait_for_workers(2)
        assert len(pool.observers) == 1
        assert pool.observers.isdisjoint(observers)
        assert pool.version() == "1"


def test_it_is_replaced_when_it_dies_and_ends_with_the_master(folder: Path) -> None:
    pool = Watched(folder)
    try:
        pool.wait_for_workers(2)
        (first,) = pool.observers
        os.kill(first, signal.SIGTERM)  # is for the master to say
        os.kill(first, signal.SIGKILL)
        pool.wait_for(f"the observer {first}, who answers for the status, ended with -9")
        until(lambda: first not in pool.workers and pool.observers)
        (second,) = pool.observers
        workers = pool.workers
        assert second != first
        pool.process.kill()
        pool.process.wait()
        with Watched(folder) as other:
            other.wait_for_workers(2)
            assert workers.isdisjoint(other.observers)
            until(lambda: not any(alive(pid) for pid in workers))
    finally:
        pool.process.kill()


def test_clients_that_are_slow_on_purpose_shut_nobody_out(folder: Path) -> None:
    with Watched(folder) as pool, contextlib.ExitStack() as stack:
        pool.wait_for_workers(2)
        slow = []
        for number in range(3 * monitor.MOST):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(f"{folder}/status.sock")
            with contextlib.suppress(OSError):  # it had to make room already
                client.sendall((b"GET /status HTTP/1.1\r\n", b"GET", b"")[number % 3])
            slow.append(client)
        for _ in range(5):
            assert pool.state["workers"]["ready"] == 2
        slow[0].settimeout(20)
        assert slow[0].recv(99) == b""
        assert pool.version() == "1"
        pool.signal(signal.SIGHUP)
        until(lambda: pool.state["generation"] == 1 and pool.state["workers"]["ready"] == 2)
