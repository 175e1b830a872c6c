"""Each statement has a server that breaks it and no other, and `fulgate conform` says just that."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conform import NUMBERS, PYTHON, Outcomes, conform
from tests.conform.broken import DEFECTS, FURTHER
from tests.servers.fulgate import ROOT

PATIENCE = 20.0  # seconds


@contextlib.contextmanager
def broken(defect: str, folder: Path) -> Iterator[str]:
    """Run the server of a defect; give its endpoint."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.conform.broken", f"--defect={defect}", f"--bind={folder}/s"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"serving\n"
            yield f"unix:{folder}/s"
        finally:
            process.kill()
            process.wait(PATIENCE)


def held(defect: str, folder: Path, *options: str) -> Outcomes:
    spawn = f"{PYTHON} -m tests.conform.broken --defect={defect}"
    with broken(defect, folder) as endpoint:
        return conform(endpoint, "--timeout", "3", "--spawn", spawn, *options, cwd=folder)


def test_there_is_one_for_each_statement() -> None:
    assert DEFECTS == NUMBERS
    assert {defect.rstrip("b") for defect in FURTHER} <= set(NUMBERS)


@pytest.mark.slow
def test_without_a_defect_all_pass(folder: Path) -> None:
    found = held("", folder, "--deadline", "30")
    assert found.having("pass").keys() == set(NUMBERS), found.seen
    assert found.status == 0


@pytest.mark.slow
@pytest.mark.parametrize("defect", [*DEFECTS, *FURTHER])
def test_a_defect_fails_its_statement_and_nothing_else(defect: str, folder: Path) -> None:
    found = held(defect, folder)
    number = defect.rstrip("b")
    assert list(found.having("fail")) == [number], found.having("fail")
    assert found.having("not applicable") == {}
    assert found.seen[number]
    assert found.status == 1
