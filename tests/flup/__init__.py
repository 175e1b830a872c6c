"""Servers with flup's names: in threads of the test, and as programs of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.raw import PATIENCE, Raw

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def until(holds: Callable[[], object], what: Callable[[], str] | str) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, what if isinstance(what, str) else what()
        time.sleep(0.01)


def reachable(address: Any) -> bool:
    """Does somebody listen there?"""
    family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
    with socket.socket(family) as probe:
        return probe.connect_ex(address if isinstance(address, tuple) else str(address)) == 0


def environment(**more: str) -> dict[str, str]:
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("FULGATE_", "FCGI_"))}
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return {**kept, "PYTHONPATH": path, "PYTHONWARNINGS": "error", **more}


@contextlib.contextmanager
def serving(server: Any, address: Any) -> Iterator[threading.Thread]:
    """`server.run()` in a thread, until `server.shutdown()`; what it returned is in `returned`."""
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append(server.run())
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        until(lambda: ended or reachable(address), "the server listens")
        yield thread
    finally:
        server.shutdown()
        thread.join(PATIENCE)
    assert not thread.is_alive()
    assert ended == [False]


class Program:
    """A process that serves at `address`; whatever it became is killed on exit."""

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str | Path],
        address: Any,
        *,
        pid_file: Path | None = None,
        **options: Any,
    ) -> None:
        self.address = address
        self.log_file = folder / "program.log"
        env = environment(**options.pop("env", {}))
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                cwd=folder,
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                **{"stdin": subprocess.DEVNULL, **options},
            )
        self.pid = self.process.pid
        if pid_file is not None:
            assert self.process.wait(PATIENCE) == 0, self.log()
            until(lambda: pid_file.exists() and pid_file.read_text(), self.log)
            self.pid = int(pid_file.read_text())
        self.daemon = pid_file is not None
        try:
            until(lambda: self.gone() or reachable(address), self.log)
            assert not self.gone(), self.log()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.gone():
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)

    def gone(self) -> bool:
        """Has it ended?"""
        if not self.daemon:
            return self.process.poll() is not None
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except FileNotFoundError:
            return True
        return stat.rpartition(")")[2].split()[0] == "Z"

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    def ends(self, number: int | None = None) -> int:
        """Send a signal, and wait for the end: the status."""
        if number is not None:
            self.kill(number)
        until(self.gone, self.log)
        return 0 if self.daemon else self.process.wait()

    def raw(self) -> Raw:
        return Raw(self.address)

    def says_hello(self) -> None:
        with self.raw() as raw:
            assert raw.request(keep=False).body == b"Hello, world!\n"

    def status(self, name: str) -> str:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return line.partition(":")[2].strip()
        raise LookupError(name)

    def threads(self) -> int:
        return int(self.status("Threads"))

    def children(self) -> list[int]:
        """The ids of its child processes."""
        text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(word) for word in text.split()]

    def sockets(self) -> int:
        count = 0
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                count += os.readlink(entry).startswith("socket:")
        return count


def server(folder: Path, kind: str, address: Any = None, /, **arguments: Any) -> Program:
    """A program whose only task is `fulgate.flup.server.KIND.WSGIServer(tests.apps.app, ...)`.

    What its run() returned stands at the end of its log.
    """
    options = {name: arguments.pop(name) for name in ("env",) if name in arguments}
    address = address or str(folder / "flup.sock")
    arguments.setdefault("bindAddress", address)
    return Program(folder, [HERE / "serve.py", kind, json.dumps(arguments)], address, **options)
