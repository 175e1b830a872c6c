"""What a run of the benchmark found, as a Markdown page and as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loads import WORKLOADS, Figures
from machine import Machine
from peers import PEERS

WAYS = {
    "direct": "Direct: FastCGI over a Unix socket, the server on one core, the load on the other",
    "nginx": "Through nginx: one worker, wrk in front, nothing pinned",
}
DISTURBED = 0.05  # share of the machine that other processes had
# (way, workload, peer, other, at least): requests per second of peer / other
TARGETS = [
    ("direct", "hello", "fulgate", "flup", 3.0),
    ("nginx", "hello", "fulgate", "flup", 8.0),
]


@dataclass
class Run:
    """All measurements of one run: by way, workload and peer, one for each round."""

    machine: Machine
    versions: dict[str, str]
    connections: int
    seconds: float
    rounds: int
    failed: dict[str, str] = field(default_factory=dict)
    figures: dict[str, dict[str, dict[str, list[Figures]]]] = field(default_factory=dict)

    def add(self, way: str, workload: str, peer: str, figures: Figures) -> None:
        peers = self.figures.setdefault(way, {}).setdefault(workload, {})
        peers.setdefault(peer, []).append(figures)

    def rps(self, way: str, workload: str, peer: str) -> float | None:
        found = self.figures.get(way, {}).get(workload, {}).get(peer)
        return statistics.median(one.rps for one in found) if found else None

    def targets(self) -> list[tuple[str, float, float]]:
        """Give, for each target that was measured: its text, the ratio, and what it has to be."""
        found = []
        for way, workload, peer, other, least in TARGETS:
            mine, theirs = self.rps(way, workload, peer), self.rps(way, workload, other)
            if mine is not None and theirs:
                found.append((f"{peer} / {other}, {way}, {workload}", mine / theirs, least))
        return found


def _spread(values: Iterable[float], digits: int = 0) -> str:
    """Give the median and, behind it, the range."""
    known = list(values)
    low, middle, high = min(known), statistics.median(known), max(known)
    if len(known) == 1:
        return f"{middle:,.{digits}f}"
    return f"{middle:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"


COLUMNS = (
    "server", "requests/s", "CPU µs/request", "p50 µs", "p99 µs", "max ms", "RSS MB",
    "never served", "errors",
)  # fmt: skip


def _row(name: str, rounds: list[Figures]) -> list[str]:
    never = [one.never_served for one in rounds if one.never_served is not None]
    return [
        name,
        _spread(one.rps for one in rounds),
        _spread((one.cpu_us for one in rounds), 1),
        _spread(one.p50_us for one in rounds),
        _spread(one.p99_us for one in rounds),
        _spread((one.max_us / 1000 for one in rounds), 1),
        f"{statistics.median(one.rss_mb for one in rounds):.1f}",
        f"{statistics.median(never):.0f}" if never else "",
        str(sum(one.errors for one in rounds)),
    ]


def _table(peers: dict[str, list[Figures]]) -> Iterable[str]:
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|---" + "|--:" * (len(COLUMNS) - 1) + "|"
    for name, rounds in peers.items():
        yield "| " + " | ".join(_row(name, rounds)) + " |"


def _warnings(run: Run) -> Iterable[str]:
    for way, workloads in run.figures.items():
        for workload, peers in workloads.items():
            for peer, rounds in peers.items():
                share = statistics.median(one.load_share for one in rounds)
                if way == "direct" and share > 0.9:
                    yield (
                        f"{way}, {workload}, {peer}: the load generator had {share:.0%} of its "
                        "core, so it is the limit here."
                    )
                foreign = statistics.median(one.foreign_share for one in rounds)
                if foreign > DISTURBED:
                    yield (
                        f"{way}, {workload}, {peer}: other processes had {foreign:.0%} of the "
                        "machine meanwhile."
                    )


def markdown(run: Run) -> str:
    lines = ["# Benchmark", "", f"Machine: {run.machine}.", ""]
    lines += ["Versions: " + ", ".join(f"{n} {v}" for n, v in run.versions.items()) + ".", ""]
    lines += [
        f"{run.connections} connections, {run.rounds} rounds of {run.seconds:g} s, the servers in "
        "turn within each round; medians, and the range in brackets. CPU is the server's whole "
        "process tree, from the operating system. Never served: connections that got no answer "
        "during a whole round (max counts how long they waited).",
        "",
    ]
    for way, workloads in run.figures.items():
        lines += [f"## {WAYS[way]}", ""]
        for workload, peers in workloads.items():
            lines += [f"### {workload}: {WORKLOADS[workload].text}", "", *_table(peers), ""]
    measured = {p for ways in run.figures.values() for peers in ways.values() for p in peers}
    lines += ["## Settings", ""]
    lines += [f"- {name}: {peer.settings}" for name, peer in PEERS.items() if name in measured]
    lines += [f"- {name}: not measured, {reason}" for name, reason in run.failed.items()]
    lines += ["", "## Targets", ""]
    for text, ratio, least in run.targets():
        verdict = "reached" if ratio >= least else "MISSED"
        lines.append(f"- {text}: {ratio:.1f} times the requests/s, at least {least:g}: {verdict}")
    warnings = list(_warnings(run))
    if warnings:
        lines += ["", "## What to keep in mind", "", *[f"- {text}" for text in warnings]]
    return "\n".join(lines) + "\n"


def as_json(run: Run) -> str:
    data: dict[str, Any] = asdict(run)
    return json.dumps(data, indent=1) + "\n"


def write(run: Run, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latest.md").write_text(markdown(run))
    (folder / "latest.json").write_text(as_json(run))


BEGIN, END = "<!-- figures: bench/run.py --docs -->", "<!-- end of figures -->"


def put_into(run: Run, page: Path) -> None:
    """Replace what stands between the two marks in a page of documentation."""
    text = page.read_text()
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{page} has no marks for the figures")
    figures = markdown(run).partition("\n")[2].replace("\n##", "\n###")
    page.write_text(f"{before}{BEGIN}\n{figures}\n{END}{after}")
