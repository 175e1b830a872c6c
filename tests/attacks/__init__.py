"""The attack corpus: what README.md here says of its files, read and replayed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
TOKEN = re.compile(r"((?:[0-9a-f]{2}|\{n(?:\+\d+)?\})+)(?:\*(\d+))?")
COUNTER = re.compile(r"\{n(?:\+(\d+))?\}")
OUTCOMES = {"answer", "close", "serve", "wait"}


def expand(text: str, n: int = 1) -> bytes:
    """Give the bytes of a step's "hex", with the counter at `n`."""
    data = b""
    for token in text.split():
        match = TOKEN.fullmatch(token)
        if match is None:
            raise ValueError(f"not hexadecimal: {token[:40]!r}")
        digits = COUNTER.sub(lambda m: f"{(n + int(m[1] or 0)) & 0xFFFF:04x}", match[1])
        data += bytes.fromhex(digits) * int(match[2] or 1)
    return data


def step_bytes(step: dict[str, Any]) -> Iterator[bytes]:
    repeat = step.get("repeat", 1)
    if "text" in step:
        whole = step["text"].encode("latin-1")
    elif "{n" in step["hex"]:
        for n in range(1, repeat + 1):
            yield expand(step["hex"], n)
        return
    else:
        whole = expand(step["hex"])
    for _ in range(repeat):
        yield whole


@dataclass(frozen=True)
class Attack:
    """One entry of the corpus."""

    name: str
    why: str
    expect: list[str]
    protocol: str
    probe: list[dict[str, Any]]
    send: list[dict[str, Any]] = field(default_factory=list)
    status: list[int] = field(default_factory=list)  # what an answer may have; any, when empty
    present: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    log: int | None = None
    chunk: int = 0
    read: bool = True
    end: str = "close"
    connections: int = 1
    hold: bool = True
    environ: dict[str, str] = field(default_factory=dict)  # of CGI

    def __str__(self) -> str:
        return f"{self.protocol}-{self.name}"

    def pieces(self) -> Iterator[bytes]:
        """Give the bytes as they are to be written."""
        for step in self.send:
            for data in step_bytes(step):
                size = self.chunk or len(data)
                yield from (data[at : at + size] for at in range(0, len(data), size))

    def probe_bytes(self) -> bytes:
        return b"".join(data for step in self.probe for data in step_bytes(step))


def load(protocol: str) -> list[Attack]:
    """Read one file of the corpus. Raises TypeError for an unknown field."""
    found = json.loads((FOLDER / f"{protocol}.json").read_text("utf-8"))
    probe = found["probe"]
    return [Attack(protocol=protocol, probe=probe, **attack) for attack in found["attacks"]]
