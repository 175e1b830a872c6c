"""What systemd is told of the service's state: sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket

__all__ = ["notify"]


def notify(state: str) -> bool:
    """Tell the service manager a state, such as "READY=1" or "STOPPING=1".

    Returns whether there is one to tell: NOTIFY_SOCKET names it. Never raises, since a service
    that cannot report still serves.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # the abstract name space, unix(7)
    with contextlib.suppress(OSError):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), address)
            return True
    return False
