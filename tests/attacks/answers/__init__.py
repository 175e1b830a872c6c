"""The attack corpus against clients: what ../README.md says of its answers, read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.attacks import step_bytes

FOLDER = Path(__file__).parent
PROTOCOLS = ("fastcgi", "scgi", "ajp")
OUTCOMES = {"answer", "malformed", "cut", "refused", "timeout"}
ENDS = {"close", "hold", "reset"}


@dataclass(frozen=True)
class Answer:
    """One entry of the corpus."""

    name: str
    why: str
    send: list[dict[str, Any]]
    expect: list[str]
    begun: bool = False
    status: int = 0
    body: str | None = None
    size: int | None = None
    absent: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    late: list[dict[str, Any]] = field(default_factory=list)
    chunk: int = 0
    end: str = "close"
    http: int = 0

    def __str__(self) -> str:
        return self.name

    @property
    def gateway(self) -> int:
        """The status that an HTTP client gets of a proxy, where there is no answer."""
        return self.http or (504 if "timeout" in self.expect else 502)


@dataclass(frozen=True)
class Corpus:
    """One file."""

    protocol: str
    about: str
    probe: list[dict[str, Any]]
    attacks: list[Answer]


def load(protocol: str) -> Corpus:
    """Read one file of the corpus. Raises TypeError for an unknown field."""
    found = json.loads((FOLDER / f"{protocol}.json").read_text("utf-8"))
    found["attacks"] = [Answer(**attack) for attack in found["attacks"]]
    return Corpus(**found)


def pieces(steps: Iterable[dict[str, Any]], id: int, chunk: int = 0) -> Iterator[bytes]:
    """Give the bytes of `steps`, as they are to be written, for the request `id`."""
    for step in steps:
        if "hex" in step:
            step = {**step, "hex": step["hex"].replace("{id}", f"{id:04x}")}
        for data in step_bytes(step):
            size = chunk or len(data)
            yield from (data[at : at + size] for at in range(0, len(data), size))
