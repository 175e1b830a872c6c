"""What goes wrong around a master: its workers crash, the clock jumps, its sockets change."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.command import Served
from tests.model import STDIN
from tests.raw import Raw, head, stream
from tests.test_master import APP, Pool, children, until
from tests.test_zero_loss import wait_for_ready

DAY = 86400


def test_crashes_within_the_interval_have_all_workers_replaced(folder: Path) -> None:
    options = ("--emergency-restart-threshold", "2", "--emergency-restart-interval", "60")
    with Pool(folder, *options, workers=3) as pool:
        until(lambda: len(pool.workers) == 3)
        first, second, innocent = sorted(pool.workers)
        for _ in range(50):  # all of them are ready
            pool.answer()
        os.kill(first, signal.SIGKILL)
        until(lambda: len(pool.workers) == 3 and first not in pool.workers)
        for _ in range(20):
            pool.answer()
        assert innocent in pool.workers
        os.kill(second, signal.SIGKILL)
        until(
            lambda: len(pool.workers) == 3 and not {first, second, innocent} & pool.workers,
            lambda: pool.text,
        )
        pool.wait_for("2 workers died within 60 s")
        assert pool.version() == "1"
        after = pool.workers
        time.sleep(1.5)  # the master looks once a second: it does not start afresh for ever
        assert pool.workers == after


# "held" has the name of the command in which the application takes its time to load.
WAITS = """
import os, sys, time
from pathlib import Path

while (held := Path("held")).exists() and held.read_text() in sys.argv:
    time.sleep(0.02)

def app(environ, start_response):
    Path("begun").write_text(str(os.getpid()))
    while not Path("go").exists():
        time.sleep(0.02)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"finished"]
"""


def test_crashes_within_the_interval_end_the_master_where_that_is_wanted(folder: Path) -> None:
    (folder / "waits.py").write_text(WAITS)
    served = Served(
        "waits:app", "--bind", f"unix:{folder}/sock", "--workers", "3", "--log-level", "debug",
        "--emergency-restart-threshold", "2", "--emergency-action", "stop",
        cwd=folder,
    )  # fmt: skip
    try:
        with Raw(folder / "sock") as raw:
            raw.send(head("/"), stream(STDIN, 1, b""))
            until(lambda: (folder / "begun").exists() and (folder / "begun").read_text())
            busy = int((folder / "begun").read_text())
            for ready in (3, 4):
                wait_for_ready(served, ready)
                os.kill((children(served.process.pid) - {busy}).pop(), signal.SIGKILL)
            served.wait_for("2 workers died within 60 s, and so all ends")
            (folder / "go").touch()
            raw.expect()
            assert raw.answer().body == b"finished"
        assert served.process.wait(60) == 3
        assert not (folder / "sock").exists()
    finally:
        served.process.kill()
        served.process.wait(20)


def test_what_ends_while_the_program_is_executed_anew_passes_its_connections_on(
    folder: Path,
) -> None:
    (folder / "waits.py").write_text(WAITS)
    options = ("--bind", f"unix:{folder}/sock", "--workers", "2", "--log-level", "debug")
    with Served("waits:app", *options, cwd=folder) as served, Raw(folder / "sock") as raw:

        def replaced_by(number: int, count: int) -> None:
            wait_for_ready(served, count - 2)
            served.process.send_signal(number)
            wait_for_ready(served, count)

        raw.send(head("/"), stream(STDIN, 1, b""))
        until(lambda: (folder / "begun").exists() and (folder / "begun").read_text())
        worker = int((folder / "begun").read_text())
        replaced_by(signal.SIGHUP, 4)  # so the worker ends, once it has answered
        replaced_by(signal.SIGUSR2, 6)
        replaced_by(signal.SIGUSR2, 8)
        (folder / "go").touch()
        raw.expect()
        assert raw.answer().body == b"finished"
        assert raw.request().body == b"finished"
        assert int((folder / "begun").read_text()) != worker
        # Nobody else would reap it.
        until(lambda: not Path(f"/proc/{worker}").exists(), "the worker is a zombie")


@pytest.mark.parametrize("held", ["check", "serve"])
def test_others_serve_while_the_program_is_executed_anew(folder: Path, held: str) -> None:
    """Be it that it is checked, or that its workers load the application."""
    (folder / "waits.py").write_text(WAITS)
    options = ("--bind", f"unix:{folder}/sock", "--workers", "2", "--log-level", "debug")
    with Served("waits:app", *options, cwd=folder) as served, Raw(folder / "sock") as raw:
        wait_for_ready(served, 2)
        raw.send(head("/"), stream(STDIN, 1, b""))
        until(lambda: (folder / "begun").exists() and (folder / "begun").read_text())
        worker = (folder / "begun").read_text()
        served.process.send_signal(signal.SIGHUP)  # so the worker ends, once it has answered
        wait_for_ready(served, 4)
        (folder / "held").write_text(held)
        before = children(served.process.pid)
        served.process.send_signal(signal.SIGUSR2)
        # The check, or new workers.
        until(lambda: children(served.process.pid) - before, lambda: served.text)
        if held == "serve":
            served.wait_for("executing the program anew")
            until(lambda: len(children(served.process.pid)) >= 5, lambda: served.text)
        else:
            served.process.send_signal(signal.SIGUSR2)
            served.wait_for("the program is being checked already")
        (folder / "go").touch()
        raw.expect()
        assert raw.answer().body == b"finished"
        assert raw.request().body == b"finished"  # while nobody is ready yet
        assert (folder / "begun").read_text() != worker
        assert served.text.count(" is ready\n") == 4
        (folder / "held").write_text("")
        wait_for_ready(served, 6)
        assert raw.request().body == b"finished"


def test_a_reload_takes_new_sockets_and_leaves_old_ones(folder: Path) -> None:
    for name in ("one", "two", "three"):
        (folder / f"{name}.py").write_text(APP)

    def configure(*binds: str) -> None:
        listed = ", ".join(f'"unix:{folder}/{bind}"' for bind in binds)
        (folder / "fulgate.toml").write_text(f'app = "one:app"\nworkers = 2\nbind = [{listed}]\n')

    configure("a", "b")
    with Served(cwd=folder) as served:
        with Raw(folder / "b") as kept:
            assert kept.request().body.startswith(b"1 ")
            inode = (folder / "b").stat().st_ino
            worker = served.ask(endpoint=f"unix:{folder}/a").split()[1]
            configure("b", "c")
            served.process.send_signal(signal.SIGHUP)
            until((folder / "c").exists, lambda: served.text)
            until(lambda: served.ask(endpoint=f"unix:{folder}/c").split()[1] != worker)
            until(lambda: not (folder / "a").exists())
            assert (folder / "b").stat().st_ino == inode  # it was never away
            assert kept.request().body.startswith(b"1 ")  # and neither was a connection
            # One that cannot be had changes nothing.
            configure("b", "c", "nowhere/d")
            served.process.send_signal(signal.SIGHUP)
            served.wait_for("the reload has failed, and nothing has changed")
            for name in ("b", "c"):
                assert served.ask(endpoint=f"unix:{folder}/{name}").startswith(b"1 ")
    assert not any((folder / name).exists() for name in "abc")


@pytest.mark.requires_program("cc")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_clock_that_jumps_ends_nothing(folder: Path, workers: int) -> None:
    shim = folder / "clock.so"
    source = Path(__file__).parent / "fault" / "clock.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    note = folder / "clock"
    env = {"LD_PRELOAD": str(shim), "FULGATE_CLOCK_FAULT": str(note)}
    times = ["--keep-alive", "3600", "--request-timeout", "3600", "--arrival-timeout", "3600"]
    times += ["--max-age", "3600"] if workers else []
    app = APP.replace("time.sleep(60)", "time.sleep(4)", 1)
    options = ["--access-logfile", "log", *times]
    with Pool(folder, *options, workers=workers, app=app, env=env) as pool:
        pool.answer()
        before = pool.workers
        with Raw(folder / "sock") as kept, Raw(folder / "sock") as running:
            kept.request()
            running.expect()
            running.send(head("/sleep"), stream(STDIN, 1, b""))
            for jump in (10 * DAY, -10 * DAY, 400 * DAY):
                note.write_text(str(jump))
                end = time.monotonic() + 1.2  # the master looks once a second
                while time.monotonic() < end:
                    assert kept.request().body.startswith(b"1 ")
            assert running.answer().body.startswith(b"1 ")  # it was not given up
        assert pool.workers == before
        assert len(set(re.findall(r"\[\d+/\w+/(\d{4})", (folder / "log").read_text()))) >= 2
        assert "Traceback" not in pool.text
