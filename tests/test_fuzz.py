"""Coverage-guided fuzzing of each parser, for a few seconds; and what it found before, always."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from fulgate.protocols.fastcgi_records import decode_params
from tests.fuzz import targets
from tests.fuzz.run import ROOT, corpus_file, kept, seeds
from tests.fuzz.targets import TARGETS

SECONDS = int(os.environ.get("FUZZ_SECONDS", "2"))


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_kept(name: str) -> None:
    """On every version of Python, and on the compiled build."""
    inputs = kept(name)
    assert inputs, f"make fuzz FUZZ={name} FUZZ_OPTIONS=--keep"
    for data in [b"", *inputs, *seeds(name)]:
        TARGETS[name](data)


def test_what_is_kept_is_of_a_target_and_short() -> None:
    for path in corpus_file("").parent.glob("*.txt"):
        assert path.stem in TARGETS
        assert path.stat().st_size < 50_000, path


def test_a_wrong_parser_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(data: bytes) -> object:
        found, count = decode_params(data)
        return found, min(count, 1)

    monkeypatch.setattr(targets, "decode_params", wrong)
    with pytest.raises(AssertionError):
        test_what_is_kept("params")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not to be had here"
)
@pytest.mark.timeout(120 + 2 * SECONDS)
@pytest.mark.parametrize("name", TARGETS)
def test_fuzzing(name: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run", name, "--seconds", str(SECONDS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert run.returncode == 0, run.stderr[-5000:]
    assert "stat::number_of_executed_units" in run.stderr
