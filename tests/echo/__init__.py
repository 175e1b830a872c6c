"""Applications on several FastCGI servers that all answer with the request's own body.

X-Method and X-Given say what else was asked; /missing is a 404, /stderr complains there. /size?N
answers with N bytes, /stream with each piece of the body as it comes, /endless until nobody takes
it any more, and then it makes the file that X-Given names.
"""

from __future__ import annotations

import atexit
import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.command import Served
from tests.servers import Running
from tests.servers.php import PHP_FPM, PhpFpm

__all__ = ["PEERS", "PIECE", "Peer", "app", "pattern", "peer"]

HERE = Path(__file__).parent
PIECE = 8192  # bytes that /stream takes at a time


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """The same for Fulgate; it answers while it reads, in pieces of ?SIZE."""
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    given = environ.get("HTTP_X_GIVEN", "")
    if path == "/stderr":
        environ["wsgi.errors"].write("a complaint\n")
    start_response(
        "404 Not Found" if path == "/missing" else "200 OK",
        [
            ("Content-Type", "text/plain"),
            ("X-Method", environ["REQUEST_METHOD"]),
            ("X-Given", given),
        ],
    )
    if path == "/size":
        return _size(int(query))
    if path == "/endless":
        return _endless(given)
    size = int(query) if query.isdigit() else PIECE if path == "/stream" else 65536
    return iter(lambda: environ["wsgi.input"].read(size), b"")


def pattern(size: int) -> bytes:
    """Give what /size answers with."""
    return (bytes(range(256)) * (size // 256 + 1))[:size]


def _size(left: int) -> Iterator[bytes]:
    while left > 0:
        yield pattern(min(left, PIECE))
        left -= PIECE


def _endless(name: str) -> Iterator[bytes]:
    try:
        while True:
            yield bytes(32768)
            time.sleep(0.01)
    finally:
        Path(name).touch()


@dataclass(frozen=True)
class Peer:
    """A server that runs: where it listens, and the script that it wants named."""

    name: str
    endpoint: str
    script_filename: str = ""
    restart: Callable[[], None] = lambda: None  # stops it, which closes all connections


PEERS = [
    "fulgate",
    pytest.param("php", marks=pytest.mark.requires_server(PHP_FPM)),
    pytest.param("libfcgi", marks=pytest.mark.requires_program("cc", "libfcgi-dev")),
    pytest.param(
        "go",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed"),
        ],
    ),
]


@contextlib.contextmanager
def peer(name: str, folder: Path, running: Running) -> Iterator[Peer]:
    """Run one of PEERS in a folder."""
    endpoint = f"unix:{folder}/sock"
    if name == "php":
        script = folder / "echo.php"
        script.write_bytes((HERE / "echo.php").read_bytes())
        php = running(PhpFpm)

        def restart_php() -> None:
            php.stop()
            php.start()

        yield Peer(name, php.endpoint, str(script), restart_php)
        return
    with contextlib.ExitStack() as outer, contextlib.ExitStack() as stack:
        if name == "fulgate":
            start = _fulgate(folder, endpoint)
        else:
            program = built(name)
            listener = outer.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(folder / "sock"))
            listener.listen(64)
            start = _program(program, listener)

        def restart() -> None:
            stack.close()
            stack.enter_context(start())

        stack.enter_context(start())
        yield Peer(name, endpoint, restart=restart)


Start = Callable[[], contextlib.AbstractContextManager[object]]


def _fulgate(folder: Path, endpoint: str) -> Start:
    options = ["--bind", endpoint, "--threads", "4", "--stderr"]
    env = {"PYTHONPATH": f"{HERE.parents[1]}:{HERE.parents[1]}/src"}
    return lambda: Served("tests.echo:app", *options, cwd=folder, env=env)


def _program(program: Path, listener: socket.socket) -> Start:
    @contextlib.contextmanager
    def start() -> Iterator[None]:
        process = subprocess.Popen([program], stdin=listener.fileno())
        try:
            yield
        finally:
            process.kill()
            process.wait(20)

    return start


_built: dict[str, Path] = {}


def built(name: str) -> Path:
    """Compile a peer, once."""
    if name not in _built:
        folder = Path(tempfile.mkdtemp(prefix="fulgate-echo-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        program = folder / name
        if name == "go":
            command = ["go", "build", "-o", str(program), str(HERE / "echo.go")]
        else:
            command = ["cc", "-O1", "-o", str(program), str(HERE / "echo.c"), "-lfcgi"]
        subprocess.run(command, check=True)
        _built[name] = program
    return _built[name]
