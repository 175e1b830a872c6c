"""Application servers by others, that `fulgate conform` is held against; and Fulgate, beside them.

usage: python -m tests.conform.peers NAME FOLDER [ADDRESS]

That becomes the server, on the listening socket that is descriptor 0; PHP-FPM, which takes none,
opens one at ADDRESS. What it runs in FOLDER are the programs that docs/conformance.md shows.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path

from tests.conform import PYTHON, Outcomes, conform
from tests.servers.base import PATH, SYSTEM_PATH
from tests.servers.fulgate import ROOT
from tests.servers.php import PHP_FPM

PAGE = ROOT / "docs" / "conformance.md"
DEAD = "the server does not answer any more"
ROUNDS = 8  # of a server that has to be started again
PLAIN = ("--timeout", "3")
FULL = ("--threads", "2", "--queue", "8", "--overload", "overloaded")
TIMES = ("--arrival-timeout", "2", "--body-timeout", "2", "--body-wait", "5")


@dataclass(frozen=True)
class Peer:
    """A server. `command` is what it is run as, for its folder and its address."""

    name: str
    how: str  # how it is run, for people
    version: Callable[[], str]
    command: Callable[[Path, str], list[str]]
    program: str  # what it cannot do without
    source: str = ""  # the language of the program that it runs
    inherits: bool = True  # it takes the listening socket that is descriptor 0
    options: tuple[str, ...] = PLAIN  # more for `fulgate conform`

    @property
    def missing(self) -> str:
        """Say what is missing, if anything."""
        return "" if shutil.which(self.program, path=PATH) else f"{self.program} is not installed"


def _said(*command: str) -> str:
    """Give the first number of a version in what a command says."""
    environ = {**os.environ, "PATH": PATH}
    done = subprocess.run(command, text=True, capture_output=True, env=environ, check=True)
    found = re.search(r"[0-9]+(\.[0-9]+)+", done.stdout)
    assert found is not None, done.stdout
    return found[0]


def _fulgate(folder: Path, address: str) -> list[str]:
    serve = ["-m", "fulgate", "serve", "fulgate.conform_app:app", "--bind", "fd:0"]
    return [sys.executable, *serve, *FULL, *TIMES]


def _flup(folder: Path, address: str) -> list[str]:
    # It calls names that Python has deprecated.
    return [sys.executable, "-W", "ignore", "-m", "tests.conform.flup_site"]


def _uwsgi(folder: Path, address: str) -> list[str]:
    app = ["--module", "fulgate.conform_app:wsgi", "--need-app"]
    run = ["--master", "--fastcgi-socket", "fd://0", "--threads", "4", "--die-on-term"]
    return ["uwsgi", "--plugin", "python3", *run, *app]


def _php(folder: Path, address: str) -> list[str]:
    who = ["user = root", "group = root"] if not os.geteuid() else []
    lines = [
        "[global]", "error_log = /proc/self/fd/2",
        "[conform]", f"listen = {address}", "clear_env = no",
        "pm = static", "pm.max_children = 4", *who,
    ]  # fmt: skip
    configuration = folder / f"php-fpm-{os.getpid()}.conf"
    configuration.write_text("\n".join([*lines, ""]))
    return [PHP_FPM, "-F", "-n", "-y", str(configuration), *([] if os.geteuid() else ["-R"])]


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "Fulgate",
            f"`fulgate serve {' '.join((*FULL, *TIMES))}`", lambda: installed("fulgate"), _fulgate,
            sys.executable, options=("--deadline", "30"),
        ),
        Peer("flup", "its defaults", lambda: installed("flup"), _flup, sys.executable),
        Peer(
            "uWSGI", "`uwsgi --master --fastcgi-socket fd://0 --threads 4`",
            lambda: _said("uwsgi", "--version"), _uwsgi, "uwsgi",
        ),
        Peer(
            "PHP-FPM", "4 children", lambda: _said(PHP_FPM, "-v"), _php, PHP_FPM, "php",
            inherits=False,
        ),
        Peer(
            "Go", "net/http/fcgi", lambda: _said("go", "version"),
            lambda folder, address: [str(folder / "conform")], "go", "go",
        ),
        Peer(
            "libfcgi", "8 threads", lambda: _said("dpkg-query", "-W", "libfcgi-dev"),
            lambda folder, address: [str(folder / "conform")], "cc", "c",
        ),
    )
}  # fmt: skip
COMPILERS = {"go": ["go", "build", "-o"], "c": ["cc", "-O1", "-o"]}
LIBRARIES = {"go": [], "c": ["-lfcgi", "-lpthread"]}


def prepare(peer: Peer, folder: Path) -> None:
    """Write the program that a peer runs, as the page shows it, and compile it."""
    if not peer.source:
        return
    found = re.search(rf"^```{peer.source}\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    assert found is not None
    program = folder / f"conform.{peer.source}"
    program.write_text(found[1])
    if peer.source in COMPILERS:
        target = str(folder / "conform")
        command = [*COMPILERS[peer.source], target, str(program), *LIBRARIES[peer.source]]
        subprocess.run(command, check=True, cwd=folder)


@contextlib.contextmanager
def running(peer: Peer, folder: Path) -> Iterator[str]:
    """Run a peer on a Unix socket; give the endpoint."""
    path = folder / "sock"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.conform.peers", peer.name, str(folder), str(path)]
    with socket.socket(socket.AF_UNIX) as listener, (folder / "log").open("ab") as log:
        if peer.inherits:
            listener.bind(str(path))
            listener.listen(128)
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
            stdin=listener.fileno() if peer.inherits else subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield f"unix:{path}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)  # and its children
        process.wait(20)


def hold(peer: Peer, folder: Path) -> Outcomes:
    """Hold a peer against all statements; it is started again where it has died of one."""
    prepare(peer, folder)
    spawn = f"{PYTHON} -m tests.conform.peers {peer.name} {folder}"
    options = [*peer.options, "--spawn", spawn if peer.inherits else spawn + " {}"]
    if peer.source == "php":
        options += ["--script-filename", str(folder / "conform.php")]
    with _answering(peer, folder) as endpoint:
        found = conform(endpoint, *options, cwd=folder)
    for _ in range(ROUNDS):
        left = [number for number, seen in found.seen.items() if seen.startswith(DEAD)]
        if not left:
            break
        with _answering(peer, folder) as endpoint:
            again = conform(endpoint, *options, "--only", ",".join(left), cwd=folder)
        found.of |= again.of
        found.seen |= again.seen
    return found


@contextlib.contextmanager
def _answering(peer: Peer, folder: Path) -> Iterator[str]:
    """The same as `running`, once the socket is there."""
    with running(peer, folder) as endpoint:
        for _ in range(1000):
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                probe.connect(str(folder / "sock"))
                break
            time.sleep(0.02)
        yield endpoint


def main() -> None:
    name, folder, *address = sys.argv[1:]
    command = PEERS[name].command(Path(folder), *(address or [""]))
    path = f"{PATH}:{SYSTEM_PATH}"
    os.environ["PATH"] = path
    program = shutil.which(command[0], path=path) or command[0]
    os.execv(program, command)


if __name__ == "__main__":
    main()
