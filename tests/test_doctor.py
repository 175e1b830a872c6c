"""`fulgate doctor --pid`, held to real processes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from fulgate import stacks
from fulgate.build import COMPILED
from fulgate.client.connection import call
from fulgate.doctor.mistakes import Mistake
from tests.alone import free_port, unused_user
from tests.command import APP, Served, environment, fulgate
from tests.doctored import finds
from tests.model import STDIN
from tests.raw import head, record
from tests.servers.web import PATIENCE, appears
from tests.spawned import Account
from tests.twistd import TWISTD

HOW = [(), ("--no-py-spy",)]

# The recipe of 2009: the pool is started while the .tac is read, so before the daemon forks.
TAC_OF_2009 = """\
from flup.server.fcgi import WSGIServer
from twisted.application import service
from twisted.internet import reactor


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"served"]


server = WSGIServer(app, bindAddress=("127.0.0.1", {port}))
# Python allows them in the main thread only.
server._installSignalHandlers = server._restoreSignalHandlers = lambda: None
reactor.callInThread(server.run)
application = service.Application("recipe")
"""
TAC_OF_OURS = """\
from twisted.application import service
from fulgate.twisted import FastCGIService


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"served"]


application = service.Application("ours")
FastCGIService("tcp:127.0.0.1:{port}", wsgi=app, threads=3).setServiceParent(application)
"""
PARAMS = {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": "/", "REQUEST_URI": "/"}


def doctor(pid: int, *options: str, cwd: Path, status: int) -> str:
    done = fulgate("doctor", "--pid", str(pid), *options, cwd=cwd)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def findings(text: str) -> list[str]:
    return [line.strip() for line in text.partition("\nFindings\n")[2].splitlines()]


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    (folder / "app.py").write_text(APP)
    arguments = (
        "app:app",
        "--bind",
        f"unix:{folder}/s",
        "--threads",
        "3",
        "--graceful-timeout",
        "0.1",
    )
    with Served(*arguments, cwd=folder) as server:
        server.ask()
        yield server


@pytest.mark.parametrize("how", HOW)
def test_a_healthy_server(served: Served, folder: Path, how: tuple[str, ...]) -> None:
    text = doctor(served.process.pid, *how, cwd=folder, status=0)
    assert f"Process {served.process.pid}, of user {os.getuid()}: " in text
    assert re.search(rf"listens on unix:{folder}/s; waiting to be accepted: 0 of \d+\n", text)
    by = "faulthandler, in the process itself" if how else "py-spy"
    assert f"Threads: 5, stacks by {by}\n" in text
    for name in ("MainThread", "fulgate-control", "fulgate-1", "fulgate-2", "fulgate-3"):
        assert re.search(rf"^  \d+ {name} \(.*\)$", text, re.MULTILINE), text
    main = text.partition(" MainThread ")[2].partition(" fulgate-")[0]
    assert "/fulgate/serve.py:" in main  # the right stack with the right thread
    control = text.partition(" fulgate-control ")[2].partition(" fulgate-")[0]
    assert COMPILED or "_control  " in control  # compiled functions are on no stack of Python's
    assert "told by the process itself" in text
    assert f"\n  {folder}/app.py\n" in text
    assert re.search(r"\n  \S+/(src|site-packages)/fulgate \(\d+ modules\)\n", text)
    assert "Not seen" not in text
    assert findings(text) == ["nothing that is known to be wrong"]
    served.ask()  # it goes on


def test_a_running_request_shows(served: Served, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{folder}/s")
        client.sendall(head("/slow") + record(STDIN, 1))
        deadline = time.monotonic() + PATIENCE
        while not (folder / "started").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        text = doctor(served.process.pid, "--no-py-spy", cwd=folder, status=0)
    assert f"      app  {folder}/app.py:" in text


def test_a_server_that_does_not_tell(folder: Path) -> None:
    (folder / "app.py").write_text(APP)
    arguments = ("app:app", "--bind", f"unix:{folder}/s", "--threads", "2")
    with Served(*arguments, cwd=folder, env={"FULGATE_FAULTHANDLER": "0"}) as server:
        text = doctor(server.process.pid, "--no-py-spy", cwd=folder, status=0)
        assert "Not seen\n  stacks: no py-spy, and the process does not answer by itself" in text
        assert "found in its memory" in text
        assert f"\n  {folder}/app.py\n" in text
        assert re.search(r"\n  \S+/(src|site-packages)/fulgate \(\d+ modules\)\n", text)
        assert " fulgate-control (" in text  # as the kernel knows it
        assert "stacks by" not in text
        text = doctor(server.process.pid, cwd=folder, status=0)
        assert "stacks by py-spy" in text
        assert "Not seen" not in text


def test_the_signal_is_not_sent_to_who_does_not_handle_it(folder: Path) -> None:
    assert stacks.SIGNAL is not None
    code = "import time; print('up', flush=True); time.sleep(100)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            text = doctor(process.pid, "--no-py-spy", cwd=folder, status=0)
            assert "the process does not answer by itself" in text
            assert process.poll() is None
        finally:
            process.kill()


# A twistd that daemonised


class Daemon:
    """twistd, run by itself and then away; ended by the number in its pid file."""

    def __init__(self, folder: Path, tac: str) -> None:
        self.folder = folder
        self.port = free_port()
        (folder / "app.tac").write_text(tac.format(port=self.port))
        subprocess.run(
            [*TWISTD, "--pidfile=twistd.pid", "--logfile=twistd.log", "-y", "app.tac"],
            cwd=folder,
            env=environment(),
            check=True,
            timeout=PATIENCE,
            capture_output=True,
        )
        self.pid = int(appears(folder / "twistd.pid"))
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.connect().close()
                return
            except OSError:
                assert time.monotonic() < deadline, (folder / "twistd.log").read_text()
                time.sleep(0.02)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE)

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.kill(self.pid, signal.SIGKILL)


@finds(Mistake.LOST_THREADS, by="--pid")
@pytest.mark.parametrize("how", HOW)
def test_flups_threads_lost_in_the_fork_of_twistd(folder: Path, how: tuple[str, ...]) -> None:
    with Daemon(folder, TAC_OF_2009) as daemon:
        with daemon.connect() as client:
            client.sendall(head("/") + record(STDIN, 1))
            client.settimeout(1.0)
            with pytest.raises(TimeoutError):  # the failure itself: accepted and never served
                client.recv(1)
            text = doctor(daemon.pid, *how, cwd=folder, status=1)
        found = findings(text)[0]
        assert found.startswith("perhaps threads lost in a fork" if how else "threads lost in a")
        assert "flup has listening sockets here, but none of its threads" in found
        assert "its pool is started by the constructor, before the daemon forked" in found
        assert "connections were accepted, and what they ask was not read" in found
        assert found.endswith("use fulgate.twisted.FastCGIService, which does so [lost-threads]")
        assert "forked, and no program executed since" in text
        assert re.search(r"\n  \S+-packages/flup \(\d+ modules\)\n", text)
        assert f"listens on tcp:127.0.0.1:{daemon.port}" in text


def test_flup_in_the_foreground_is_well(folder: Path) -> None:
    code = TAC_OF_2009.format(port=free_port()) + "print('up', flush=True)\nreactor.run()\n"
    (folder / "app.py").write_text(code)
    command = [sys.executable, "app.py"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            text = doctor(process.pid, cwd=folder, status=0)
            assert findings(text) == ["nothing that is known to be wrong"]
        finally:
            process.kill()


@pytest.mark.parametrize("how", HOW)
def test_ours_in_a_twistd_that_daemonised_is_well(folder: Path, how: tuple[str, ...]) -> None:
    with Daemon(folder, TAC_OF_OURS) as daemon:
        assert call(f"tcp:127.0.0.1:{daemon.port}", PARAMS).body == b"served"
        text = doctor(daemon.pid, *how, cwd=folder, status=0)
        assert "forked, and no program executed since" in text
        assert " fulgate-control (" in text
        assert findings(text) == ["nothing that is known to be wrong"]


def test_ours_forked_behind_pythons_back(folder: Path) -> None:
    # A fork that Python does not learn of, so that nothing closes what the child cannot serve.
    code = """
        import ctypes, os, time
        from fulgate import Server

        server = Server(lambda environ, start_response: [], bind=("tcp:127.0.0.1:0",))
        server.start()
        if ctypes.PyDLL(None).fork() == 0:
            open("child", "w").write(str(os.getpid()))
            time.sleep(100)
        time.sleep(100)
        """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, cwd=folder, env=environment()) as process:
        child = int(appears(folder / "child"))
        try:
            text = doctor(child, "--no-py-spy", cwd=folder, status=1)
            assert findings(text)[0].startswith(
                "perhaps threads lost in a fork: Fulgate has listening sockets here"
            )
            assert doctor(process.pid, "--no-py-spy", cwd=folder, status=0)
        finally:
            os.kill(child, signal.SIGKILL)
            process.kill()


# Sockets


@finds(Mistake.WAITING, by="--pid")
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_who_waits_to_be_accepted(folder: Path, family: socket.AddressFamily) -> None:
    code = "import time; time.sleep(100)"
    with socket.socket(family) as server:
        if family == socket.AF_UNIX:
            address: object = str(folder / "s")
            where = f"unix:{address}"
        else:
            host = "127.0.0.1" if family == socket.AF_INET else "::1"
            address = (host, 0)
        server.bind(address)  # type: ignore[arg-type]
        server.listen(7)
        if family != socket.AF_UNIX:
            address = server.getsockname()[:2]
            port = server.getsockname()[1]
            where = f"tcp:127.0.0.1:{port}" if family == socket.AF_INET else f"tcp:[::1]:{port}"
        clients = [socket.socket(family) for _ in range(3)]
        with subprocess.Popen([sys.executable, "-c", code], stdin=server.fileno()) as process:
            try:
                for client in clients:
                    client.connect(address)  # type: ignore[arg-type]
                text = doctor(process.pid, "--no-py-spy", cwd=folder, status=1)
            finally:
                process.kill()
                for client in clients:
                    client.close()
    assert f"  listens on {where}; waiting to be accepted: 3 of 7\n" in text
    assert findings(text) == [
        f"3 connections of at most 7 wait on {where} to be accepted [waiting]"
    ]


@pytest.mark.requires_root
def test_what_another_user_may_not_see(folder: Path, served: Served) -> None:
    account = Account(folder / "home")
    user = unused_user()
    code = (
        f"import sys; from fulgate.doctor import command; sys.exit(command({served.process.pid}))"
    )
    done = subprocess.run(
        [account.python, "-c", code],
        user=user,
        group=user,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={"PYTHONPATH": str(Path(click.__file__).parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert "sockets: Permission denied; be root, or its user" in done.stdout
    assert "modules: its memory cannot be read (Permission denied)" in done.stdout
    assert "Sockets: unknown\n" in done.stdout
    assert "Modules: unknown\n" in done.stdout


def test_a_process_that_is_not_there(folder: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(PATIENCE)
    done = fulgate("doctor", "--pid", str(process.pid), cwd=folder)
    assert done.returncode == 2
    assert done.stderr == f"fulgate: error: there is no process {process.pid}\n"
