"""`fulgate doctor`: what a running server has imported, what its threads do, and who waits for it.

It looks from outside and changes nothing. What it cannot see it says, and why.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from fulgate.doctor.mistakes import Found, Mistake
from fulgate.doctor.process import Process, Thread, look
from fulgate.doctor.sockets import Sockets, sockets_of
from fulgate.errors import ConfigError

__all__ = ["command", "findings"]

# Where the threads of each server are at work, and what to do about them.
POOL_OF_FLUP = "/flup/server/threadpool.py"
SERVER_OF_FLUP = "/flup/server/threadedserver.py"
OURS = "/fulgate/drivers/threads.py"
INLINE = "/fulgate/drivers/inline.py"
STACK = 12  # calls of a stack that are shown


def command(pid: int, py_spy: bool = True) -> int:
    """Print what can be seen of a process; give the exit status: 1 when something is wrong.

    Raises ConfigError where there is no such process, and on systems without Linux's /proc.
    """
    if not sys.platform.startswith("linux"):
        raise ConfigError("the doctor needs Linux's /proc")
    unseen: list[str] = []
    sockets: Sockets | None = None
    try:
        process = look(pid, py_spy)
        try:
            sockets = sockets_of(pid)
            unseen = sockets.unseen
        except PermissionError as error:
            unseen = [f"sockets: {error.strerror}; be root, or its user"]
    except (FileNotFoundError, ProcessLookupError):
        raise ConfigError(f"there is no process {pid}") from None
    found = findings(process, sockets)
    for part in (
        _about(process),
        _sockets(sockets),
        _threads(process),
        _modules(process),
        _list("Not seen", [*process.unseen, *unseen]),
        _list("Findings", [one.told for one in found] or ["nothing that is known to be wrong"]),
    ):
        for line in part:
            click.echo(line)
    return 1 if found else 0


def findings(process: Process, sockets: Sockets | None) -> list[Found]:
    """Give what is wrong, as far as it shows."""
    found = [Found(Mistake.LOST_THREADS, text) for text in _lost(process, sockets)]
    for one in sockets.listening if sockets else ():
        if one.crowd:
            found.append(Found(Mistake.WAITING, one.crowd))
    return found


def _lost(process: Process, sockets: Sockets | None) -> list[str]:
    """Find servers whose threads were started before a fork, which copies the calling thread only.

    Only a process that was forked, and has executed no program since, can be such a one.
    """
    if not process.forked or (sockets is not None and not sockets.listening):
        return []
    files = list(process.modules.values())
    known = bool(process.stacks_by)
    found: list[str] = []
    threads = process.threads
    flup = _any(files, POOL_OF_FLUP) and _any(files, SERVER_OF_FLUP)
    if flup and not _at_work(threads, POOL_OF_FLUP):
        found.append(_text("flup", known, process, sockets))
    named = any(thread.name.startswith("fulgate-") for thread in threads)
    at_work = named or _at_work(threads, OURS) or _at_work(threads, INLINE)
    # "threads.", since compiled it is a library of that name.
    if any(OURS[:-2] in file for file in files) and not at_work:
        found.append(_text("Fulgate", known, process, sockets))
    return found


def _text(server: str, known: bool, process: Process, sockets: Sockets | None) -> str:
    text = "threads lost in a fork" if known else "perhaps threads lost in a fork"
    text += f": {server} has listening sockets here" if sockets else f": {server} is here"
    text += ", but none of its threads"
    if not known:
        text += " is known to be (the stacks would tell)"
    if sockets is not None and sockets.unread:
        text += f"; {sockets.unread} connections were accepted, and what they ask was not read"
    started = "its pool is started by the constructor" if server == "flup" else "it was started"
    where = "the daemon forked" if "twistd" in process.command else "the process forked"
    return (
        f"{text}. The likely cause: {started}, before {where}. Start the server after the fork;"
        " under twistd use fulgate.twisted.FastCGIService, which does so"
    )


def _any(files: Iterable[str], end: str) -> bool:
    # Not the drop-in, whose modules have flup's names.
    return any(file.endswith(end) and not file.endswith("/fulgate" + end) for file in files)


def _at_work(threads: Iterable[Thread], end: str) -> bool:
    return _any((file for thread in threads for _, file, _ in thread.stack or ()), end)


# The report


def _about(process: Process) -> list[str]:
    forked = "forked, and no program executed since" if process.forked else "executed as a program"
    return [
        f"Process {process.pid}, of user {process.user}: {process.command}",
        f"  Python: {process.python or 'unknown'}",
        f"  {forked}",
    ]


def _sockets(sockets: Sockets | None) -> list[str]:
    if sockets is None:
        return ["Sockets: unknown"]
    lines = ["Sockets"]
    for one in sockets.listening:
        lines.append(f"  listens on {one.where}; {one.queue}")
    unread = f"; of {sockets.unread} something was not read" if sockets.unread else ""
    lines.append(f"  other sockets: {sockets.connections}{unread}")
    return lines


def _threads(process: Process) -> list[str]:
    by = f", stacks by {process.stacks_by}" if process.stacks_by else ""
    lines = [f"Threads: {sum(1 for t in process.threads if t.number)}{by}"]
    for thread in process.threads:
        state = f"{thread.state}, in {thread.waits_in}" if thread.waits_in else thread.state
        number = f"{thread.number} " if thread.number else ""
        lines.append(f"  {number}{thread.name}" + (f" ({state})" if state else ""))
        stack = thread.stack or []
        lines += [f"      {name}  {file}:{line}" for name, file, line in stack[:STACK]]
        if len(stack) > STACK:
            lines.append(f"      and {len(stack) - STACK} more")
    return lines


def _modules(process: Process) -> list[str]:
    """List the modules by the folders that they come from, without those of Python itself."""
    if not process.modules:
        return ["Modules: unknown"]
    top: dict[str, tuple[str, int]] = {}
    own = 0
    for file in process.modules.values():
        folder, name = _package(file)
        if not folder:
            own += 1
            continue
        key = os.path.join(folder, name)
        top[key] = (folder, top.get(key, ("", 0))[1] + 1)
    lines = [f"Modules: {len(process.modules)}, {process.modules_by}"]
    lines.append(f"  {own} of Python's own library")
    for key, (_, count) in sorted(top.items()):
        more = f" ({count} modules)" if count > 1 else ""
        lines.append(f"  {key}{more}")
    return lines


def _package(file: str) -> tuple[str, str]:
    """Give the folder that a module is imported from, and the package or file in it.

    The folder is "" for Python's own library.
    """
    path = Path(file)
    for parent in path.parents:
        if parent.name in ("site-packages", "dist-packages"):
            return str(parent), path.relative_to(parent).parts[0]
        if parent.name.startswith("python3") and parent.parent.name.startswith("lib"):
            return "", ""
    folder, name = path.parent, path.name
    while (folder / "__init__.py").exists():
        folder, name = folder.parent, folder.name
    return str(folder), name


def _list(title: str, lines: list[str]) -> list[str]:
    return [title, *(f"  {line}" for line in lines)] if lines else []
