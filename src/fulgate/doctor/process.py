"""What can be seen of a Python process from outside: /proc, py-spy, and what it tells by itself."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fulgate import stacks

__all__ = ["Process", "Thread", "look"]

PF_FORKNOEXEC = 0x40  # forked, and no other program executed since
PATIENCE = 2.0  # seconds for the process to answer the signal
CHUNK = 1 << 24
CACHED = re.compile(rb"(/[\x21-\x7e ]{1,400})/__pycache__/([\w-]+)\.[a-z]+-\d+(?:\.opt-\d)?\.pyc\0")
HEAD = re.compile(r"(?:Current t|T)hread 0x([0-9a-f]+)")
FRAME = re.compile(r'  File "(.*)", line (\d+) in (.*)')


@dataclass
class Thread:
    """`stack` has the innermost call first, as (function, file, line); None when it is unknown."""

    number: int  # the kernel's
    name: str
    state: str
    waits_in: str = ""  # in the kernel
    stack: list[tuple[str, str, int]] | None = None


@dataclass
class Process:
    pid: int
    command: str
    user: int
    forked: bool  # and has executed no other program since
    python: str
    threads: list[Thread]
    modules: dict[str, str] = field(default_factory=dict)  # name, or file once more: file
    modules_by: str = ""  # how they were found
    stacks_by: str = ""
    unseen: list[str] = field(default_factory=list)


def look(pid: int, py_spy: bool = True) -> Process:
    """Look at a process. Raises FileNotFoundError when it is not there."""
    base = Path(f"/proc/{pid}")
    command = (base / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
    stat = (base / "stat").read_text().rpartition(")")[2].split()
    process = Process(
        pid,
        command.decode(errors="backslashreplace"),
        base.stat().st_uid,
        bool(int(stat[6]) & PF_FORKNOEXEC),
        _python(base),
        [_thread(task) for task in sorted((base / "task").iterdir(), key=lambda p: int(p.name))],
    )
    told = _ask(process)
    if py_spy:
        _use_py_spy(process)
    if not process.stacks_by:
        if told:
            process.stacks_by = "faulthandler, in the process itself"
        else:
            process.unseen.append(
                "stacks: "
                + ("py-spy did not give them, and " if py_spy and _py_spy() else "no py-spy, and ")
                + "the process does not answer by itself (fulgate serve and fulgate.serve do,"
                " unless FULGATE_FAULTHANDLER is 0)"
            )
    if not process.modules:
        _search_memory(process)
    return process


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="backslashreplace").strip()
    except OSError:
        return ""


def _python(base: Path) -> str:
    try:
        return os.readlink(base / "exe")
    except OSError:
        return ""


def _thread(task: Path) -> Thread:
    match = re.search(r"^State:\t(\S) \((.*)\)$", _read(task / "status"), re.MULTILINE)
    waits_in = _read(task / "wchan")
    return Thread(
        int(task.name),
        _read(task / "comm"),
        match[2] if match else "unknown",
        waits_in if waits_in != "0" else "",
    )


# what the process tells by itself


def _ask(process: Process) -> bool:
    """Have the process write its stacks and modules. Never sends a signal that would end it."""
    files = _files(process.pid)
    status = _read(Path(f"/proc/{process.pid}/status"))
    caught = re.search(r"^SigCgt:\t([0-9a-f]+)$", status, re.MULTILINE)
    if stacks.SIGNAL is None or len(files) < 2 or caught is None:
        return False
    if not int(caught[1], 16) >> (stacks.SIGNAL - 1) & 1:
        return False
    numbers: dict[int, int] = {}
    try:
        with (
            open(files[stacks.STACKS], "r+b", buffering=0) as said,
            open(files[stacks.MODULES], "r+b", buffering=0) as modules,
        ):
            said.truncate(0)
            modules.truncate(0)
            os.kill(process.pid, stacks.SIGNAL)
            text = _wait(modules)
            if text:
                told = json.loads(text)
                process.modules = told["modules"]
                process.modules_by = "told by the process itself"
                process.python += f" ({told['python'].split()[0]})"
                numbers = _name(process, told["threads"])
            else:
                process.unseen.append(
                    "what the process tells of its modules: its main thread did not get to it in"
                    f" {PATIENCE:g} s"
                )
            said.seek(0)
            dump = said.read().decode(errors="backslashreplace")
    except OSError as error:
        process.unseen.append(f"what the process tells by itself: {error.strerror}")
        return False
    _parse(process, dump, numbers)
    return bool(dump)


def _files(pid: int) -> dict[str, str]:
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(entry.path)
                for name in (stacks.STACKS, stacks.MODULES):
                    if target.startswith(f"/memfd:{name} "):
                        found[name] = entry.path
    return found


def _wait(file: Any) -> str:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        file.seek(0)
        data: bytes = file.read()
        if data.endswith(b"\n"):
            return data.decode()
        time.sleep(0.01)
    return ""


def _name(process: Process, told: list[tuple[int, int, str]]) -> dict[int, int]:
    """Name the threads; give the kernel's number of each, by Python's."""
    names = {native: name for native, _, name in told}
    for thread in process.threads:
        thread.name = names.get(thread.number, thread.name)
    return {ident: native for native, ident, _ in told}


def _parse(process: Process, dump: str, numbers: dict[int, int]) -> None:
    """Read faulthandler's text, which names threads by Python's numbers."""
    threads = {thread.number: thread for thread in process.threads}
    thread: Thread | None = None
    for line in dump.splitlines():
        frame = FRAME.fullmatch(line)
        head = HEAD.match(line)
        if head is not None:
            ident = int(head[1], 16)
            thread = threads.get(numbers.get(ident, 0))
            if thread is None:
                thread = Thread(0, f"{ident:#x} of Python", "")
                process.threads.append(thread)
            thread.stack = []
        elif frame is not None and thread is not None and thread.stack is not None:
            thread.stack.append((frame[3], frame[1], int(frame[2])))


# py-spy


def _py_spy() -> str:
    beside = os.path.join(os.path.dirname(sys.executable), "py-spy")
    return shutil.which("py-spy") or (beside if os.access(beside, os.X_OK) else "")


def _use_py_spy(process: Process) -> None:
    program = _py_spy()
    if not program:
        return
    try:
        done = subprocess.run(
            [program, "dump", "--json", "--pid", str(process.pid)],
            capture_output=True,
            text=True,
            timeout=30,
        )
        threads = json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        process.unseen.append(f"stacks by py-spy: {error}")
        return
    if threads is None:
        lines = done.stderr.strip().splitlines() or ["it failed"]
        process.unseen.append(f"stacks by py-spy: {lines[-1]}")
        return
    process.stacks_by = "py-spy"
    by_number = {thread.number: thread for thread in process.threads}
    for found in threads:
        thread = by_number.get(found.get("os_thread_id") or 0)
        if thread is None:
            thread = Thread(0, "", "")
            process.threads.append(thread)
        thread.name = found.get("thread_name") or thread.name
        thread.stack = [(f["name"], f["filename"], f["line"]) for f in found["frames"]]


# modules of a process that does not tell


def _search_memory(process: Process) -> None:
    """Find the names of compiled files, which each module that was imported from a file has."""
    try:
        maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        with open(f"/proc/{process.pid}/mem", "rb", buffering=0) as memory:
            for line in maps:
                fields = line.split()
                anonymous = len(fields) < 6 or fields[5] == "[heap]"
                if anonymous and fields[1].startswith("rw"):
                    start, _, end = fields[0].partition("-")
                    _search(process, memory, int(start, 16), int(end, 16))
    except OSError as error:
        process.unseen.append(
            f"modules: its memory cannot be read ({error.strerror}); be root, or its user where"
            " kernel.yama.ptrace_scope is 0"
        )
        return
    process.modules_by = "found in its memory, so some of them may have been dropped since"
    for line in maps:
        path = line.partition("/")[2]
        if path.endswith(".so") and ("python" in path or "-packages" in path):
            process.modules["/" + path] = "/" + path


def _search(process: Process, memory: Any, start: int, end: int) -> None:
    overlap = 1024
    while start < end:
        try:
            memory.seek(start)
            data = memory.read(min(CHUNK, end - start))
        except (OSError, ValueError, OverflowError):
            return
        if not data:
            return
        for match in CACHED.finditer(data):
            source = f"{os.fsdecode(match[1])}/{os.fsdecode(match[2])}.py"
            process.modules[source] = source
        if start + len(data) >= end:
            return
        start += max(len(data) - overlap, 1)
