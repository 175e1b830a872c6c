"""What the operating system tells of processes, and of the machine that a benchmark ran on."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def _stat(pid: int) -> list[str]:
    """Give the fields of /proc/PID/stat (proc(5)) from the third on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def tree(root: int) -> list[int]:
    """Give a process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents.setdefault(int(_stat(int(entry))[1]), []).append(int(entry))
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended meanwhile
    found = [root]
    for pid in found:
        found += parents.get(pid, [])
    return found


def cpu_seconds(root: int) -> float:
    """Give the CPU time of a process tree, dead threads and waited-for children included."""
    total = 0
    for pid in tree(root):
        total += sum(int(ticks) for ticks in _stat(pid)[11:15])
    return total / TICKS


def rss_bytes(root: int) -> int:
    """Give the resident memory of a process tree; what processes share counts for each."""
    return sum(int(_stat(pid)[21]) * PAGE for pid in tree(root))


def busy_seconds() -> float:
    """Give the CPU time that all processes together have had since the machine started."""
    user, nice, system, idle, _iowait, irq, softirq, *_ = (
        int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    del idle
    return (user + nice + system + irq + softirq) / TICKS


@dataclass(frozen=True)
class Machine:
    cpu: str
    cores: int
    kernel: str

    def __str__(self) -> str:
        return f"{self.cpu}, {self.cores} cores, {self.kernel}"


def this_machine() -> Machine:
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0))
    release = platform.release().split("-")[0]
    return Machine(model, cores, f"{platform.system()} {release}")


def first_line(*command: str) -> str:
    """Give the first line that a command prints, such as a version."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return next(iter(done.stdout.strip().splitlines()), "")
