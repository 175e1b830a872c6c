"""The last requests that failed or were slow, in the status."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from mmap import mmap
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fulgate.client.status import ask, document
from fulgate.client.status_view import view
from fulgate.errors import FulgateError
from fulgate.exchange import Exchange, Role
from fulgate.processes.notes import ERROR, KEPT, NOTES_WORDS, SLOW, Note, Notes
from fulgate.processes.scoreboard import Scoreboard
from tests.test_asgi_watch import APP as ASYNC
from tests.test_master import APP, Pool, get, until

SYNC = APP.replace(
    '    if path == "/sleep":',
    '    if path == "/fail":\n        raise LookupError("on purpose")\n'
    '    if path == "/short":\n        time.sleep(1.5)\n    if path == "/sleep":',
    1,
)


def note(number: int) -> Note:
    return Note(float(number), 0.5, 7, f"GET /{number}", "id", "LookupError")


def test_a_ring_keeps_the_last_ones() -> None:
    memory = mmap(-1, 8 * (NOTES_WORDS + 3))
    notes = Notes(memory, 3)
    for number in range(KEPT + 5):
        notes.put(ERROR, note(number))
    notes.put(SLOW, Note(1.0, 2.0, 3, "x" * 999, "y" * 999, "\u20ac" * 99))
    assert list(notes.read(ERROR)) == [note(number) for number in range(5, KEPT + 5)]
    (cut,) = notes.read(SLOW)
    assert (cut.line, cut.id, cut.what) == ("x" * 160, "y" * 64, "?" * 64)
    notes.clear()
    assert not list(notes.read(ERROR))
    assert not list(notes.read(SLOW))


def test_what_is_read_while_others_write_is_whole() -> None:
    notes = Notes(mmap(-1, 8 * NOTES_WORDS), 0)
    over = time.monotonic() + 1

    def write() -> None:
        while time.monotonic() < over:
            for number in range(100):
                notes.put(ERROR, Note(0.0, 0.0, number, str(number) * 30, str(number), ""))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for found in notes.read(ERROR):
            assert found.line == (str(found.pid) * 30)
            assert found.id == str(found.pid)
    for thread in threads:
        thread.join()


def test_a_request_is_noted_once_and_outlives_its_worker() -> None:
    board = Scoreboard(2, 1)
    slot = board.take(0, 0)
    slot.notes.slow_after = 1.0
    cell = slot.thread()
    assert cell is not None
    for number, seconds in enumerate((0.5, 1.5)):
        made = Exchange(1, Role.RESPONDER, True)
        made.params = {"REQUEST_METHOD": "GET", "REQUEST_URI": f"/{number}"}
        made.status, made.error = "500 Internal Server Error", "" if number else "KeyError"
        cell.begin(10.0)
        cell.note(made, 0.1)
        cell.end(made, 10.0 + seconds)
    cell.open(10.0)
    made.status = "101 Switching Protocols"
    cell.end(made, 99.0)  # a WebSocket is not slow
    board.retire(0)
    errors, slow = board.recent(ERROR), board.recent(SLOW)
    assert [(n.line, n.what) for n in errors] == [
        ("GET /1", "500 Internal Server Error"),
        ("GET /0", "KeyError"),
    ]
    assert [(n.line, n.seconds, n.pid) for n in slow] == [("GET /1", 1.5, os.getpid())]
    board.take(0, 0)
    assert len(board.recent(ERROR)) == 2


def noted(address: str, key: str, what: Callable[[Any], object]) -> list[dict[str, Any]]:
    def found() -> list[dict[str, Any]]:
        notes: list[dict[str, Any]] = document(address)["pools"][0][key]
        return notes

    until(lambda: what(found()), lambda: str(document(address)))
    return found()


@pytest.mark.parametrize("app", [SYNC, ASYNC], ids=["wsgi", "asgi"])
def test_the_status_lists_them(folder: Path, app: str) -> None:
    address = f"unix:{folder}/status.sock"
    options = (f"--status-bind={address}", "--request-slowlog-timeout=1", "--graceful-timeout=1")
    timeout = "--request-timeout=4"
    with Pool(folder, *options, timeout, workers=1, app=app) as pool:
        worker = pool.answer()[0 if app == ASYNC else 1]
        assert get(folder, "/fail") == 500
        assert get(folder, "/short") == 200
        (error,) = noted(address, "recent_errors", lambda notes: notes)
        assert (error["line"], error["what"]) == ("GET /fail", "LookupError")
        assert error["pid"] == int(worker)
        assert abs(error["time"] - time.time()) < 60
        (slow,) = noted(address, "recent_slow", lambda notes: notes)
        assert slow["line"] == "GET /short"
        assert slow["seconds"] >= 1.5
        assert get(folder, "/sleep") == 504
        late = noted(address, "recent_errors", lambda notes: len(notes) == 2)[0]
        assert (late["line"], late["what"]) == ("GET /sleep", "request_timeout")
        with pytest.raises(FulgateError):
            get(folder, "/stuck")  # the master kills its worker
        killed = noted(address, "recent_errors", lambda notes: len(notes) == 3)[0]
        assert (killed["line"], killed["what"]) == ("GET /stuck", "worker killed")
        text = ask(address, "/status?full")[1]
        assert "GET /fail  LookupError" in text
        console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        with console.file:
            console.print(view(document(address), None))
        assert "request_timeout" in console.export_text()


def test_requests_of_a_worker_that_crashes_are_noted(folder: Path) -> None:
    address = f"unix:{folder}/status.sock"
    options = (f"--status-bind={address}", "--request-timeout=600")
    with Pool(folder, *options, workers=1) as pool:
        worker = pool.worker()
        thread = threading.Thread(target=pytest.raises, args=(FulgateError, get, folder, "/sleep"))
        thread.start()
        until(lambda: document(address)["pools"][0]["threads"]["busy"])
        os.kill(worker, signal.SIGKILL)
        thread.join()
        (found,) = noted(address, "recent_errors", lambda notes: notes)
        assert (found["line"], found["what"]) == ("GET /sleep", "worker ended by signal 9")
