"""What precedes that a master executes its program anew: a check, in a process of its own.

Imported when it is needed: what it needs itself would make each start slower.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import tempfile
from collections.abc import Callable, Sequence

__all__ = ["Execution"]

log = logging.getLogger("fulgate")


class Execution:
    """Runs `check`, and calls `execute` once that has ended with status 0.

    The master goes on meanwhile, and looks now and then. Raises OSError where no process is to be
    had.
    """

    def __init__(self, check: Sequence[str], execute: Callable[[], None]) -> None:
        self._execute = execute
        with contextlib.ExitStack() as stack:
            # Nobody reads while it runs, so what it says must not wait for that.
            self._said = stack.enter_context(tempfile.TemporaryFile())
            self._process = subprocess.Popen(
                check, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._said
            )
            stack.pop_all()
        self.pid = self._process.pid

    def look(self) -> bool:
        """Go on, if the check is over; False once nothing is to be done any more."""
        if self._process.poll() is None:
            return True
        with self._said:
            self._said.seek(0)
            said = self._said.read().decode(errors="replace")
        if self._process.returncode:
            log.error("not executed anew, since that would fail: %s", said.strip())
        else:
            self._execute()
        return False

    def cancel(self) -> None:
        """End the check."""
        self._process.kill()
        self._process.wait()
        self._said.close()

    def close(self) -> None:
        """Close what a process that is forked meanwhile has no use for."""
        self._said.close()
