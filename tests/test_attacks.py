"""The attack corpus (tests/attacks/), replayed against every driver.

Each attack ends as its entry says, in time and in bounded memory, with one line of the log or with
none, and the server serves on.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fulgate.composition import SERVED
from tests.attacks import FOLDER, OUTCOMES, Attack, load
from tests.attacks.replay import SECONDS, Broken, check_answers, probe, replay
from tests.servers.fulgate import ROOT

MEMORY = 32 << 20  # bytes that an attack may cost for a moment
DRIVERS = ["threads", "inline", "aio", "tx"]
FILES = sorted(path.stem for path in FOLDER.glob("*.json"))
PROTOCOLS = [name for name in FILES if name != "cgi"]


def command(driver: str, *endpoints: str) -> list[str]:
    return [sys.executable, "-m", "tests.attacks.serve", driver, *endpoints]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}


class Target:
    """A server process that is attacked."""

    def __init__(self, process: subprocess.Popen[bytes], address: str, log: Path) -> None:
        self.process = process
        self.address = address
        self.log = log

    def lines(self) -> list[str]:
        return self.log.read_text("utf-8", "replace").splitlines()

    def forget_peak(self) -> int:
        """Have the peak of its memory measured anew; give what it has now, in bytes."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self.memory("VmRSS")

    def memory(self, field: str) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) << 10
        raise KeyError(field)


@contextmanager
def target(driver: str, protocol: str, folder: Path) -> Iterator[Target]:
    path = folder / "sock"
    log = folder / "log"
    endpoint = f"unix:{path}" if protocol == "fastcgi" else f"{protocol}+unix:{path}"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command(driver, endpoint), cwd=folder, env=environment(), stderr=stderr
        )
    try:
        deadline = time.monotonic() + SECONDS
        while not accepts(path):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "it does not listen"
            time.sleep(0.05)
        yield Target(process, str(path), log)
        assert process.poll() is None, f"it has ended: {log.read_text()[-2000:]}"
    finally:
        process.kill()
        process.wait()


def accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except OSError:
            return False
    return True


def assault(attack: Attack, target: Target) -> None:
    """Make one attack, and look at what it cost. Raises Broken."""
    before = len(target.lines())
    memory = target.forget_peak()
    began = time.monotonic()
    outcome = replay(attack, target.address)
    if time.monotonic() - began > SECONDS:
        raise Broken("it took too long")
    probe(attack, target.address)
    grown = target.memory("VmHWM") - memory
    if grown > MEMORY:
        raise Broken(f"it cost {grown >> 20} MiB")
    check_log(attack, outcome, target.lines()[before:])


def check_log(attack: Attack, outcome: str, lines: list[str]) -> None:
    most = attack.log if attack.log is not None else 1
    least = 1 if attack.log is None and outcome == "close" else 0
    if not least <= len(lines) <= most:
        raise Broken(f"{len(lines)} lines of log: {lines[:5]}")
    if any("Traceback" in line or line.startswith("ERROR") for line in lines):
        raise Broken(f"an error of the server: {lines[:5]}")


CASES = [
    pytest.param(driver, protocol, marks=() if driver == "threads" else pytest.mark.slow)
    for protocol in PROTOCOLS
    for driver in DRIVERS
    if protocol in SERVED
]


@pytest.mark.timeout(600)
@pytest.mark.statement("30")
@pytest.mark.statement("R1")
@pytest.mark.statement("R2")
@pytest.mark.statement("R3")
@pytest.mark.statement("R4")
@pytest.mark.statement("R5")
@pytest.mark.parametrize(("driver", "protocol"), CASES)
def test_attacks(driver: str, protocol: str, folder: Path) -> None:
    failed = []
    with target(driver, protocol, folder) as server:
        probe(load(protocol)[0], server.address)  # what is imported late is no attack's cost
        for attack in load(protocol):
            try:
                assault(attack, server)
            except (Broken, OSError) as error:
                failed.append(f"{attack.name}: {error!r}")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("attack", load("cgi"), ids=str)
def test_attacks_on_a_cgi_process(attack: Attack, folder: Path) -> None:
    run = subprocess.run(
        command("stdio"),
        input=b"".join(attack.pieces()),
        capture_output=True,
        cwd=folder,
        env={**{name.encode(): value.encode() for name, value in environment().items()},
             **{n.encode("latin-1"): v.encode("latin-1") for n, v in attack.environ.items()}},
        timeout=SECONDS,
    )  # fmt: skip
    assert run.stdout, run.stderr
    check_answers(attack, [run.stdout])
    check_log(attack, "answer", run.stderr.decode("utf-8", "replace").splitlines())


@pytest.mark.parametrize("name", FILES)
def test_the_corpus_is_as_its_description_says(name: str) -> None:
    attacks = load(name)
    names = [attack.name for attack in attacks]
    assert len(set(names)) == len(names)
    for attack in attacks:
        assert attack.why, attack.name
        assert attack.expect, attack.name
        assert set(attack.expect) <= OUTCOMES, attack.name
        assert attack.end in ("close", "half", "reset"), attack.name
        assert sum(map(len, attack.pieces())) < 100 << 20, attack.name
    if name != "cgi":
        assert attacks[0].probe_bytes()


def test_a_server_that_falls_for_an_attack_is_found(folder: Path) -> None:
    """Something that takes everything and says nothing passes for no server."""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(folder / "sock"))
        silent.listen()
        for attack in load("fastcgi"):
            if attack.name in ("version-0", "begin-of-0-bytes"):
                with pytest.raises(Broken, match="seconds"):
                    replay(attack, str(folder / "sock"), seconds=0.2)
