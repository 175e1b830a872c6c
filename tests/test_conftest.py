"""Tests that run at the same time do not meet, and what could not run is named at the end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.alone import alone_with, free_port
from tests.processes import output, python
from tests.servers.fulgate import ROOT

TESTS = """\
import pytest

@pytest.mark.requires_program("no-such-program")
@pytest.mark.parametrize("n", range(3))
def test_that_cannot_run(n):
    raise AssertionError

@pytest.mark.parametrize("n", range(3))
def test_that_can(n):
    pass
"""


@pytest.mark.parametrize("jobs", ["0", "2"])
@pytest.mark.parametrize(("ci", "status", "counted"), [("true", 1, "errors"), ("", 0, "skipped")])
def test_what_is_not_there_is_named_at_the_end(
    folder: Path, jobs: str, ci: str, status: int, counted: str
) -> None:
    (folder / "test_it.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-n", jobs, "-c", "/dev/null"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CI": ci},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "not there, so these tests did not run" in done.stdout
    assert done.stdout.splitlines().count("no-such-program: 3 tests") == 1
    assert "3 passed" in done.stdout
    assert f"3 {counted}" in done.stdout
    assert "AssertionError" not in done.stdout


def test_no_two_tests_are_given_the_same_port() -> None:
    code = """
        import sys
        from tests.alone import free_port

        print(*[free_port() for _ in range(100)], flush=True)
        sys.stdin.readline()
        """
    others = [python(code, stdin=subprocess.PIPE, env={"PYTHONPATH": str(ROOT)}) for _ in range(2)]
    given = [free_port() for _ in range(100)]
    for other in others:
        assert other.stdout is not None
        given += map(int, other.stdout.readline().split())
    for other in others:
        output(other)
    assert len(set(given)) == 300


def test_a_port_that_is_in_use_is_not_given() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as server:
        port: int = server.getsockname()[1]
        with pytest.raises(OSError, match="no port of"):
            free_port(range(port, port + 1))
    assert free_port(range(port, port + 1)) == port


def test_one_test_at_a_time_has_a_certain_port() -> None:
    code = """
        from tests.alone import alone_with

        print("waits", flush=True)
        with alone_with(7):
            print("has it")
        """
    with alone_with(7):
        other = python(code, env={"PYTHONPATH": str(ROOT)})
        assert other.stdout is not None
        assert other.stdout.readline() == "waits\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.2)
    assert output(other) == "has it"
