"""The end of a service: as a daemon, under `twistd -n`, and in a program of one's own."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path

import pytest

from tests.model import STDIN
from tests.raw import Raw, head, record
from tests.twistd import APP, PATIENCE, Twistd, service, tac, until

END = record(STDIN, 1)


@pytest.fixture
def home(folder: Path) -> Path:
    (folder / "site_app.py").write_text(APP)
    return folder


def crowd(stack: contextlib.ExitStack, path: Path, count: int = 100) -> list[Raw]:
    """Connections that are kept, and idle."""
    clients = [stack.enter_context(Raw(path)) for _ in range(count)]
    for raw in clients:
        assert raw.request("/").status == "200 OK"
    return clients


MAIN = """\
from twisted.internet import reactor
from fulgate.twisted import FastCGIService
import site_app

service = FastCGIService("unix:app.sock?mode=666", wsgi=site_app.app, **{settings})
service.startService()
print("serving FastCGI on app.sock", flush=True)
reactor.run()
print("left", flush=True)
"""
HOW = {
    "daemon, SIGTERM": signal.SIGTERM,
    "twistd -n, SIGTERM": signal.SIGTERM,
    "twistd -n, SIGINT": signal.SIGINT,
    "reactor.run, SIGTERM": signal.SIGTERM,
    "reactor.run, SIGINT": signal.SIGINT,
}


def start(home: Path, how: str, **settings: object) -> Twistd:
    if how.startswith("reactor"):
        (home / "main.py").write_text(MAIN.format(settings=settings))
        return Twistd(home, "main.py", command=[sys.executable])
    made = service(home, more=f", **{settings}")
    options = [] if how.startswith("daemon") else ["-n"]
    return Twistd(home, *options, "-y", tac(home, made))


def is_over(home: Path, twistd: Twistd) -> None:
    """Nothing is left."""
    assert not (home / "app.sock").exists()
    assert not (home / "twistd.pid").exists()
    assert "Traceback" not in twistd.text(), twistd.text()
    if twistd.process is not None:
        # twistd ends itself by the signal that it got, in the end.
        assert twistd.process.wait(PATIENCE) in (0, -signal.SIGINT, -signal.SIGTERM)


@pytest.mark.parametrize("how", HOW)
def test_one_signal_ends_it_with_idle_connections(home: Path, how: str) -> None:
    with start(home, how) as twistd, contextlib.ExitStack() as stack:
        clients = crowd(stack, home / "app.sock")
        assert twistd.end(HOW[how]) < 20  # as a rule a tenth of a second; it would have 30
        assert all(raw.closed() for raw in clients)
        is_over(home, twistd)


@pytest.mark.parametrize("how", HOW)
def test_one_signal_lets_a_request_end(home: Path, how: str) -> None:
    with start(home, how) as twistd, Raw(home / "app.sock") as raw:
        raw.expect()
        raw.send(head("/slow"), END)
        until((home / "started").exists, "it did not start")
        twistd.send(HOW[how])
        until(lambda: not (home / "app.sock").exists(), "it does not stop")
        assert not twistd.ended(0.5)
        (home / "go").touch()
        assert len(raw.answer().body) == 1_000_000
        assert raw.closed()
        assert twistd.ended(PATIENCE), twistd.text()
        is_over(home, twistd)


@pytest.mark.parametrize("how", HOW)
def test_the_deadline_cuts_what_does_not_end(home: Path, how: str) -> None:
    with start(home, how, graceful_timeout=0.5) as twistd, Raw(home / "app.sock") as raw:
        raw.expect()
        raw.send(head("/stuck"), END)
        until((home / "started").exists, "it did not start")
        assert twistd.end(HOW[how]) < 30  # the application would sleep for a minute
        assert raw.closed()
        assert "stopped with 1 requests unfinished after 0.5 s" in twistd.text() or how.startswith(
            "reactor"
        )
        assert not (home / "app.sock").exists()


PLUGIN = ("fastcgi", "--app", "site_app:app", "--bind", "unix:app.sock?mode=666")


@pytest.mark.statement("29")
@pytest.mark.parametrize("reactor", ["epoll", "asyncio"])
def test_sigterm_ends_the_plugin_with_status_0(home: Path, reactor: str) -> None:
    with Twistd(home, "-n", f"--reactor={reactor}", *PLUGIN) as twistd:
        assert twistd.process is not None
        with Raw(home / "app.sock") as raw:
            raw.expect()
            raw.send(head("/slow"), END)
            until((home / "started").exists, "it did not start")
            twistd.send(signal.SIGTERM)
            until(lambda: not (home / "app.sock").exists(), "it does not stop")
            twistd.send(signal.SIGTERM)  # one more does no harm
            (home / "go").touch()
            assert len(raw.answer().body) == 1_000_000
        assert twistd.process.wait(PATIENCE) == 0
        assert "stopping, by SIGTERM" in twistd.text()
        is_over(home, twistd)


def test_the_status_of_a_process_that_is_not_ours_is_twistds(home: Path) -> None:
    """A .tac file may have other services: that the process ended by SIGTERM is for its host."""
    for number, how in ((signal.SIGTERM, "twistd -n"), (signal.SIGINT, "twistd -n")):
        with start(home, how) as twistd:
            assert twistd.process is not None
            twistd.end(number)
            assert twistd.process.wait(PATIENCE) == -number
    with Twistd(home, "-n", *PLUGIN) as twistd:
        assert twistd.process is not None
        twistd.end(signal.SIGINT)  # whoever presses Ctrl+C in a shell has its loops end
        assert twistd.process.wait(PATIENCE) == -signal.SIGINT
