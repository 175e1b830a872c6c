"""`fulgate record`, run by tests."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.command import environment

__all__ = ["recording"]


@contextmanager
def recording(folder: Path, endpoint: str, number: int = signal.SIGTERM) -> Iterator[str]:
    """Record what is said to an endpoint, into "file"; give the endpoint to say it to."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "fulgate", "record", f"unix:{folder}/tap", endpoint,
         "file"],
        cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert said == f"fulgate records {endpoint} on unix:{folder}/tap\n"
        try:
            yield f"unix:{folder}/tap"
        finally:
            process.send_signal(number)
            rest = process.stderr.read()
        assert process.wait(20) == 0, rest
        assert re.search(r"fulgate recorded \d connections into file\n", rest)
