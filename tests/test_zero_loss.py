"""While workers come and go under load, through nginx, no request is lost or answered twice."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest

from tests.command import Served
from tests.sequence import APP, Sequence
from tests.servers import Running
from tests.servers.nginx import Nginx

pytestmark = [pytest.mark.requires_server("nginx"), pytest.mark.slow]


def served(folder: Path, *options: str) -> Served:
    (folder / "counted.py").write_text(APP)
    bind = f"unix:{folder}/sock?mode=666"
    common = ("counted:app", "--bind", bind, "--threads", "3", "--log-level", "debug")
    return Served(*common, *options, cwd=folder)


def nginx(running: Running, folder: Path) -> Nginx:
    return running(Nginx, f"unix:{folder}/sock", keepalive=True)


def wait_for_ready(server: Served, count: int) -> None:
    end = time.monotonic() + 100
    while len(re.findall(r"is ready$", server.text, re.MULTILINE)) < count:
        assert time.monotonic() < end, server.text
        time.sleep(0.02)


def test_ten_reloads(folder: Path, running: Running) -> None:
    with served(folder, "--workers", "2") as server:
        wait_for_ready(server, 2)
        with Sequence(nginx(running, folder).port) as load:
            load.some_more()
            for version in range(2, 12):
                source = (folder / "counted.py").read_text()
                text = re.sub(r"VERSION = \d+", f"VERSION = {version}", source)
                (folder / "counted.py").write_text(text)
                server.process.send_signal(signal.SIGHUP)
                wait_for_ready(server, 2 * version)
                load.some_more(60)
        load.check(folder / "notes")
        assert len(load.pids) >= 12
        assert {"1", "11"} <= load.versions


def test_twenty_recyclings(folder: Path, running: Running) -> None:
    options = ("--workers", "2", "--max-requests", "100", "--max-requests-jitter", "20")
    with served(folder, *options) as server:
        wait_for_ready(server, 2)
        with Sequence(nginx(running, folder).port) as load:
            wait_for_ready(server, 22)
            load.some_more(10)
        load.check(folder / "notes")


def test_the_program_is_executed_anew(folder: Path, running: Running) -> None:
    with served(folder, "--workers", "2") as server:
        wait_for_ready(server, 2)
        with Sequence(nginx(running, folder).port) as load:
            load.some_more()
            old = set(load.pids)
            server.process.send_signal(signal.SIGUSR2)
            wait_for_ready(server, 4)
            load.some_more(500)
        load.check(folder / "notes")
        assert old
        assert load.pids > old
