"""Applications on several FastCGI servers that all answer with the request's own body.

X-Method and X-Given say what else was asked; /missing is a 404, /stderr complains there.
"""

from __future__ import annotations

import atexit
import contextlib
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.command import Served
from tests.servers import Running
from tests.servers.php import PHP_FPM, PhpFpm

__all__ = ["PEERS", "Peer", "app", "peer"]

HERE = Path(__file__).parent


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """The same for Fulgate; it answers while it reads, in pieces of ?SIZE."""
    path = environ["PATH_INFO"]
    if path == "/stderr":
        environ["wsgi.errors"].write("a complaint\n")
    start_response(
        "404 Not Found" if path == "/missing" else "200 OK",
        [
            ("Content-Type", "text/plain"),
            ("X-Method", environ["REQUEST_METHOD"]),
            ("X-Given", environ.get("HTTP_X_GIVEN", "")),
        ],
    )
    size = int(environ["QUERY_STRING"]) if environ["QUERY_STRING"].isdigit() else 65536
    while piece := environ["wsgi.input"].read(size):
        yield piece


@dataclass(frozen=True)
class Peer:
    """A server that runs: where it listens, and the script that it wants named."""

    name: str
    endpoint: str
    script_filename: str = ""


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
    if name == "fulgate":
        options = ["--bind", endpoint, "--threads", "4", "--stderr"]
        env = {"PYTHONPATH": f"{HERE.parents[1]}:{HERE.parents[1]}/src"}
        with Served("tests.echo:app", *options, cwd=folder, env=env):
            yield Peer(name, endpoint)
    elif name == "php":
        script = folder / "echo.php"
        script.write_bytes((HERE / "echo.php").read_bytes())
        yield Peer(name, running(PhpFpm).endpoint, str(script))
    else:
        program = built(name)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "sock"))
            listener.listen(64)
            process = subprocess.Popen([program], stdin=listener.fileno())
        try:
            yield Peer(name, endpoint)
        finally:
            process.kill()
            process.wait(20)


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
