"""A server's process: started, asked for its first answer, and ended."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from peers import Peer

START_TIMEOUT = 20.0  # seconds
STOP_TIMEOUT = 2.0
VARIABLES = {
    "REQUEST_METHOD": "GET",
    "REQUEST_URI": "/",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/",
    "QUERY_STRING": "",
    "CONTENT_TYPE": "",
    "CONTENT_LENGTH": "",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "SERVER_NAME": "localhost",
    "SERVER_PORT": "80",
    "REMOTE_ADDR": "127.0.0.1",
    "HTTP_HOST": "localhost",
}


class NotServing(Exception):
    """A server did not start, or ended by itself."""


def _fastcgi(variables: dict[str, str]) -> bytes:
    """FastCGI 1.0, sections 3.3 and 3.4: one request, the connection to be closed after it."""

    def record(kind: int, content: bytes) -> bytes:
        return struct.pack("!BBHHBx", 1, kind, 1, len(content), 0) + content

    params = b"".join(
        struct.pack("!II", len(name) | 1 << 31, len(value) | 1 << 31) + (name + value).encode()
        for name, value in variables.items()
    )
    return (
        record(1, struct.pack("!HB5x", 1, 0)) + record(4, params) + record(4, b"") + record(5, b"")
    )


def _uwsgi(variables: dict[str, str]) -> bytes:
    """uwsgi: modifier1 0, WSGI variables as pairs of strings."""
    block = b"".join(
        struct.pack("<H", len(text)) + text.encode() for pair in variables.items() for text in pair
    )
    return struct.pack("<BHB", 0, len(block), 0) + block


def _http(variables: dict[str, str]) -> bytes:
    host = variables["HTTP_HOST"]
    return f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()


def _scgi(variables: dict[str, str]) -> bytes:
    """SCGI: a netstring of variables, CONTENT_LENGTH first."""
    sent = {**variables, "CONTENT_LENGTH": "0", "SCGI": "1"}
    names = sorted(sent, key=lambda name: name != "CONTENT_LENGTH")
    block = b"".join(f"{name}\0{sent[name]}\0".encode() for name in names)
    return b"%d:%b," % (len(block), block)


REQUESTS: dict[str, Callable[[dict[str, str]], bytes]] = {
    "fastcgi": _fastcgi,
    "uwsgi": _uwsgi,
    "scgi": _scgi,
    "http": _http,
}


def ask(peer: Peer, path: Path, timeout: float = 5.0) -> bytes:
    """Ask for `/` once, and give all that comes back. Raises OSError."""
    request = REQUESTS[peer.speaks]({**VARIABLES, **peer.params})
    answer = b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(str(path))
        connection.sendall(request)
        while b"hello world\n" not in answer and (data := connection.recv(65536)):
            answer += data
    return answer


@contextlib.contextmanager
def _to_inherit(core: int | None) -> Iterator[None]:
    """Have what is started meanwhile run on one core, with all the descriptors it may have."""
    cores, files = os.sched_getaffinity(0), resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files[1], files[1]))
        os.sched_setaffinity(0, cores if core is None else {core})
        yield
    finally:
        os.sched_setaffinity(0, cores)
        resource.setrlimit(resource.RLIMIT_NOFILE, files)


class Running:
    """A peer's process, which has answered once at `path`; `core` pins it with all its threads."""

    started: float  # seconds from its start to the end of its first answer

    def __init__(self, peer: Peer, path: Path, core: int | None = None) -> None:
        self.peer = peer
        self.path = path
        self.core = core
        self.log = path.with_suffix(".log")

    def __enter__(self) -> Running:
        self.path.unlink(missing_ok=True)
        command = self.peer.command(self.path)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(self.peer.modules)}
        # What is not installed is to have its bytecode, too, as what pip has installed has it.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        began = time.monotonic()
        with self.log.open("wb") as log, _to_inherit(self.core):
            try:
                self.process = subprocess.Popen(
                    command, cwd=self.path.parent, env=environment, stdin=subprocess.DEVNULL,
                    stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise NotServing(f"{command[0]}: {error.strerror}") from error
        try:
            self._wait_for_answer(began + START_TIMEOUT)
        except BaseException:
            self.__exit__()
            raise
        self.started = time.monotonic() - began
        return self

    def _wait_for_answer(self, until: float) -> None:
        answer = b""
        while b"hello world\n" not in answer:
            self.check()
            if time.monotonic() > until:
                raise NotServing(f"no answer within {START_TIMEOUT:.0f} s: {self.last_words()}")
            try:
                answer = ask(self.peer, self.path)
            except OSError:
                time.sleep(0.001)  # it is not there yet
                continue
            if answer and b"hello world\n" not in answer:
                raise NotServing(f"a wrong answer: {answer[:200]!r}; {self.last_words()}")

    def check(self) -> None:
        """Raise NotServing when the process has ended."""
        status = self.process.poll()
        if status is not None:
            how = f"signal {-status}" if status < 0 else f"status {status}"
            raise NotServing(f"it ended with {how}: {self.last_words()}")

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_TIMEOUT)
        with contextlib.suppress(ProcessLookupError):  # flup, while a connection is open; children
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
