"""bindAddress, in all the forms that flup takes."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

from fulgate.errors import BindError
from fulgate.listener import Listener, bind_unix

__all__ = ["BACKLOG", "Address", "listen", "listen_on_stdin"]

BACKLOG = 2048

Address = str | os.PathLike[str] | tuple[Any, ...] | list[Any]


def listen(address: Address, umask: int | None) -> Listener:
    """Listen on a path, on (host, port), or with more elements on an IPv6 address.

    `umask` is withheld from the permissions of a socket's file; None is the process's own. Raises
    BindError and OSError.
    """
    if isinstance(address, (str, os.PathLike)):
        path = os.fspath(address)
        try:
            return bind_unix(path, BACKLOG, mode=0o777 & ~(_umask() if umask is None else umask))
        except BindError as error:
            raise BindError(f"cannot listen on {path}: {error}") from error.__cause__
    address = tuple(address)
    if len(address) < 2:
        raise ValueError(f"bindAddress is a path, (host, port) or None, not {address!r}")
    six = len(address) > 2 or ":" in str(address[0])
    listener = Listener(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address[0], int(address[1]), *address[2:]))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def listen_on_stdin() -> Listener:
    """Take the listening socket that the web server left on descriptor 0 (FastCGI 1.0, 2.2).

    The descriptor stays what it is, for a server that is run again.
    """
    listener = Listener(fileno=os.dup(0))
    os.set_inheritable(listener.fileno(), False)
    listener.setblocking(False)
    return listener


def _umask() -> int:
    """Give the process's umask, without changing it where the system tells it."""
    with contextlib.suppress(OSError):
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
