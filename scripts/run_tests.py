"""Run the tests several at a time, and the few that failed once more, alone.

    python scripts/run_tests.py JOBS [pytest's arguments]

Each run starts thousands of real processes on few cores. A test that loses a race there, and not
by itself, is a defect of the test or, worse, of what it tests: it is named at the end, to be looked
for. But it seldom tells of the change at hand, so it does not fail the run, as in CPython's own
(`python -m test --rerun`). What fails alone, too, does; so do more than MOST at once, or a run that
broke off. With 0 for JOBS pytest runs as it is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

MOST = 3  # tests that may fail beside others
FAILED = 1  # pytest.ExitCode.TESTS_FAILED


def run(cache: Path, *arguments: str) -> int:
    command = [sys.executable, "-m", "pytest", "-o", f"cache_dir={cache}", *arguments]
    return subprocess.run(command, check=False).returncode


def failed(cache: Path) -> list[str]:
    """The names of the tests that failed in the last run, or had errors."""
    try:
        return sorted(json.loads((cache / "v/cache/lastfailed").read_text()))
    except FileNotFoundError:
        return []


def main(jobs: str, *arguments: str) -> int:
    cache = Path(".pytest_cache", sys.implementation.cache_tag or "python").absolute()
    if jobs == "0":
        return run(cache, *arguments)
    status = run(cache, "--cache-clear", "-n", jobs, "--dist", "worksteal", *arguments)
    names = failed(cache)
    if status != FAILED or not 0 < len(names) <= MOST:
        return status
    print(f"\nOnce more, alone: {len(names)} of the tests failed beside others.", flush=True)
    status = run(cache, "-n", "0", "--last-failed", "--last-failed-no-failures=none", *arguments)
    again = failed(cache)
    passed = [name for name in names if name not in again]
    if passed:
        print("\nfailed beside other tests, and passed alone; each is a defect to be looked for:")
        print(*(f"  {name}" for name in passed), sep="\n", flush=True)
    return status


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
