"""The threads driver in a process of its own: with few descriptors, and measured."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.driver_suite.kit import ask, silent, until
from tests.model import STDIN
from tests.processes import python
from tests.raw import Raw, head, post, stream

SERVER = """\
    import hashlib, logging, os, resource, sys
    from fulgate import Server

    path, files, poller = os.environ["SERVE"].split()
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(files), int(files)))
    logging.basicConfig(filename=path + ".log", level="INFO", format="%(message)s")

    def app(environ, start):
        sha256 = hashlib.sha256()
        while piece := environ["wsgi.input"].read(65536):
            sha256.update(piece)
        start("200 OK", [])
        return [sha256.hexdigest().encode()]

    with Server(app, bind=("unix:" + path,), threads=2, poller=poller):
        print("ready", flush=True)
        sys.stdin.read()
"""


class Process:
    def __init__(self, process: subprocess.Popen[str], path: Path) -> None:
        self.process = process
        self.address = self.tcp = str(path)

    def stop(self, timeout: float = 30.0) -> bool:
        self.process.communicate(timeout=timeout)
        return self.process.returncode == 0

    def cut(self) -> None:
        self.process.terminate()

    def lines(self, text: str) -> int:
        return Path(self.address + ".log").read_text().count(text)

    def peak(self) -> int:
        """The most memory that it had, in bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmHWM")


@contextmanager
def serving(path: Path, files: int, poller: str) -> Iterator[Process]:
    process = python(SERVER, env={"SERVE": f"{path} {files} {poller}"}, stdin=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Process(process, path)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("poller", ["epoll", "poll"])
def test_without_descriptors_accepting_pauses(folder: Path, poller: str) -> None:
    empty = hashlib.sha256().hexdigest().encode()
    with serving(folder / "sock", 64, poller) as served, ExitStack() as stack:
        first = [stack.enter_context(Raw(served.address)) for _ in range(30)]
        for raw in first:
            assert raw.request().body == empty
        late = [stack.enter_context(ask(served)) for _ in range(60)]
        until(lambda: served.lines("cannot accept connections for now"), "it is not told")
        assert late[0].answer().body == empty  # some of them had a place
        assert silent(late[-1])
        # As places fall free the others have their turn, one by one, and nobody is told again.
        for raw in first:
            assert raw.request().body == empty
            raw.socket.close()
        for raw in late:
            assert raw.answer().body == empty
            raw.socket.close()
        with Raw(served.address) as raw:
            assert raw.request().body == empty
        until(lambda: served.lines("accepting connections again"), "it does not go on")
        assert served.lines("cannot accept connections for now: Too many open files") == 1
        assert served.lines("accepting connections again") == 1
        assert served.stop()


def test_a_large_body_streams_in_little_memory(folder: Path) -> None:
    data = bytes(range(256)) * 4096
    times = 200
    sha256 = hashlib.sha256()
    with serving(folder / "sock", 256, "auto") as served:
        with Raw(served.address) as raw:
            raw.expect()
            raw.send(head(**post(times * len(data))))
            for _ in range(times):
                raw.send(stream(STDIN, 1, data, end=False))
                sha256.update(data)
            raw.send(stream(STDIN, 1, b""))
            assert raw.answer().body == sha256.hexdigest().encode()
        assert served.peak() < 60 << 20
        assert served.stop()
