"""What ps, top and htop show a process as, where setproctitle is installed."""

from __future__ import annotations

import contextlib

__all__ = ["entitle"]


def entitle(text: str) -> None:
    """Have this process shown as "fulgate: TEXT". Without setproctitle nothing happens."""
    with contextlib.suppress(ImportError):
        from setproctitle import setproctitle

        setproctitle(f"fulgate: {text}")
