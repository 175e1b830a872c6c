"""A real server, run as a child that never daemonises, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, Concatenate, ParamSpec, Self, TypeVar

from tests.alone import free_port

# Debian keeps web servers in sbin, which an ordinary user's PATH leaves out.
# Where scripts/setup.sh unpacks a lighttpd that is newer than the system's.
CACHE = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
NEXT = f"{CACHE}/fulgate/lighttpd-next"
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin", NEXT])
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PATIENCE = 60.0  # seconds to start, and to stop

S = TypeVar("S", bound="RealServer")
P = ParamSpec("P")


def connect(port: int, timeout: float = 30.0) -> socket.socket:
    """Connect to a port of the loopback interface."""
    return socket.create_connection(("127.0.0.1", port), timeout)


class RealServer:
    """Starts on entry, once it accepts connections, and is stopped by its process id on exit.

    `folder` is the server's own: it must be one that any user may enter, since a server that is
    started by root gives its privileges up. Subclasses write their configuration there.
    """

    program: ClassVar[str]
    stop_signal: ClassVar[int] = signal.SIGTERM

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.fixed_port = 0  # 0 takes a free one
        self.as_user: str | None = (
            None  # whom root starts it as, with that one's group; None: as root
        )
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self) -> None:
        """Write the configuration files for `self.port`."""

    def command(self) -> list[str]:
        """Give the command line that runs the server in the foreground."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Give the process's environment variables; Apache passes PATH on to applications."""
        return {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8", "HOME": str(self.folder)}

    def accepts(self) -> bool:
        """Does the server take connections?"""
        try:
            connect(self.port, 1.0).close()
        except OSError:
            return False
        return True

    @property
    def pid(self) -> int:
        if self.process is None:
            raise RuntimeError(f"{self.program} is not running")
        return self.process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        """Give what the server wrote to its log files and to its standard streams."""
        texts = [
            f"--- {path.name}\n{path.read_text(errors='replace')[-8000:]}"
            for path in sorted(self.folder.glob("*.log"))
            if path.stat().st_size
        ]
        return "\n".join(texts) or "(nothing logged)"

    def start(self) -> None:
        # The port is only likely to be free: another process may take it before the server does.
        for _ in range(3):
            self.port = self.fixed_port or free_port()
            self.configure()
            program, *arguments = self.command()
            with (self.folder / "stdio.log").open("wb") as out:
                self.process = subprocess.Popen(
                    [shutil.which(program, path=PATH) or program, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                    env=self.environment(),
                    user=self.as_user,
                    group=self.as_user,
                    extra_groups=None if self.as_user is None else [],
                )
            deadline = time.monotonic() + PATIENCE
            while self.process.poll() is None and time.monotonic() < deadline:
                if self.accepts():
                    return
                time.sleep(0.02)
            self.stop()
        raise RuntimeError(f"{self.program} did not start:\n{self.log()}")

    def stop(self, signum: int | None = None) -> int:
        """End the process and give its exit status; kill it, as a failure, when it does not end."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        if process.poll() is None:
            process.send_signal(self.stop_signal if signum is None else signum)
        try:
            return process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(PATIENCE)
            raise RuntimeError(f"{self.program} did not stop:\n{self.log()}") from None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


class Running:
    """Starts real servers, each in a folder of its own; the test's end stops them, last first."""

    def __init__(self, folder: Path, started: list[RealServer], stack: ExitStack) -> None:
        self.folder = folder
        self._started = started
        self._stack = stack

    def __call__(self, kind: Callable[Concatenate[Path, P], S], *args: P.args, **kw: P.kwargs) -> S:
        folder = self.folder / str(len(self._started))
        folder.mkdir(mode=0o755)
        server = kind(folder, *args, **kw)
        self._started.append(server)
        self._stack.enter_context(server)
        return server
