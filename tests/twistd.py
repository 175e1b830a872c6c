"""`twistd`, run by tests for real: in the foreground, or as the daemon that it makes of itself."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from fulgate.client.connection import Answer, call
from tests.servers.fulgate import ROOT

PATIENCE = 30.0  # seconds
STOPPED = "Server Shut Down."
TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]

APP = """\
import json, logging, os, sys, threading, time, warnings
from pathlib import Path

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/noise":
        print("by print")
        sys.stderr.write("by stderr\\n")
        environ["wsgi.errors"].write("by wsgi.errors\\n")
        logging.getLogger("application").warning("by logging {%s}", "braces")
    if path == "/fails":
        raise LookupError("by a traceback {braces}")
    start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "/slow":
        Path("started").touch()
        while not Path("go").exists():
            time.sleep(0.01)
        return (b"x" * 100_000 for _ in range(10))
    if path == "/stuck":
        Path("started").touch()
        time.sleep(60)
    os.umask(mask := os.umask(0))
    return [json.dumps({
        "pid": os.getpid(), "ids": [os.getuid(), os.geteuid(), os.getgid(), os.getegid()],
        "loaded": LOADED, "cwd": os.getcwd(), "umask": mask,
        "threads": sorted(t.name for t in threading.enumerate()),
        "fds": [os.readlink("/proc/self/fd/%d" % fd) for fd in range(3)],
        "listen": [name for name in os.environ if name.startswith("LISTEN_")],
        "env": os.environ.get("OF_THE_FILE"),
    }).encode()]

LOADED = [os.getuid(), os.getpid()]
"""


def until(holds: Callable[[], object], what: Callable[[], object] | str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, what if isinstance(what, str) else what()
        time.sleep(0.01)


def environment(**more: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FULGATE_", "FCGI_", "LISTEN_", "NOTIFY_"))
    }
    return {**kept, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PYTHONWARNINGS": "error", **more}


class Refused(Exception):
    """The daemon ended by itself; its log."""


class Twistd:
    """Runs twistd in `folder`; with "-n" in the foreground. SIGTERM ends it on exit.

    `wait` is the text of the log that says that it serves.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        env: dict[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        command: list[str] = TWISTD,
        pass_fds: Iterable[int] = (),
        wait: str = "serving FastCGI on",
    ) -> None:
        self.folder = folder
        self.daemon = "-n" not in arguments and command is TWISTD
        self.log_file = folder / "twistd.log"
        self.pid_file = folder / "twistd.pid"
        # Not for a program that is no twistd.
        logfile = ["--logfile", str(self.log_file)] if command[-1] == TWISTD[-1] else []
        with (folder / "out").open("wb") as out:
            process = subprocess.Popen(
                [*command, *logfile, *arguments],
                cwd=folder,
                env=environment(**(env or {})),
                stdin=stdin,
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=tuple(pass_fds),
            )
        self.process = None if self.daemon else process
        self.pid = process.pid
        if self.daemon:
            self.pid = self._daemon(process)
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            raise Refused(self.text()) from None
        try:
            until(lambda: wait in self.text() or self.ended(), self.text)
            if self.daemon and STOPPED in self.text():
                raise Refused(self.text())
            assert wait in self.text(), self.text()
            until(lambda: self.ended() or self.runs(), "its reactor does not run")
        except BaseException:
            self._kill()
            raise

    def _daemon(self, process: subprocess.Popen[bytes]) -> int:
        assert process.wait(PATIENCE) == 0, self.text()
        until(lambda: self._pid() or STOPPED in self.text(), self.text)
        pid = self._pid()
        if not pid:
            raise Refused(self.text())
        return pid

    def _kill(self) -> None:
        if not self.ended():
            self.send(signal.SIGKILL)
            self.ended(PATIENCE)
        os.close(self._pidfd)
        if self.process is not None:
            self.process.wait(PATIENCE)

    def runs(self) -> bool:
        """Has its reactor set its handlers? It serves before that, and would end by a signal."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except FileNotFoundError:
            return False
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        return bool(caught >> (signal.SIGTERM - 1) & 1)

    def _pid(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            return int(self.pid_file.read_text())
        return 0

    def text(self) -> str:
        """Give the log, and what stood on the terminal."""
        paths = [path for path in (self.folder / "out", self.log_file) if path.exists()]
        return "".join([path.read_text() for path in paths])

    def ended(self, seconds: float = 0.0) -> bool:
        """Wait for the process's end."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def send(self, number: int) -> None:
        signal.pidfd_send_signal(self._pidfd, number)

    def end(self, number: int = signal.SIGTERM) -> float:
        """Send a signal, wait for the end, and give the seconds that it took."""
        began = time.monotonic()
        self.send(number)
        assert self.ended(PATIENCE), "it does not end:\n" + self.text()
        return time.monotonic() - began

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if not self.ended():
                self.end()
        finally:
            self._kill()


def fails(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> str:
    """Run twistd, which must not start, and give what it says."""
    done = subprocess.run(
        [*TWISTD, *arguments],
        cwd=folder,
        env=environment(**(env or {})),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1, done.stdout
    return done.stdout


def ask(endpoint: str, path: str = "/") -> Answer:
    """Make a request over FastCGI."""
    return call(
        endpoint,
        {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "REQUEST_URI": path,
            "SERVER_PROTOCOL": "HTTP/1.1",
        },
    )


# What tests have it run


def tac(home: Path, *services: str, application: str = '"test"', more: str = "") -> str:
    text = f"""\
from twisted.application import internet, service
from fulgate.twisted import FastCGIService
import site_app
{more}
application = service.Application({application})
"""
    for made in services:
        text += f"{made}.setServiceParent(application)\n"
    (home / "app.tac").write_text(text)
    return "app.tac"


def service(home: Path, name: str = "app.sock", more: str = "") -> str:
    return f'FastCGIService("unix:{home}/{name}?mode=666", wsgi=site_app.app{more})'
