"""The servers that are measured side by side, and how each is set up and started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BENCH = Path(__file__).parent
ROOT = BENCH.parent
BUILD = BENCH / ".build"
VENV = BENCH / ".venv"
PYTHON = VENV / "bin" / "python"


@dataclass(frozen=True)
class Peer:
    """A server of FastCGI. `command` gives its command line for a Unix socket's path."""

    name: str
    settings: str
    command: Callable[[Path], list[str]]
    requirement: str = ""  # what pip installs for it


def _fulgate(*options: str) -> Callable[[Path], list[str]]:
    return lambda path: [
        *(str(PYTHON), "-m", "fulgate", "serve", "hello:app"),
        *("--bind", f"unix:{path}", *options),
    ]


PEERS = {
    peer.name: peer
    for peer in (
        Peer("fulgate", "interpreted, its defaults (8 threads)", _fulgate()),
        Peer("fulgate-1", "interpreted, --threads 1", _fulgate("--threads", "1")),
        Peer("fulgate-64", "interpreted, --threads 64", _fulgate("--threads", "64")),
        Peer(
            "flup",
            "1.0.3, its defaults (threads: 5 spare, no limit)",
            lambda path: [str(PYTHON), str(BENCH / "apps" / "flup_server.py"), str(path)],
            "flup==1.0.3",
        ),
        Peer(
            "floor",
            "bench/floor.c, the least in C",
            lambda path: [str(BUILD / "floor"), str(path)],
        ),
    )
}


def prepare(peers: list[Peer]) -> dict[str, str]:
    """Compile and install what is needed; give the peers that cannot be had, with the reason."""
    BUILD.mkdir(exist_ok=True)
    for name in ("load", "floor"):
        source, target = BENCH / f"{name}.c", BUILD / name
        newest = max(file.stat().st_mtime for file in [source, *BENCH.glob(f"{name}_*.h")])
        if not target.exists() or target.stat().st_mtime < newest:
            subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", target, source], check=True)
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    failed = {}
    for requirement in ["click>=8.1", *{peer.requirement for peer in peers if peer.requirement}]:
        marker = VENV / ("installed-" + requirement.replace("=", "-").replace(">", "-"))
        if marker.exists():
            continue
        done = subprocess.run(
            [PYTHON, "-m", "pip", "install", "--quiet", requirement],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if not done.returncode:
            marker.touch()
            continue
        reason = next(iter(done.stdout.strip().splitlines()[-1:]), "pip failed")
        failed.update({peer.name: reason for peer in peers if peer.requirement == requirement})
    return failed


class Running:
    """A peer's process, accepting at `path`; `core` pins it with all its threads."""

    def __init__(self, peer: Peer, path: Path, core: int | None = None) -> None:
        self.path = path
        self.log = path.with_suffix(".log")
        self.command = peer.command(path)
        if core is not None:
            self.command = ["taskset", "-c", str(core), *self.command]

    def __enter__(self) -> Running:
        self.path.unlink(missing_ok=True)
        where = os.pathsep.join([str(ROOT / "src"), str(BENCH / "apps")])
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.path.parent, env={**os.environ, "PYTHONPATH": where},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        until = time.monotonic() + 10
        while not self.path.exists():
            if self.process.poll() is not None or time.monotonic() > until:
                self.__exit__()
                tail = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{' '.join(self.command)} does not serve:\n{tail}")
            time.sleep(0.02)
        time.sleep(0.2)  # it may have bound, and not listen yet
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:  # flup, while a connection is open
            self.process.kill()
            self.process.wait()
