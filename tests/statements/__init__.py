"""The numbered statements of FastCGI's conformance list, each held against a running server.

The servers are processes of their own, and are spoken to in single records over real sockets. Most
run one thread: what needs a second one to keep a promise fails here.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.raw import PATIENCE, Raw
from tests.servers import Fulgate

APP = "tests.apps:app"

statement = pytest.mark.statement


@contextlib.contextmanager
def serving(*options: str) -> Iterator[Fulgate]:
    """A server for more than one test."""
    with tempfile.TemporaryDirectory(prefix="fulgate-", dir="/tmp") as folder:
        with Fulgate(Path(folder), APP, *options) as server:
            yield server
            assert server.stop() == 0


def still_serves(server: Fulgate) -> None:
    with Raw(server.socket) as raw:
        assert raw.request().body == b"Hello, world!\n"


def query(**paths: Path) -> str:
    return urlencode({name: str(path) for name, path in paths.items()})


def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def written(path: Path) -> str:
    """Wait for the application's report."""
    eventually(lambda: path.exists() and path.read_text() != "", f"{path.name} is there")
    return path.read_text()


def sockets(server: Fulgate) -> int:
    """Count the server's sockets, those that listen included."""
    count = 0
    for entry in Path(f"/proc/{server.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(entry).startswith("socket:")
    return count
