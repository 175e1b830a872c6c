"""Fuzzes targets for a while each: `python -m tests.fuzz.run TARGET... --seconds 60`.

It begins with what is kept in corpus/TARGET.txt, an input in hexadecimal a line, and with the
attack corpus. What it finds is kept by --keep, minimised: the inputs that reach
what no shorter ones do. An input that fails is printed, and left in .run/fuzz/.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from tests.attacks import load

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
Target = Callable[[bytes], None]

LONGEST = 1024  # bytes of an input
KEPT = 600  # bytes of an input that is kept
SLOWEST = 20  # seconds for one input
MEMORY = 1024  # MiB

# The attacks that a target begins with, and what stands before each: how it is cut.
SEEDS = {"fastcgi": "fastcgi", "fastcgi-limits": "fastcgi", "dump": "fastcgi", "scgi": "scgi"}
SEEDS |= {"ajp": "ajp"}


def corpus_file(target: str) -> Path:
    return FOLDER / "corpus" / f"{target}.txt"


def kept(target: str) -> list[bytes]:
    """Read what is kept of a target's inputs."""
    path = corpus_file(target)
    lines = path.read_text("ascii").splitlines() if path.exists() else []
    return [bytes.fromhex(line) for line in lines]


def keep(target: str, inputs: Iterable[bytes]) -> None:
    lines = sorted({data.hex() for data in inputs}, key=lambda line: (len(line), line))
    corpus_file(target).write_text("".join([line + "\n" for line in lines]), "ascii")


def seeds(target: str) -> list[bytes]:
    """Give the attacks that are short enough."""
    found = []
    for attack in load(SEEDS[target]) if target in SEEDS else ():
        data = b"\0\7"
        for piece in attack.pieces():
            data += piece
            if len(data) > LONGEST:
                break
        else:
            found.append(data)
    return found


def reached(target: Target, data: bytes) -> set[object]:
    """Give the steps from line to line that an input makes Fulgate's modules take.

    Each is there with how often it was taken: once, twice or three times, or more often.
    """
    steps: Counter[tuple[str, int, int]] = Counter()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        name = frame.f_code.co_filename
        if "/fulgate/" not in name:
            return None
        last = frame.f_lineno

        def line(frame: FrameType, event: str, _: object) -> Any:
            nonlocal last
            if event == "line":
                steps[name, last, frame.f_lineno] += 1
                last = frame.f_lineno
            return line

        return line

    sys.settrace(trace)
    try:
        target(data)
    finally:
        sys.settrace(None)
    return {(step, min(count.bit_length(), 3)) for step, count in steps.items()}


def fewest(target: str, inputs: list[bytes]) -> Iterator[bytes]:
    """Give those that reach what no shorter ones do."""
    from tests.fuzz.targets import TARGETS

    seen: set[object] = set()
    for data in sorted(set(inputs), key=lambda data: (len(data), data)):
        if len(data) <= KEPT and (new := reached(TARGETS[target], data) - seen):
            seen |= new
            yield data


def fuzz(target: str, options: list[str]) -> int:
    """Run libFuzzer in a process of its own, in which alone atheris is."""
    command = [sys.executable, "-m", "tests.fuzz.guided", target]
    command += [f"-max_len={LONGEST}", f"-timeout={SLOWEST}", f"-rss_limit_mb={MEMORY}", *options]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz.run", description=__doc__)
    parser.add_argument("targets", nargs="*", help="as named in targets.py; all of them without")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--keep", action="store_true", help="write what was found to corpus/")
    arguments = parser.parse_args()
    targets = arguments.targets or all_targets()
    return max([run(target, arguments.seconds, arguments.keep) for target in targets])


def all_targets() -> list[str]:
    from tests.fuzz.targets import TARGETS  # a second in which nothing is fuzzed

    return list(TARGETS)


def run(target: str, seconds: int, keeps: bool = False) -> int:
    """Fuzz a target, beginning with what is kept; give 0 unless something failed."""
    failures = ROOT / ".run" / "fuzz"
    failures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fulgate-fuzz-") as temporary:
        found = Path(temporary)
        for number, data in enumerate([*kept(target), *seeds(target)]):
            (found / f"seed-{number}").write_bytes(data)
        options = [f"-max_total_time={seconds}", "-print_final_stats=1"]
        options += [f"-artifact_prefix={failures}/{target}-", str(found)]
        status = fuzz(target, options)
        if keeps and not status:
            keep(target, fewest(target, [path.read_bytes() for path in found.iterdir()]))
    return status


if __name__ == "__main__":
    sys.exit(main())
