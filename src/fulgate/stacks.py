"""Where a server says, asked by a signal, what its threads do and what it has imported.

For `fulgate doctor`. The answers go to two files in memory, which only the process's own user and
root can open, by /proc/PID/fd. The stacks are written by faulthandler, in C, so that they come
whatever the interpreter does; the modules by Python, as soon as the main thread gets to it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import json
import os
import signal
import sys
import threading

__all__ = ["MODULES", "SIGNAL", "STACKS", "name_threads", "register", "unregister"]

# SIGUSR1 and SIGUSR2 mean something to twistd, gunicorn and many an application; SIGRTMIN and those
# right behind it are used by C libraries. None where there are no such signals.
SIGNAL: int | None = signal.SIGRTMIN + 12 if hasattr(signal, "SIGRTMIN") else None
STACKS = "fulgate-stacks"
MODULES = "fulgate-modules"

_files: list[int] = []


def register() -> bool:
    """Answer the signal from now on; say whether that is so.

    Not where another part of the program has the signal, outside of the main thread, on systems
    other than Linux, and when FULGATE_FAULTHANDLER is 0.
    """
    if SIGNAL is None or _files or not hasattr(os, "memfd_create"):
        return bool(_files)
    wanted = os.environ.get("FULGATE_FAULTHANDLER", "1").lower() not in ("0", "no", "off", "false")
    main = threading.current_thread() is threading.main_thread()
    if not wanted or not main or signal.getsignal(SIGNAL) is not signal.SIG_DFL:
        return False
    try:
        for name in (STACKS, MODULES):
            _files.append(os.memfd_create(name))
            fcntl.fcntl(_files[-1], fcntl.F_SETFL, os.O_APPEND)
    except OSError:
        _close()
        return False
    signal.signal(SIGNAL, _write_modules)
    faulthandler.register(SIGNAL, file=_files[0], all_threads=True, chain=True)
    return True


def unregister() -> None:
    """Put the signal back as it was."""
    if _files and SIGNAL is not None:
        faulthandler.unregister(SIGNAL)
        signal.signal(SIGNAL, signal.SIG_DFL)
        _close()


def _close() -> None:
    while _files:
        os.close(_files.pop())


def _write_modules(number: int, frame: object) -> None:
    found = {
        name: file
        for name, module in list(sys.modules.items())
        if isinstance(file := getattr(module, "__file__", None), str)
    }
    threads = [(t.native_id, t.ident, t.name) for t in threading.enumerate()]
    text = json.dumps({"modules": found, "threads": threads, "python": sys.version}) + "\n"
    with contextlib.suppress(OSError):
        os.write(_files[1], text.encode())


def name_threads() -> None:
    """Let the kernel know the names of our threads, for ps, top and the doctor.

    Python does so itself from 3.14 on.
    """
    if sys.version_info >= (3, 14):
        return
    for thread in threading.enumerate():
        if thread.name.startswith("fulgate-") and thread.native_id is not None:
            with contextlib.suppress(OSError):
                with open(f"/proc/self/task/{thread.native_id}/comm", "w") as comm:
                    comm.write(thread.name[:15])
