"""`fulgate conform`, as a process of its own, and what it is held against."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from fulgate.conform.run import STATEMENTS
from tests.command import environment
from tests.servers.fulgate import ROOT

__all__ = ["NUMBERS", "PYTHON", "Outcomes", "conform"]

NUMBERS = tuple(STATEMENTS)
PYTHON = f"'{sys.executable}' -W error"
"""For --spawn; what it runs inherits the environment of `conform`."""

BOUND = 200.0  # seconds for a whole run


class Outcomes:
    """What a run found: for each number its outcome, and what was seen."""

    def __init__(self, status: int, found: dict[str, Any]) -> None:
        self.status = status
        self.of = {one["number"]: one["outcome"] for one in found["statements"]}
        self.seen = {one["number"]: one["seen"] for one in found["statements"]}

    def having(self, outcome: str) -> dict[str, str]:
        """Give those of an outcome, with what was seen."""
        return {n: self.seen[n] for n, found in self.of.items() if found == outcome}


def conform(endpoint: str, *options: str, cwd: Path) -> Outcomes:
    """Run the command to its end."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "fulgate", "conform", endpoint, "--json", *options],
        cwd=cwd,
        env=environment(PYTHONPATH=f"{ROOT}:{ROOT / 'src'}"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BOUND,
    )
    assert done.returncode in (0, 1), done.stderr
    assert done.stderr == ""
    return Outcomes(done.returncode, json.loads(done.stdout))
