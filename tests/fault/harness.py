"""The fault loop: the n-th system call of a kind goes wrong, for n = 1, 2, …

A server runs under shim.c. For each n a fixed workload is sent; then the server must be what it
was before: as many descriptors and threads, every thread free, and no request answered twice.
The loop ends when the workload no longer makes n such calls.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fault.app import FILE, PIECE, PIECES
from tests.fault.client import (
    ABORT_REQUEST,
    STDIN,
    Answer,
    Closed,
    Connection,
    Flaw,
    head,
    record,
    stream,
)

CALLS = ("recv", "send", "accept", "wait", "ctl")
SHORT, ZERO = 1001, 1002
UPLOAD = bytes(range(250)) * 400  # 100,000 bytes: more than is waited for before the start
START = 30.0  # seconds for a server to start
MOST = 500  # calls of a kind that one workload may make


@dataclass(frozen=True)
class Fault:
    """What is to go wrong: an errno, SHORT or ZERO.

    `lost`: how many requests may end with a closed connection instead of an answer.
    """

    call: str
    what: int
    lost: int = 0

    def __str__(self) -> str:
        names = {SHORT: "short", ZERO: "zero"}
        return f"{self.call}-{names.get(self.what) or errno.errorcode[self.what]}"


FAULTS = (
    Fault("recv", SHORT),
    Fault("recv", errno.EINTR),
    Fault("recv", errno.EAGAIN),
    Fault("recv", errno.ECONNRESET, lost=1),
    Fault("recv", ZERO, lost=1),  # the peer is gone
    Fault("send", SHORT),
    Fault("send", errno.EINTR),
    Fault("send", errno.EAGAIN),
    Fault("send", errno.ECONNRESET, lost=1),
    Fault("send", errno.EPIPE, lost=1),
    Fault("accept", errno.EINTR),
    Fault("accept", errno.EAGAIN),
    Fault("accept", errno.ECONNABORTED),
    Fault("accept", errno.EMFILE),
    Fault("accept", errno.ENFILE),
    Fault("wait", SHORT),
    Fault("wait", ZERO),
    Fault("wait", errno.EINTR),
    Fault("ctl", errno.ENOSPC, lost=1),
    Fault("ctl", errno.ENOMEM, lost=1),
)


def build_shim(folder: Path) -> Path:
    """Compile shim.c into `folder`. Raises CalledProcessError when that fails."""
    source = Path(__file__).with_name("shim.c")
    target = folder / "shim.so"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, "-o", target, source, "-ldl"], check=True)
    return target


class Control:
    """The file that shim.c maps: says what is to fail, and tells how often it came to that."""

    _layout = struct.Struct("=12I")

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(self._layout.size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), self._layout.size)

    def close(self) -> None:
        self._map.close()

    def arm(self, fault: Fault | None, nth: int) -> None:
        """Begin to count; the `nth` call gets the fault. None: count only."""
        call = CALLS.index(fault.call) if fault else 0
        what = fault.what if fault else 0
        self._map[:] = self._layout.pack(0, call, what, nth, *[0] * 8)
        self._map[:4] = struct.pack("=I", 1)

    def disarm(self) -> tuple[bool, int, dict[str, int]]:
        """Give: was the fault injected; closes of what was not open; calls of each kind."""
        self._map[:4] = struct.pack("=I", 0)
        fields = self._layout.unpack(self._map[:])
        return bool(fields[5]), fields[6], dict(zip(CALLS, fields[7:], strict=True))


class Server:
    """A server's process under the shim: `command` must serve tests.fault.app at `path`."""

    def __init__(self, command: list[str], path: Path, shim: Path, patience: float = 10.0) -> None:
        self.path = str(path)
        self.patience = patience
        self.control = Control(path.with_suffix(".control"))
        self.log = path.with_suffix(".log")
        root = Path(__file__).parents[2]
        more = {
            "LD_PRELOAD": str(shim),
            "FULGATE_FAULT_CONTROL": str(self.control.path),
            "PYTHONPATH": os.pathsep.join([str(root), str(root / "src")]),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=root, env={**os.environ, **more}, stdout=log, stderr=log
            )

    def __enter__(self) -> Server:
        try:
            self._eventually("serves", self._accepts, START)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.control.close()

    def connect(self) -> Connection:
        try:
            return Connection(self.path, self.patience)
        except OSError as error:
            raise Flaw(f"no connection can be had: {error!r}") from error

    def stop(self) -> int:
        """Send SIGTERM; give the exit status. Raises Flaw when the process does not end."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(self.patience)
        except subprocess.TimeoutExpired:
            raise Flaw("SIGTERM does not end the server") from None

    def descriptors(self) -> list[str]:
        """Give what is open; without the statistics that each thread may keep of itself."""
        folder = Path(f"/proc/{self.process.pid}/fd")
        found = []
        for entry in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found.append(os.readlink(entry).partition(":")[0])
        of_threads = [name for name in found if name.startswith("/proc/")]
        if len(of_threads) > self.threads():
            raise Flaw(f"more statistics than threads: {of_threads}")
        return sorted(name for name in found if name not in of_threads)

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    def settle(self, descriptors: list[str], threads: int) -> None:
        """Wait for the state of before. Raises Flaw when it does not come back."""

        def settled() -> bool:
            return self.descriptors() == descriptors and self.threads() <= threads

        try:
            self._eventually("settles", settled, self.patience)
        except Flaw:
            if self.process.poll() is not None:
                raise
            raise Flaw(
                f"leaked: {len(self.descriptors())} descriptors, {len(descriptors)} before; "
                f"{self.threads()} threads, {threads} before: {self.descriptors()}"
            ) from None

    def _accepts(self) -> bool:
        if not os.path.exists(self.path):
            return False
        try:
            Connection(self.path, START).__exit__()
        except OSError:
            return False
        return True

    def _eventually(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                raise Flaw(f"the server ended with {self.process.returncode}: {self.tail()}")
            if time.monotonic() > until:
                raise Flaw(f"the server never {what}: {self.tail()}")
            time.sleep(0.002)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


# ---- the workload ----


def _check(answer: Answer, body: bytes) -> None:
    if answer.status != "200 OK" or answer.body != body:
        raise Flaw(f"END_REQUEST after {answer.status!r} and {len(answer.body)} bytes of body")


def _kept_alive(server: Server) -> None:
    """On one connection: GET, a POST that another request overtakes, a file, a large answer."""
    with server.connect() as one, server.connect() as other:
        _check(one.request("/"), b"hello world\n")
        id = one.new_id()
        one.send(head(id, "/body", len(UPLOAD)) + stream(STDIN, id, UPLOAD[:50_000]))
        _check(other.request("/"), b"hello world\n")
        one.send(stream(STDIN, id, UPLOAD[50_000:]) + record(STDIN, id))
        _check(one.answer(id), hashlib.sha256(UPLOAD).hexdigest().encode())
        _check(one.request("/file"), FILE)
        _check(one.request("/large"), PIECE * PIECES)
        one.drain()
        other.drain()


def _aborted_by_record(server: Server) -> None:
    """ABORT_REQUEST while the body is waited for, and while the application reads it."""
    for length in (1000, len(UPLOAD)):
        with server.connect() as connection:
            id = connection.new_id()
            connection.send(head(id, "/body", length) + stream(STDIN, id, UPLOAD[: length // 2]))
            connection.send(record(ABORT_REQUEST, id))
            connection.answer(id)
            connection.drain()


def _aborted_by_close(server: Server) -> None:
    """The peer goes: within PARAMS, within the body, within the answer."""
    with server.connect() as connection:
        connection.send(head(connection.new_id(), "/")[:60])
    with server.connect() as connection:
        id = connection.new_id()
        connection.send(head(id, "/body", len(UPLOAD)) + stream(STDIN, id, UPLOAD[:50_000]))
    with server.connect() as connection:
        id = connection.new_id()
        connection.send(head(id, "/large") + record(STDIN, id))
    with server.connect() as connection:
        id = connection.new_id()
        connection.send(head(id, "/file") + record(STDIN, id))
    with server.connect() as connection:  # accepted in turn: so the others were accepted too
        _check(connection.request("/"), b"hello world\n")
        connection.drain()


def work(server: Server) -> int:
    """Do the fixed workload. Give the count of its parts that met a closed connection."""
    lost = 0
    for part in (_kept_alive, _aborted_by_record, _aborted_by_close):
        try:
            part(server)
        except Closed:
            lost += 1
    return lost


def meet(server: Server) -> None:
    """Two requests that need each other: both of the server's threads must be free."""
    with server.connect() as one, server.connect() as other:
        ids = one.new_id(), other.new_id()
        for connection, id in zip((one, other), ids, strict=True):
            connection.send(head(id, "/meet") + record(STDIN, id))
        try:
            _check(one.answer(ids[0]), b"met")
            _check(other.answer(ids[1]), b"met")
        except Closed:
            raise Flaw("a fresh request was not answered") from None


# ---- the loop ----


def fault_loop(server: Server, fault: Fault) -> int:
    """Try n = 1, 2, … until the workload makes no n-th call; give the last n that was reached.

    Raises Flaw, which names the n.
    """
    for _ in range(2):  # threads and descriptors that are made at first need
        work(server)
        meet(server)
    before = _state(server)
    server.control.arm(None, 0)
    if work(server):
        raise Flaw("requests are lost without a fault")
    server.settle(*before)
    calls = server.control.disarm()[2][fault.call]
    reached = 0
    for n in range(1, MOST):
        try:
            injected = _one(server, fault, n, *before)
        except Flaw as flaw:
            raise Flaw(f"{fault}, n = {n}: {flaw}\n{server.tail()}") from flaw
        if injected:
            reached = n
        elif n > calls:  # the count varies a little from run to run
            return reached
    raise Flaw(f"{fault}: more than {MOST} calls")


def _one(server: Server, fault: Fault, n: int, descriptors: list[str], threads: int) -> bool:
    server.control.arm(fault, n)
    lost = work(server)
    server.settle(descriptors, threads)
    injected, bad_closes, _ = server.control.disarm()
    if lost > (fault.lost if injected else 0):
        raise Flaw(f"{lost} requests were lost, {fault.lost} may be")
    if bad_closes:
        raise Flaw("a descriptor was closed that was not open")
    meet(server)
    server.settle(descriptors, threads)
    return injected


def _state(server: Server) -> tuple[list[str], int]:
    """Give descriptors and threads once they stand still."""
    until = time.monotonic() + server.patience
    seen = None
    while (now := (server.descriptors(), server.threads())) != seen:
        if time.monotonic() > until:
            raise Flaw("descriptors or threads never stand still")
        seen = now
        time.sleep(0.1)
    return now
