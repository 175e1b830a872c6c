"""What a machine has once: tests that run at the same time, in any process, share it here."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import os
import socket
from collections.abc import Iterator

# Below the ports that the kernel gives to who connects, or binds to port 0: one of those may be
# gone before the server that a test starts has bound it.
PORTS = range(20000, 32000)
_turns = itertools.count(os.getpid() * 61)


@functools.cache
def _locks() -> int:
    """Open the file of which byte N is locked by the process that has port N.

    Once, and for good: a process loses all its locks with the first descriptor that it closes.
    """
    path = f"/tmp/fulgate-tests-{os.getuid()}.lock"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port(ports: range = PORTS) -> int:
    """Give a TCP port of the loopback interface that is free, and that no other test is given."""
    for _ in ports:
        port = ports[next(_turns) % len(ports)]
        try:
            fcntl.lockf(_locks(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except BlockingIOError:
            continue
        if _is_free(port):
            return port
    raise OSError(f"no port of {ports} is free")


@contextlib.contextmanager
def alone_with(port: int) -> Iterator[None]:
    """Wait until no other test uses a certain port, and keep it from them."""
    fcntl.lockf(_locks(), fcntl.LOCK_EX, 1, port)
    try:
        yield
    finally:
        fcntl.lockf(_locks(), fcntl.LOCK_UN, 1, port)


def unused_user() -> int:
    """Give the id of a user who has no process, and gets none from a test in another process."""
    return 20_000 + os.getpid() % 40_000
