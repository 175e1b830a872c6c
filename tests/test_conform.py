"""`fulgate conform`: against Fulgate, with each of its drivers; and the command itself."""

from __future__ import annotations

import json
import socket
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from fulgate import Server
from fulgate.conform.run import STATEMENTS
from fulgate.conform_app import app
from tests.command import Served, here, refused_here
from tests.conform import NUMBERS, PYTHON, Outcomes, conform
from tests.twistd import Twistd

PATIENCE = 30.0  # seconds

# So few requests at once that a crowd fills the queue, and short times, so that their end is seen.
# A small body is waited for as long as a machine may stall.
FULL = ("--threads", "2", "--queue", "8", "--overload", "overloaded")
TIMES = ("--arrival-timeout", "2", "--body-timeout", "2", "--body-wait", "5")
SERVE = f"{PYTHON} -m fulgate serve"
LOOK = ("--deadline", "30")


def all_pass(found: Outcomes, *not_applicable: str) -> None:
    assert found.having("fail") == {}
    assert list(found.having("not applicable")) == list(not_applicable)
    assert tuple(found.of) == NUMBERS
    assert found.status == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("app", "options", "not_applicable"),
    [
        pytest.param("app", FULL, (), id="threads"),
        pytest.param("app", (*FULL, "--overload", "503", "--poller", "poll"), (), id="poll"),
        pytest.param("app", (*FULL, "--workers", "2"), (), id="workers"),
        # It holds as many requests as there are connections, and has the role of the Responder.
        pytest.param("asgi", (), ("19", "27", "28"), id="aio"),
    ],
)
def test_fulgate_passes(
    app: str, options: tuple[str, ...], not_applicable: tuple[str, ...], folder: Path
) -> None:
    served = (f"fulgate.conform_app:{app}", *TIMES, *options)
    with Served(*served, "--bind", f"unix:{folder}/sock", cwd=folder) as server:
        spawn = f"{SERVE} {' '.join(served)}"
        found = conform(server.endpoints[0], *LOOK, "--spawn", spawn, cwd=folder)
    all_pass(found, *not_applicable)


@pytest.mark.slow
@pytest.mark.parametrize("interface", ["wsgi", "asgi"])
def test_fulgate_passes_under_twistd(interface: str, folder: Path) -> None:
    pytest.importorskip("twisted")
    name = "fulgate.conform_app:" + ("app" if interface == "wsgi" else "asgi")
    more = FULL if interface == "wsgi" else ()
    options = ("--app", name, *TIMES, *more)
    reactor = ("-n", "--reactor=asyncio", "--pidfile=")
    run = f"{PYTHON} -c 'from twisted.scripts.twistd import run; run()' {' '.join(reactor)}"
    spawn = f"{run} fastcgi {' '.join(options)}"
    with Twistd(folder, *reactor, "fastcgi", *options, "--bind", f"unix:{folder}/sock"):
        found = conform(f"unix:{folder}/sock", *LOOK, "--spawn", spawn, cwd=folder)
    all_pass(found, *(() if interface == "wsgi" else ("19", "27", "28")))


@pytest.fixture
def inline(folder: Path) -> Iterator[str]:
    """A server of one thread, which is a thread of this process."""
    server = Server(
        app, bind=(f"unix:{folder}/sock",), body_wait=5.0, body_timeout=2.0, arrival_timeout=2.0
    )
    server.bind()
    driver = server.inline()
    thread = threading.Thread(target=driver.run)
    thread.start()
    yield server.endpoints[0]
    driver.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    server.stop(0)


@pytest.mark.slow
def test_fulgate_passes_inline(inline: str, folder: Path) -> None:
    """It is no process of its own, and what it does not get to waits in the sockets."""
    all_pass(conform(inline, *LOOK, cwd=folder), "1", "2", "19", "29")


# The command


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("c")
    with Served("fulgate.conform_app:app", "--bind", "tcp:127.0.0.1:0", cwd=folder) as server:
        yield server.endpoints[0]


def test_one_line_for_each_statement(served: str, folder: Path) -> None:
    done = here("conform", served, "--only", "r2, 3,28,1", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"n/a    1  {STATEMENTS['1'].text}: there is no --spawn COMMAND to start it with",
        f"pass   3  {STATEMENTS['3'].text}",
        f"pass  28  {STATEMENTS['28'].text}",
        f"pass  R2  {STATEMENTS['R2'].text}",
        "3 pass, 0 fail, 1 not applicable",
    ]


def test_json_and_junit(served: str, folder: Path) -> None:
    spawn = ("--spawn", f"{PYTHON} -c 'raise SystemExit(9)'")
    options = ("--only", "1,2,5,22", "--json", "--junit", "out.xml")
    done = here("conform", served, *options, *spawn, cwd=folder)
    assert (done.returncode, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    assert (found["endpoint"], found["passed"], found["failed"]) == (served, 2, 2)
    first = found["statements"][0]
    assert (first["number"], first["section"], first["outcome"]) == ("1", "2.2", "fail")
    assert first["seen"] == "a Unix socket: it ended with status 9: it said nothing"

    suite = ET.parse(folder / "out.xml").getroot()[0]
    counts = {name: suite.get(name) for name in ("tests", "failures", "skipped", "errors")}
    assert counts == {"tests": "4", "failures": "2", "skipped": "0", "errors": "0"}
    assert [case.get("name", "").partition(":")[0] for case in suite] == ["1", "2", "5", "22"]
    failure = suite[0].find("failure")
    assert failure is not None
    assert failure.get("message") == first["seen"]
    assert len(suite[2]) == 0


def test_who_is_not_there_is_unreachable(folder: Path) -> None:
    text = refused_here(2, "conform", f"unix:{folder}/nobody", cwd=folder)
    assert text == f"unix:{folder}/nobody: cannot connect: No such file or directory"


def test_another_application_is_told(folder: Path) -> None:
    with Served("fulgate.demo:app", "--bind", f"unix:{folder}/sock", cwd=folder) as server:
        text = refused_here(2, "conform", server.endpoints[0], "--timeout", "1", cwd=folder)
    assert "is not answered as the application for this does it" in text


def test_who_does_not_speak_fastcgi_is_told(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "sock"))
        listener.listen()

        def answer() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(100)
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                while sock.recv(65536):
                    pass

        thread = threading.Thread(target=answer)
        thread.start()
        text = refused_here(2, "conform", f"unix:{folder}/sock", cwd=folder)
        thread.join(PATIENCE)
    assert "no record of FastCGI: b'HTTP/1.1 400" in text


@pytest.mark.parametrize(
    "options", [("--only", "3,31"), ("--spawn", "'"), ("--crowd", "1"), ("--junit", "no/where")]
)
def test_wrong_use(served: str, folder: Path, options: tuple[str, str]) -> None:
    done = here("conform", served, *options, *(["--only", "3"] * (options[0] != "--only")),
                cwd=folder)  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("fulgate: error: ")
