"""The preforking server: its children come, go, and are replaced."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from fulgate.flup.server.preforkserver import PreforkServer
from tests import flup
from tests.flup import Program, until
from tests.model import STDIN
from tests.raw import Raw, head, record
from tests.statements import query


def about(program: Program) -> dict[str, Any]:
    with program.raw() as raw:
        facts: dict[str, Any] = json.loads(raw.request("/about", keep=False).body)
        return facts


def start_stream(raw: Raw, go: Path) -> None:
    raw.expect()
    raw.send(head("/stream", query(go=go), keep=False), record(STDIN, 1))
    raw.until(1, b"first\n")


def test_the_application_runs_in_the_main_thread_of_a_child(folder: Path) -> None:
    with flup.server(folder, "fcgi_fork", maxSpare=2) as program:
        facts = about(program)
        assert facts["pid"] in program.children()
        assert facts == {
            "pid": facts["pid"],
            "main": True,
            "threads": 1,
            "multithread": False,
            "multiprocess": True,
            "run_once": False,
        }
        until(lambda: len(program.children()) == 2, "all that may be spare are there")
        assert program.threads() == 1


def test_children_come_with_requests_and_go_after_them(folder: Path) -> None:
    """There is always one that is free, up to maxChildren."""
    go = folder / "go"
    arguments = {"minSpare": 1, "maxSpare": 1, "maxChildren": 3}
    with flup.server(folder, "fcgi_fork", **arguments) as program, contextlib.ExitStack() as stack:
        busy: list[Raw] = []
        until(lambda: len(program.children()) == 1, "one is free")
        for expected in (2, 3, 3):
            busy.append(stack.enter_context(program.raw()))
            start_stream(busy[-1], go)
            until(lambda n=expected: len(program.children()) == n, "another one")  # type: ignore[misc]
        go.touch()
        for raw in busy:
            assert raw.answer().body == b"first\nsecond\n"
        until(lambda: len(program.children()) == 1, "the others went")
        program.says_hello()
        assert program.ends(signal.SIGTERM) == 0


def test_a_busy_child_accepts_nothing(folder: Path) -> None:
    go = folder / "go"
    arguments = {"maxSpare": 2, "maxChildren": 2}
    with flup.server(folder, "fcgi_fork", **arguments) as program, program.raw() as raw:
        start_stream(raw, go)
        for _ in range(20):
            program.says_hello()
        go.touch()
        raw.answer()


def test_connections_that_are_kept_alive_hold_no_child_up(folder: Path) -> None:
    arguments = {"maxSpare": 1, "maxChildren": 1}
    with flup.server(folder, "fcgi_fork", **arguments) as program, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(program.raw()) for _ in range(5)]
        for _ in range(3):
            for raw in idle:
                assert raw.request().body == b"Hello, world!\n"


def test_dead_children_are_replaced(folder: Path) -> None:
    with flup.server(folder, "fcgi_fork", maxSpare=2) as program:
        until(lambda: len(program.children()) == 2, "they are there")
        time.sleep(1.1)  # else it would be taken for one that cannot start
        first = program.children()
        os.kill(first[0], signal.SIGKILL)
        with program.raw() as raw, pytest.raises(EOFError):
            raw.request("/die")
        until(lambda: "ended with signal 9" in program.log(), program.log)
        until(lambda: "ended with status 3" in program.log(), program.log)  # whichever had /die
        until(lambda: len(program.children()) == 2, program.log)
        assert first[0] not in program.children()
        program.says_hello()
        assert program.ends(signal.SIGTERM) == 0


def test_children_that_fail_at_once_are_not_replaced_at_once(folder: Path) -> None:
    with flup.server(folder, "fcgi_fork", maxSpare=1, maxChildren=1) as program:
        began = time.monotonic()
        for _ in range(3):
            with program.raw() as raw, pytest.raises(EOFError):
                raw.request("/die")
        assert time.monotonic() - began > 1.0, "two pauses"
        program.says_hello()


def test_max_requests(folder: Path) -> None:
    with flup.server(folder, "fcgi_fork", maxSpare=1, maxChildren=1, maxRequests=3) as program:
        pids = [about(program)["pid"] for _ in range(9)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 3]


@pytest.mark.parametrize("debug", [False, True])
def test_timeout(folder: Path, debug: bool) -> None:
    """The application gets an exception, and the client an answer; the child goes on."""
    arguments = {"maxSpare": 1, "maxChildren": 1, "timeout": 1, "debug": debug}
    with flup.server(folder, "fcgi_fork", **arguments) as program:
        pid = about(program)["pid"]
        with program.raw() as raw:
            answer = raw.request("/sleep")
            assert answer.status == "500 Internal Server Error"
            assert (b"TimeoutException" in answer.body) == debug
            assert raw.request().body == b"Hello, world!\n"
        assert "TimeoutException: the request took longer than 1 s" in program.log()
        assert about(program)["pid"] == pid
        assert program.ends(signal.SIGTERM) == 0


def test_sigusr1_replaces_the_children(folder: Path) -> None:
    go = folder / "go"
    with flup.server(folder, "fcgi_fork", maxSpare=2) as program, program.raw() as raw:
        start_stream(raw, go)
        first = set(program.children())
        program.kill(signal.SIGUSR1)
        until(lambda: len(set(program.children()) - first) == 2, "there are new ones")
        go.touch()
        assert raw.answer().body == b"first\nsecond\n"
        until(lambda: not first & set(program.children()), "the old ones went")
        program.says_hello()


def test_children_end_with_their_parent(folder: Path) -> None:
    """Even when it is killed."""
    with flup.server(folder, "fcgi_fork", maxSpare=3) as program:
        until(lambda: len(program.children()) == 3, "they are there")
        children = program.children()
        program.ends(signal.SIGKILL)
        for pid in children:
            until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "it ends")  # type: ignore[misc]


def test_ctrl_c_of_a_terminal_is_for_the_parent(folder: Path) -> None:
    """Children are in groups of their own, so that what they do is finished."""
    with flup.server(folder, "fcgi_fork") as program:
        until(lambda: len(program.children()) == 5, "all are there")
        for pid in program.children():
            until(lambda pid=pid: os.getpgid(pid) == pid, "it leaves the group")  # type: ignore[misc]


def test_sigterm_for_all_processes(folder: Path) -> None:
    """As systemd sends it: requests are finished nevertheless."""
    go = folder / "go"
    with flup.server(folder, "fcgi_fork") as program, program.raw() as raw:
        start_stream(raw, go)
        for pid in [*program.children(), program.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        go.touch()
        assert raw.answer().body == b"first\nsecond\n"
        assert program.ends() == 0
        assert program.log() == "returned False\n"


def test_code_after_run_is_the_parents_alone(folder: Path) -> None:
    script = folder / "program.py"
    script.write_text(
        "import atexit, os, sys\n"
        "from fulgate.flup.server.fcgi_fork import WSGIServer\n"
        "from tests.apps import app\n"
        "atexit.register(lambda: print('atexit', flush=True))\n"
        "try:\n"
        "    WSGIServer(app, bindAddress=sys.argv[1], maxRequests=1).run()\n"
        "finally:\n"
        "    print('finally', flush=True)\n"
    )
    path = str(folder / "s")
    with Program(folder, [script, path], path) as program:
        for _ in range(4):
            program.says_hello()
        assert program.log() == ""
        assert program.ends(signal.SIGTERM) == 0
        assert program.log() == "finally\natexit\n"


def test_a_job_class_of_ones_own(folder: Path) -> None:
    script = folder / "program.py"
    script.write_text(
        "import os, socket, sys\n"
        "from fulgate.flup.server.preforkserver import PreforkServer\n"
        "class Job:\n"
        "    def __init__(self, sock, address, word):\n"
        "        self.sock, self.word = sock, word\n"
        "    def run(self):\n"
        "        with self.sock:\n"
        "            if self.sock.recv(1) == b'!':\n"
        "                raise LookupError('in a job')\n"
        "            self.sock.sendall(b'%s %d' % (self.word, os.getpid()))\n"
        "listener = socket.socket(socket.AF_UNIX)\n"
        "listener.bind(sys.argv[1])\n"
        "listener.listen(10)\n"
        "server = PreforkServer(maxSpare=1, maxRequests=3, jobClass=Job, jobArgs=(b'word',))\n"
        "print('returned', server.run(listener), flush=True)\n"
    )
    path = str(folder / "s")
    with Program(folder, [script, path], path) as program:

        def ask(word: bytes) -> bytes:
            with program.raw() as raw:
                raw.send(word)
                return raw.socket.recv(100)

        assert ask(b"!") == b""
        answers = [ask(b"?") for _ in range(6)]
        assert all(answer.startswith(b"word ") for answer in answers)
        assert len(set(answers)) >= 2, "maxRequests ended one"
        assert program.ends(signal.SIGHUP) == 0
        assert "returned True\n" in program.log()
        assert "LookupError: in a job" in program.log()


@pytest.mark.parametrize(
    "bad", [{"minSpare": 0}, {"minSpare": 3, "maxSpare": 2}, {"sockTimeout": -1}]
)
def test_wrong_arguments(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Spare|sockTimeout"):
        PreforkServer(**bad)
