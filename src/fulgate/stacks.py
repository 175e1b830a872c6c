"""Where a server says, asked by a signal, what its threads do and what it has imported.

For `fulgate doctor`. The answers go to two files in memory, which only the process's own user and
root can open, by /proc/PID/fd. The stacks are written by faulthandler, in C, so that they come
whatever the interpreter does; the modules by Python, as soon as the main thread gets to it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import io
import json
import os
import signal
import sys
import threading
import time

__all__ = [
    "MODULES",
    "SIGNAL",
    "STACKS",
    "ask",
    "name_threads",
    "register",
    "tell_of_crashes",
    "unregister",
]

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
    main = threading.current_thread() is threading.main_thread()
    if not _wanted() or not main or signal.getsignal(SIGNAL) is not signal.SIG_DFL:
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


def _wanted() -> bool:
    return os.environ.get("FULGATE_FAULTHANDLER", "1").lower() not in ("0", "no", "off", "false")


def tell_of_crashes() -> None:
    """Have the process write its stacks to standard error when it dies of a fault in C code.

    Not when FULGATE_FAULTHANDLER is 0, nor where standard error is closed.
    """
    if _wanted() and not faulthandler.is_enabled():
        with contextlib.suppress(OSError, ValueError):
            faulthandler.enable(file=2)


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


def ask(pid: int, patience: float = 0.5) -> str:
    """Give the stacks of another process, which may hold its interpreter; "" where it cannot tell.

    For whoever may open its files: the same user, and root.
    """
    if SIGNAL is None:
        return ""
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            if os.readlink(entry.path).startswith(f"/memfd:{STACKS} "):
                with open(entry.path, "r+b", buffering=0) as said:
                    said.truncate(0)
                    os.kill(pid, SIGNAL)
                    return _last_words(said, patience)
    return ""


def _last_words(said: io.FileIO, patience: float) -> str:
    text = b""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        time.sleep(0.05)
        said.seek(0)
        before, text = text, said.read()
        if text and text == before:
            break
    return text.decode(errors="replace").rstrip()


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
