"""flup's server under twistd, as the recipes of 2009 host it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import flup
from tests.alone import free_port
from tests.flup import Program, until
from tests.model import STDIN
from tests.raw import head, record
from tests.statements import query

Twistd = Callable[..., Program]
DAEMON = pytest.param(True, id="daemon")
FOREGROUND = pytest.param(False, id="foreground")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def twistd(folder: Path) -> Iterator[Twistd]:
    started: list[Program] = []

    def start(tac: str, *, daemon: bool, **env: str) -> Program:
        port = free_port()
        arguments: list[str | Path] = [
            flup.HERE / "twistd.py",
            *("--pidfile", folder / "twistd.pid", "--logfile", folder / "twistd.log"),
            *([] if daemon else ["-n"]),
            *("-y", flup.HERE / tac),
        ]
        program = Program(
            folder,
            arguments,
            ("127.0.0.1", port),
            pid_file=folder / "twistd.pid" if daemon else None,
            env={"PORT": str(port), **env},
        )
        program.log_file = folder / "twistd.log"
        started.append(program)
        return program

    yield start
    for program in started:
        program.__exit__(None, None, None)


@pytest.mark.parametrize(("daemon", "number"), [(True, signal.SIGTERM), (False, signal.SIGINT)])
def test_the_recipe_of_2009(
    twistd: Twistd, stack: ExitStack, folder: Path, daemon: bool, number: int
) -> None:
    """Daemonised it serves, and one SIGTERM ends it; in the foreground one Ctrl+C."""
    program = twistd("recipe.tac", daemon=daemon)
    idle = [stack.enter_context(program.raw()) for _ in range(10)]
    for raw in idle:
        assert raw.request().body == b"Hello, world!\n"
    assert program.ends(number) in (0, -number)  # twistd ends by the signal that ended it
    assert "Server Shut Down." in program.log()
    assert "Unhandled" not in program.log()
    assert "Traceback" not in program.log()
    assert not (folder / "twistd.pid").exists()
    if daemon:
        assert os.getsid(0) != program.pid


@pytest.mark.parametrize("daemon", [DAEMON, FOREGROUND])
def test_a_request_that_runs_is_finished(twistd: Twistd, folder: Path, daemon: bool) -> None:
    program = twistd("recipe.tac", daemon=daemon)
    go = folder / "go"
    with program.raw() as raw:
        raw.expect()
        raw.send(head("/stream", query(go=go)), record(STDIN, 1))
        raw.until(1, b"first\n")
        program.kill(signal.SIGTERM)
        until(lambda: "Received SIGTERM" in program.log(), program.log)
        go.touch()
        assert raw.answer().body == b"first\nsecond\n"
    assert program.ends() in (0, -signal.SIGTERM)


@pytest.mark.parametrize("looks", ["yes", "no"])
@pytest.mark.parametrize(("daemon", "number"), [(True, signal.SIGTERM), (False, signal.SIGINT)])
def test_the_patch_of_the_diary(
    twistd: Twistd, stack: ExitStack, daemon: bool, number: int, looks: str
) -> None:
    """The application runs on the reactor's threads; the loop ends, whatever it looks at."""
    program = twistd("patch.tac", daemon=daemon, LOOKS_AT_KEEP_GOING=looks)
    idle = [stack.enter_context(program.raw()) for _ in range(5)]
    for raw in idle:
        assert raw.request("/thread").body.startswith(b"PoolThread-twisted.internet.reactor")
    assert program.ends(number) in (0, -number)
    assert "Server Shut Down." in program.log()
    assert "Traceback" not in program.log()


def test_the_warning_of_the_address_is_in_the_log(twistd: Twistd) -> None:
    program = twistd("recipe.tac", daemon=True)
    until(lambda: "lets every machine that can connect" in program.log(), program.log)
    assert program.ends(signal.SIGTERM) == 0


def test_a_reactor_without_twistd(folder: Path) -> None:
    """`reactor.run()`, and one Ctrl+C."""
    script = folder / "plain.py"
    script.write_text(
        "import sys\n"
        "from twisted.internet import reactor\n"
        "from fulgate.flup.server.fcgi import WSGIServer\n"
        "from tests.apps import app\n"
        "server = WSGIServer(app, bindAddress=sys.argv[1])\n"
        "reactor.callInThread(lambda: print('returned', server.run(), flush=True))\n"
        "reactor.run()\n"
        "print('over', flush=True)\n"
    )
    path = folder / "s"
    with Program(folder, [script, path], str(path)) as program, program.raw() as raw:
        assert raw.request().body == b"Hello, world!\n"
        assert program.ends(signal.SIGINT) == 0
        assert program.log() == "returned False\nover\n"
    assert sys.modules.get("flup") is None


@pytest.mark.parametrize("kind", ["fcgi_single", "fcgi_fork"])
def test_the_other_servers_in_the_pool(folder: Path, kind: str) -> None:
    script = folder / "plain.py"
    script.write_text(
        "import sys\n"
        "from twisted.internet import reactor\n"
        f"from fulgate.flup.server.{kind} import WSGIServer\n"
        "from tests.apps import app\n"
        "reactor.callInThread(WSGIServer(app, bindAddress=sys.argv[1]).run)\n"
        "reactor.run()\n"
    )
    path = folder / "s"
    with Program(folder, [script, path], str(path)) as program, program.raw() as raw:
        assert raw.request().body == b"Hello, world!\n"
        assert program.ends(signal.SIGTERM) == 0
        assert program.log() == ""


def test_run_that_has_ended_leaves_the_reactor_alone(folder: Path) -> None:
    """Its trigger goes with it: the reactor does not wait for what is over."""
    script = folder / "plain.py"
    script.write_text(
        "import sys\n"
        "from twisted.internet import reactor\n"
        "from fulgate.flup.server.fcgi import WSGIServer\n"
        "from tests.apps import app\n"
        "server = WSGIServer(app, bindAddress=sys.argv[1])\n"
        "def serve_twice():\n"
        "    print(server.run(), flush=True)\n"
        "    print(server.run(), flush=True)\n"
        "reactor.callInThread(serve_twice)\n"
        "reactor.callLater(1, server.shutdown)\n"
        "reactor.run()\n"
    )
    path = folder / "s"
    with Program(folder, [script, path], str(path)) as program:
        program.says_hello()
        until(lambda: program.log() == "False\n", program.log)
        until(lambda: flup.reachable(str(path)), "it serves again")
        program.says_hello()
        assert program.ends(signal.SIGTERM) == 0
        assert program.log() == "False\nFalse\n"
