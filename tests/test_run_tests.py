"""scripts/run_tests.py: what fails beside other tests is run alone, and named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.fulgate import ROOT

pytestmark = pytest.mark.slow

TESTS = """\
import os
import pytest

BESIDE = "PYTEST_XDIST_WORKER" in os.environ

def test_that_passes():
    pass

@pytest.mark.parametrize("n", range({racing}))
def test_that_fails_beside_others(n):
    assert not BESIDE

@pytest.mark.parametrize("n", range({broken}))
def test_that_fails(n):
    assert False
"""


def run(folder: Path, racing: int, broken: int, jobs: str = "2") -> tuple[int, str]:
    (folder / "test_it.py").write_text(TESTS.format(racing=racing, broken=broken))
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/run_tests.py"), jobs, "-c", "/dev/null", "."],
        cwd=folder,
        env={name: os.environ[name] for name in os.environ if not name.startswith("PYTEST_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout


def test_all_pass(folder: Path) -> None:
    status, output = run(folder, 0, 0)
    assert status == 0
    assert "Once more" not in output


def test_what_passes_alone_is_named(folder: Path) -> None:
    status, output = run(folder, 2, 0)
    assert status == 0
    _, _, named = output.partition("failed beside other tests, and passed alone")
    assert [line.split("::")[-1] for line in named.splitlines()[1:]] == [
        "test_that_fails_beside_others[0]",
        "test_that_fails_beside_others[1]",
    ]


@pytest.mark.parametrize(
    ("racing", "broken", "again"),
    [(0, 1, True), (1, 1, True), (4, 0, False), (3, 1, False)],
    ids=["alone, too", "one of two alone, too", "too many", "too many, and one alone"],
)
def test_what_fails_the_run(folder: Path, racing: int, broken: int, again: bool) -> None:
    status, output = run(folder, racing, broken)
    assert status == 1
    assert ("Once more, alone" in output) == again
    named = output.partition("and passed alone")[2]
    assert "test_that_fails[" not in named
    assert ("test_that_fails_beside_others[0]" in named) == (again and racing > 0)


def test_a_run_that_breaks_off_fails(folder: Path) -> None:
    (folder / "test_other.py").write_text("import no_such_module\n")
    status, output = run(folder, 0, 0)
    assert status not in (0, 5)
    assert "no_such_module" in output


def test_one_process_is_pytest_as_it_is(folder: Path) -> None:
    status, output = run(folder, 1, 1, "0")
    assert status == 1
    assert "1 failed, 2 passed" in output
    assert "Once more" not in output
