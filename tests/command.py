"""The command `fulgate`, run by tests in processes of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fulgate.cli import main
from fulgate.client.connection import call
from tests.processes import SOURCE

APP = """\
import json, os, resource, signal, sys, time

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/slow":
        open("started", "w").close()
        time.sleep(30)
    os.umask(mask := os.umask(0))
    body = json.dumps({
        "pid": os.getpid(), "ids": [os.getuid(), os.geteuid(), os.getgid(), os.getegid()],
        "groups": sorted(os.getgroups()), "loaded": LOADED, "cwd": os.getcwd(), "umask": mask,
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0], "path": sys.path[:2],
        "env": dict(os.environ), "script_name": environ["SCRIPT_NAME"], "path_info": path,
    }).encode()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [body]

LOADED = os.getuid()

def create_app(name, *, suffix=""):
    def made(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [(name + suffix).encode()]
    return made
"""


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FULGATE_")}
    return {**kept, "PYTHONPATH": SOURCE, **more}


def fulgate(
    *arguments: str, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "fulgate", *arguments],
        cwd=cwd,
        env=environment(**(env or {})),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )


def here(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, which takes a tenth of the time: none that forks or serves."""
    out, errors = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n") for _ in range(2))
    with contextlib.chdir(cwd), redirect_stdout(out), redirect_stderr(errors):
        status = main(arguments)
    texts = []
    for stream in (out, errors):
        stream.flush()
        data = stream.buffer.getvalue()
        texts.append(data.decode().replace("\r\n", "\n"))
    return subprocess.CompletedProcess(arguments, status, *texts)


def refused_here(status: int, *arguments: str, cwd: Path) -> str:
    """Do as `refused`, in this process."""
    return why(here(*arguments, cwd=cwd), status)


def refused(status: int, *arguments: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Run the command, and give the one line that it says why it does not serve."""
    return why(fulgate(*arguments, cwd=cwd, env=env), status)


def why(done: subprocess.CompletedProcess[str], status: int) -> str:
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("fulgate: error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    return done.stderr.removeprefix("fulgate: error: ").rstrip("\n")


class Served:
    """`fulgate serve`, started; ended by SIGTERM, with status 0, on exit.

    `within` is a command that executes the one that follows it.
    """

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        env: dict[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        wait: bool = True,
        within: Sequence[str] = (),
    ) -> None:
        self.out = cwd / "out"
        with self.out.open("w") as out:
            self.process = subprocess.Popen(
                [*within, sys.executable, "-W", "error", "-m", "fulgate", "serve", *arguments],
                cwd=cwd,
                env=environment(**(env or {})),
                stdin=stdin,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        if wait:
            self.wait_for(r" on \S+\n")

    def wait_for(self, pattern: str) -> str:
        deadline = time.monotonic() + 60
        while not (match := re.search(pattern, self.text)):
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.01)
        return match[0]

    @property
    def text(self) -> str:
        return self.out.read_text()

    @property
    def endpoints(self) -> list[str]:
        return re.findall(r"^fulgate \S+ serves .* on (\S+)$", self.text, re.MULTILINE)

    def ask(self, path: str = "/", endpoint: str = "") -> bytes:
        """Make a request over FastCGI, and give the answer's body."""
        answer = call(
            endpoint or self.endpoints[0],
            {
                "REQUEST_METHOD": "GET",
                "SCRIPT_NAME": "",
                "PATH_INFO": path,
                "REQUEST_URI": path,
                "SERVER_PROTOCOL": "HTTP/1.1",
                "REQUEST_ID": "the-id",
            },
        )
        assert answer.status == 200
        return answer.body

    def facts(self, path: str = "/") -> dict[str, Any]:
        """Give what the application of APP says of its process."""
        found: dict[str, Any] = json.loads(self.ask(path))
        return found

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            status = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20)
            raise
        if error is None:
            assert status == 0, self.text
