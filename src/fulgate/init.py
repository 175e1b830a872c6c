"""The first process of a container, where the one that serves is not made for that part.

Whoever is process 1 of a PID name space inherits all orphans in it, and has to reap them; and it
gets the signals that stop the container (pid_namespaces(7)). An application has children of its
own, whose statuses are for it alone: so the first process is another one than the one that serves.
"""

from __future__ import annotations

import contextlib
import os
import signal

from fulgate.listener import systemd_sockets
from fulgate.title import entitle

__all__ = ["divide", "is_first"]

# What a program gets for its own mistakes is not blocked, and cannot be passed on.
OWN = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS, signal.SIGTRAP}


def is_first() -> bool:
    """Is this process 1?"""
    return os.getpid() == 1


def divide() -> int | None:
    """Fork. In the child it returns None, and the child goes on; in the first process it returns
    the child's exit status as a shell has it, when the child has ended.
    """
    systemd_sockets(take=False)  # while the process is the one that they were passed to
    blocked = signal.valid_signals() - OWN
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    child = os.fork()
    if not child:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return None
    entitle("init")
    while True:
        arrived = signal.sigwaitinfo(blocked)
        if arrived.si_signo == signal.SIGCHLD:
            status = _reap(child)
            if status is not None:
                return status
        # What the terminal sends (si_code above 0, SI_KERNEL) goes to the child as well, which is
        # of the same process group: a second Ctrl+C would cut its requests off.
        elif arrived.si_code <= 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, arrived.si_signo)


def _reap(child: int) -> int | None:
    """Reap all who have ended; give the child's status, if it is among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                found = code if code >= 0 else 128 - code
    return found
