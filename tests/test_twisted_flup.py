"""What this is all for: flup 1.0.3 under twistd, as it fails, and Fulgate in its place.

flup starts its threads when the server is made, so while the .tac file is read; twistd then makes
its daemon by forking, and a fork copies only the thread that calls it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.model import STDIN
from tests.raw import Raw, head, record
from tests.twistd import Twistd, until

LENIENT = {"PYTHONWARNINGS": "default"}  # for flup
END = record(STDIN, 1)
TAC = """\
from twisted.application import service
from twisted.internet import reactor
from flup.server.fcgi import WSGIServer

class Server(WSGIServer):
    # In a thread of the reactor's pool Python allows no signal handlers.
    def _installSignalHandlers(self):
        print("flup serves")

    def _restoreSignalHandlers(self):
        pass

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"Hello\\n"]

server = Server(app, bindAddress={path!r}, umask=0)
application = service.Application("flup")
reactor.callWhenRunning(reactor.callInThread, server.run)
"""
FULGATE = """\
from twisted.application import service
from fulgate.twisted import FastCGIService

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"Hello\\n"]

application = service.Application("fulgate")
FastCGIService("unix:" + {path!r}, wsgi=app).setServiceParent(application)
"""


def tac(home: Path, text: str) -> str:
    (home / "app.tac").write_text(text.format(path=str(home / "app.sock")))
    return "app.tac"


def sockets(pid: int) -> int:
    links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    return sum(link.startswith("socket:") for link in links)


def ask(home: Path) -> Raw:
    raw = Raw(home / "app.sock")
    raw.expect()
    raw.send(head("/"), END)
    return raw


def kill(twistd: Twistd) -> None:
    """flup's thread holds the reactor up for ever."""
    twistd.send(signal.SIGTERM)
    assert not twistd.ended(2.0)
    twistd.send(signal.SIGKILL)
    assert twistd.ended(30.0)


@pytest.mark.slow
def test_flup_in_the_foreground_serves_and_cannot_be_stopped(folder: Path) -> None:
    with Twistd(folder, "-n", "-y", tac(folder, TAC), env=LENIENT, wait="flup serves") as twistd:
        with ask(folder) as raw:
            assert raw.answer().body == b"Hello\n"
        kill(twistd)


@pytest.mark.slow
def test_flup_as_a_daemon_accepts_and_never_answers(folder: Path) -> None:
    with Twistd(folder, "-y", tac(folder, TAC), env=LENIENT, wait="flup serves") as twistd:
        before = sockets(twistd.pid)
        with ask(folder) as raw:
            until(lambda: sockets(twistd.pid) == before + 1, "it was not accepted")
            raw.socket.settimeout(3.0)
            with pytest.raises(TimeoutError):
                raw.socket.recv(1)
        kill(twistd)


@pytest.mark.parametrize("options", [["-n"], []], ids=["foreground", "daemon"])
def test_fulgate_in_its_place_answers_and_stops(folder: Path, options: list[str]) -> None:
    with Twistd(folder, *options, "-y", tac(folder, FULGATE)) as twistd:
        with ask(folder) as raw:
            assert raw.answer().body == b"Hello\n"
            assert twistd.end() < 5
            assert raw.closed()
    assert not (folder / "app.sock").exists()
