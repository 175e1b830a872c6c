"""What systemd is told of the service: its state, and that it is well (sd_notify(3))."""

from __future__ import annotations

import contextlib
import math
import os
import socket

__all__ = ["Watchdog", "notify", "remember"]


_known: dict[str, str] = {}  # what the environment said, before it was cleared


def remember() -> None:
    """Keep what the environment says of the service manager, which is not for an application."""
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        if name in os.environ:
            _known[name] = os.environ[name]


def _said(name: str) -> str:
    return os.environ.get(name) or _known.get(name, "")


def notify(state: str) -> bool:
    """Tell the service manager a state, such as "READY=1" or "STOPPING=1".

    Returns whether there is one to tell: NOTIFY_SOCKET names it. Never raises, since a service
    that cannot report still serves.
    """
    address = _said("NOTIFY_SOCKET")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # the abstract name space, unix(7)
    with contextlib.suppress(OSError):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), address)
            return True
    return False


class Watchdog:
    """Tells the service manager now and then that the process is well: sd_watchdog_enabled(3).

    `interval`, in seconds, is infinite where nobody wants to know. systemd kills and restarts a
    service that has been silent for three of them; so `beat` is for whoever sees that work goes on.
    """

    def __init__(self) -> None:
        usec, pid = _said("WATCHDOG_USEC"), _said("WATCHDOG_PID")
        ours = not pid or pid == str(os.getpid())
        wanted = ours and usec.isascii() and usec.isdigit() and int(usec) > 0
        self.interval = int(usec) / 3e6 if wanted else math.inf
        self.due = 0.0 if wanted else math.inf

    def beat(self, now: float) -> None:
        """Tell it, when it is time to; `now` is of the monotonic clock."""
        if now >= self.due:
            self.due = now + self.interval
            notify("WATCHDOG=1")
