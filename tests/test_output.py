"""What workers write to standard output and error, caught by their master."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fulgate.errors import FulgateError
from fulgate.processes.output import LONGEST, Output
from tests.command import environment
from tests.test_master import APP, Pool, get, until

NOISY = APP.replace(
    '    if path == "/sleep":',
    """\
    if path == "/say":
        print("to stdout")
        print("to stderr: \\x1b[31m\\u20ac\\r\\n[forged] a line", file=__import__("sys").stderr)
        os.write(1, b"\\xff and no end")
    if path == "/much":
        for number in range(20000):
            print(f"line {number} " + "x" * 80)
    if path == "/long":
        os.write(2, b"y" * 300000 + b"\\n")
    if path == "/crash":
        __import__("ctypes").string_at(0)
    if path == "/child":
        __import__("subprocess").Popen(["sh", "-c", "while test ! -e go; do sleep 0.1; done;"
                                        " echo from a child"])
    if path == "/sleep":""",
    1,
)


def noisy(folder: Path, *options: str, workers: int = 1) -> Pool:
    return Pool(folder, "--catch-workers-output", *options, workers=workers, app=NOISY)


def test_lines_are_told_with_their_worker(folder: Path) -> None:
    with noisy(folder, "--access-logfile=-") as pool:
        worker = pool.answer("/say")[1]
        said = f"app: worker {worker} said into "
        pool.wait_for(f"\\[INFO\\] .*{said}stdout: to stdout\n")
        pool.wait_for(f"\\[WARNING\\] .*{said}stderr: to stderr: \\\\x1b\\[31m\u20ac\n")
        pool.wait_for(f"{said}stderr: \\[forged\\] a line\n")
        # Fulgate's own lines do not take that way.
        pool.wait_for(r'(?m)^- - - .*"GET /say HTTP/1\.1" 200')
        assert "no end" not in pool.text
    assert f"{said}stdout: \\xff and no end\n" in pool.text


def test_they_can_be_left_as_they_are(folder: Path) -> None:
    with noisy(folder, "--no-decorate-workers-output") as pool:
        pool.answer("/say")
        pool.wait_for("\nto stdout\n")
        pool.wait_for("\n\\[forged\\] a line\n")
        assert "\x1b" not in pool.text


def test_much_output_is_whole_and_a_long_line_is_cut(folder: Path) -> None:
    with noisy(folder) as pool:
        pool.answer("/much")
        pool.answer("/long")
        until(lambda: pool.text.count("yyyy") and pool.text.count("said into stdout: line"))
        pool.wait_for("line 19999 ")
        assert re.findall(r"said into stdout: line (\d+) ", pool.text) == [
            str(number) for number in range(20000)
        ]
        until(lambda: pool.text.count("y") >= 300000)
        assert max(map(len, pool.text.splitlines())) < 2 * LONGEST
        assert len(pool.workers) == 1


def test_the_last_words_of_a_worker_come_out(folder: Path) -> None:
    with noisy(folder) as pool:
        worker = pool.worker()
        with pytest.raises(FulgateError):
            get(folder, "/crash")
        said = f"worker {worker} said into stderr: "
        pool.wait_for(f"{said}Fatal Python error: Segmentation fault")
        pool.wait_for(f"{said}.*counted.py.* in app")
        # It serves before it says that it is ready, and may end in between.
        pool.wait_for(rf"worker {worker} (has )?ended by signal 11")
        assert pool.worker() != worker


def test_a_worker_that_is_left_as_it_is_tells_of_its_crash_too(folder: Path) -> None:
    with Pool(folder, workers=1, app=NOISY) as pool:
        with pytest.raises(FulgateError):
            get(folder, "/crash")
        pool.wait_for("(?s)Fatal Python error: Segmentation fault.*?in app")


def test_what_a_worker_has_started_may_write_on(folder: Path) -> None:
    with noisy(folder) as pool:
        worker = pool.answer("/child")[1]
        os.kill(int(worker), signal.SIGKILL)
        pool.wait_for(f"worker {worker} has ended")
        (folder / "go").touch()
        pool.wait_for(f"worker {worker} said into stdout: from a child")


def test_nothing_is_lost_when_the_program_is_executed_anew(folder: Path) -> None:
    with noisy(folder, workers=2) as pool:
        pool.answer("/child")
        before = pool.workers
        pool.signal(signal.SIGUSR2)
        until(lambda: not (before & pool.workers) and len(pool.workers) == 2, lambda: pool.text)
        (folder / "go").touch()
        pool.wait_for("said into stdout: from a child")
        pool.answer("/say")
        pool.wait_for("said into stdout: to stdout")


def test_a_worker_whose_master_is_gone_can_still_write(folder: Path) -> None:
    slow = "open('begun', 'w').close(); time.sleep(1.5); print('still here', flush=True)"
    app = NOISY.replace("time.sleep(60)", slow, 1)
    pool = Pool(folder, "--catch-workers-output", workers=1, app=app)
    try:
        pool.answer()
        asked = subprocess.Popen(
            [sys.executable, "-m", "fulgate", "get", f"unix:{folder}/sock", "/sleep"],
            env=environment(), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        until((folder / "begun").exists)
        pool.process.kill()
        pool.process.wait()
        assert asked.communicate(timeout=30)[0].startswith("1 ")
        assert asked.returncode == 0
        until(lambda: "still here" in pool.out.read_text())
    finally:
        pool.process.kill()


def test_lines_are_split_and_bounded() -> None:
    lines: list[str] = []
    output = Output(lambda pid, stream, text: lines.append(f"{pid} {stream} {text}"))
    output.hired(7)
    reader, writer = os.pipe()
    output.close()
    output = Output(lambda pid, stream, text: lines.append(text), [(1, reader)])
    for piece in (b"a", b"b\r\n\nc", b"d" * LONGEST, b"\n", b"end"):
        os.write(writer, piece)
        assert output.read(reader) == len(piece)
    assert output.read(reader) == 0
    os.close(writer)
    output.drain()
    assert output.open == []
    assert lines == ["ab", "", "c" + "d" * (LONGEST - 1), "d", "end"]
