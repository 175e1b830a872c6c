"""--reload: a change starts the application anew, whatever it was and whatever it became."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fulgate.client.connection import Answer, call
from fulgate.client.status import document
from fulgate.config import Config
from fulgate.errors import AnswerCut
from fulgate.reload import Reloader
from tests.command import Served, refused
from tests.processes import SOURCE
from tests.test_master import until

APP = """\
import os, signal
N = {number}
def app(environ, start_response):
    if environ["PATH_INFO"] == "/die":
        os._exit(7)
    body = b"%d %d %s" % (N, os.getpid(), open("page.txt", "rb").read())
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body]
"""


def write(folder: Path, number: int) -> None:
    """As editors do: a new file in the place of the old one."""
    new = folder / "site_app.py.new"
    new.write_text(APP.format(number=number))
    new.rename(folder / "site_app.py")


def ask(server: Served, path: str = "/") -> Answer:
    names = {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": path, "REQUEST_URI": path}
    return call(server.endpoints[0], names, timeout=60)


def wait_for(server: Served, what: Callable[[Answer], bool]) -> Answer:
    deadline = time.monotonic() + 60
    while not what(answer := ask(server)):
        assert time.monotonic() < deadline, (answer.body, server.text)
        time.sleep(0.01)
    return answer


@pytest.fixture
def server(folder: Path) -> Served:
    write(folder, 1)
    (folder / "page.txt").write_text("old")
    return Served(
        "site_app:app", f"--bind=unix:{folder}/app.sock", "--reload",
        "--reload-extra-file=page.txt", cwd=folder,
    )  # fmt: skip


@pytest.mark.slow
def test_changes_are_served(server: Served, folder: Path) -> None:
    with server:
        first = wait_for(server, lambda a: a.body.startswith(b"1 "))
        for number in range(2, 6):  # of one size, and most within one second
            write(folder, number)
            answer = wait_for(server, lambda a: not a.body.startswith(b"%d " % (number - 1)))  # noqa: B023
            assert answer.body.startswith(b"%d " % number)
        assert answer.body.split()[1] != first.body.split()[1]
        (folder / "page.txt").write_text("new")
        server.wait_for(r"changed: page.txt; restarted in [\d.]+ s")
        (folder / "notes.md").write_text("no source")
        before = ask(server).body
        assert before.endswith(b"new")

        # What does not load is shown, and mended.
        (folder / "site_app.py").write_text("def app(:\n  <b>")
        broken = wait_for(server, lambda a: a.status == 500)
        page = broken.body.decode()
        assert "SyntaxError" in page
        assert "site_app.py" in page
        assert "<b>" not in page
        assert 'http-equiv="refresh"' in page
        write(folder, 7)
        wait_for(server, lambda a: a.body.startswith(b"7 "))

        # What ends by itself is told, and comes again.
        with pytest.raises((OSError, AnswerCut)):
            ask(server, "/die")
        died = wait_for(server, lambda a: a.status == 500)
        assert b"ended with status 7" in died.body
        write(folder, 8)
        wait_for(server, lambda a: a.body.startswith(b"8 "))
    assert "Fatal" not in server.text
    assert not (folder / "app.sock").exists()


def test_a_change_while_the_first_child_starts_is_seen(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Started(Reloader):
        seen: list[str]

        def _start(self, problem: str = "") -> None:
            if not problem:
                write(folder, 2)  # a moment after it has read the first one

        def _changed(self, paths: list[str]) -> None:
            self.seen = paths
            os.kill(os.getpid(), signal.SIGTERM)

        def _look(self) -> None:
            looks.append(1)
            if len(looks) > 20:
                os.kill(os.getpid(), signal.SIGTERM)

    looks: list[int] = []
    write(folder, 1)
    monkeypatch.chdir(folder)
    reloader = Started(Config(app="site_app:app", graceful_timeout=0), [])
    reloader.seen = []
    assert reloader.run() == 0
    assert f"{folder}/site_app.py" in reloader.seen


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in found.split()]


def test_no_child_outlives_its_parent(server: Served) -> None:
    wait_for(server, lambda a: a.status == 200)
    deadline = time.monotonic() + 20
    while len(pids := children(server.process.pid)) < 2:  # one that serves, and a spare one
        assert time.monotonic() < deadline, server.text
        time.sleep(0.01)
    assert len(pids) == 2
    server.process.send_signal(signal.SIGKILL)
    server.process.wait(10)
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_without_watchfiles(tmp_path: Path) -> None:
    (tmp_path / "watchfiles.py").write_text("raise ImportError(name='watchfiles')")
    write(tmp_path, 1)
    text = refused(
        2, "serve", "site_app:app", "--reload", "--bind=unix:a.sock", cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{SOURCE}"},
    )  # fmt: skip
    assert text == "--reload needs watchfiles: install fulgate[reload]"


def test_what_cannot_be(tmp_path: Path) -> None:
    write(tmp_path, 1)
    text = refused(
        2, "serve", "site_app:app", "--reload", "--bind=unix:a.sock", "--reload-extra-file=no",
        cwd=tmp_path,
    )  # fmt: skip
    assert text == "reload_extra_file: there is no no"
    if os.geteuid() == 0:
        text = refused(2, "serve", "site_app:app", "--reload", "--user=nobody", cwd=tmp_path)
        assert re.match("--reload is for development", text)


def test_its_status_is_that_of_whoever_serves(folder: Path) -> None:
    write(folder, 1)
    (folder / "page.txt").write_text("old")
    address = f"unix:{folder}/status"
    options = (f"--bind=unix:{folder}/sock", "--reload", "--status-bind", address)
    with Served("site_app:app", *options, cwd=folder) as server:
        for number in (1, 2):
            if number > 1:
                write(folder, number)
            wait_for(server, lambda a: a.body.startswith(b"%d " % number))  # noqa: B023
            # A thread counts what it has answered when it is through with it.
            until(lambda: document(address)["pools"][0]["totals"]["requests"] >= 1)
        assert "Traceback" not in server.text
    assert not (folder / "status").exists()
