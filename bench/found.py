"""What a run of the benchmark found."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from loads import Figures
from machine import Machine
from startup import Startup
from workloads import WORKLOADS

Cell = tuple[str, str, str]  # way, workload, peer


def shortened(reason: str) -> str:
    """Give a reason on one line, and without the names of this machine's folders."""
    text = re.sub(r"(/[\w.+-]+)+/(?=[\w.+-])", "", " ".join(reason.split()))
    return text[:200] or "no reason given"


@dataclass
class Run:
    """All measurements of one run: by way, workload and peer, one for each round.

    `failed` has the peers that could not be installed or started, `broken` the measurements that
    gave nothing because the server ended, or would not answer; each with the reason.
    """

    machine: Machine
    versions: dict[str, str]
    seconds: float
    rounds: int
    failed: dict[str, str] = field(default_factory=dict)
    startups: dict[str, Startup] = field(default_factory=dict)
    figures: dict[str, dict[str, dict[str, list[Figures]]]] = field(default_factory=dict)
    broken: dict[str, dict[str, dict[str, list[str]]]] = field(default_factory=dict)

    def add(self, cell: Cell, figures: Figures) -> None:
        way, workload, peer = cell
        peers = self.figures.setdefault(way, {}).setdefault(workload, {})
        peers.setdefault(peer, []).append(figures)

    def add_broken(self, cell: Cell, reason: str) -> None:
        way, workload, peer = cell
        peers = self.broken.setdefault(way, {}).setdefault(workload, {})
        peers.setdefault(peer, []).append(shortened(reason))

    def add_failed(self, peer: str, reason: str) -> None:
        self.failed[peer] = shortened(reason)

    def cells(self) -> Iterator[tuple[str, str]]:
        """Give each way and workload that was measured, or tried, in the order of the table."""
        for way in dict.fromkeys([*self.figures, *self.broken]):
            tried = {*self.figures.get(way, {}), *self.broken.get(way, {})}
            yield from ((way, workload) for workload in WORKLOADS if workload in tried)

    def rounds_of(self, way: str, workload: str, peer: str) -> list[Figures]:
        return self.figures.get(way, {}).get(workload, {}).get(peer, [])

    def value(self, way: str, workload: str, peer: str, name: str) -> float | None:
        """Give the median of a figure over the rounds; None when it was not measured."""
        found = [getattr(one, name) for one in self.rounds_of(way, workload, peer)]
        known = [one for one in found if one is not None]
        return statistics.median(known) if known else None

    def worst(self, way: str, workload: str, peer: str, name: str) -> float | None:
        found = [getattr(one, name) for one in self.rounds_of(way, workload, peer)]
        return max((one for one in found if one is not None), default=None)

    def best(
        self, way: str, workload: str, peers: Iterable[str], name: str, lowest: bool = False
    ) -> tuple[float, str] | None:
        """Give the highest (or lowest) median among some peers, and whose it is."""
        found = [(self.value(way, workload, peer, name), peer) for peer in peers]
        known = [(value, peer) for value, peer in found if value]
        if not known:
            return None
        return min(known) if lowest else max(known)
