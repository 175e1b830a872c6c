"""sd_notify(3), with a socket in the place of systemd's."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fulgate.systemd import notify
from tests.command import APP, environment

PATIENCE = 30.0  # seconds


def manager(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(address)
    sock.settimeout(PATIENCE)
    return sock


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_a_state_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    name = f"{folder}/notify" if kind == "path" else f"@fulgate-{os.getpid()}"
    with manager(name.replace("@", "\0")) as sock:
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        assert notify("READY=1") is True
        assert sock.recv(100) == b"READY=1"


@pytest.mark.parametrize("name", ["", "relative", "vsock:2:1234", "/nowhere/at/all"])
def test_nobody_to_tell(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    assert notify("READY=1") is False
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert notify("READY=1") is False


def test_the_command_tells_when_it_is_ready_and_when_it_stops(folder: Path) -> None:
    (folder / "hello.py").write_text(APP)
    arguments = ["serve", "hello:app", "--bind", f"unix:{folder}/app.sock"]
    with manager(f"{folder}/notify") as sock:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "fulgate", *arguments],
            cwd=folder,
            env=environment(NOTIFY_SOCKET=f"{folder}/notify"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert sock.recv(100) == b"READY=1"
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(f"{folder}/app.sock")  # it is true
            process.send_signal(signal.SIGTERM)
            assert sock.recv(100) == b"STOPPING=1"
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            process.wait()
