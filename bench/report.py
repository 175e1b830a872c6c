"""A run of the benchmark as a Markdown page and as JSON."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import chart
import targets
from found import Run
from loads import Figures
from peers import PEERS
from workloads import WORKLOADS

WAYS = {
    "direct": "Direct: FastCGI over a Unix socket, the server on one core, the load on the other",
    "nginx": "Through nginx: one worker, wrk in front, nothing pinned",
}
DISTURBED = 0.05  # share of the machine that other processes had
BUSY = 0.9  # share of a core above which the load generator is the limit


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
    errors = sum(one.errors for one in rounds)
    first = next((one.first_error for one in rounds if one.first_error), "")
    return [
        name,
        _spread(one.rps for one in rounds),
        _spread((one.cpu_us for one in rounds), 1),
        _spread(one.p50_us for one in rounds),
        _spread(one.p99_us for one in rounds),
        _spread((one.max_us / 1000 for one in rounds), 1),
        f"{statistics.median(one.rss_mb for one in rounds):.1f}",
        f"{statistics.median(never):.0f}" if never else "",
        f"{errors:,}" + (f" ({first})" if first else ""),
    ]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _table(run: Run, way: str, workload: str) -> Iterator[str]:
    """Give the lines of one table, the quickest server first, the broken ones last."""
    peers = run.figures.get(way, {}).get(workload, {})
    broken = run.broken.get(way, {}).get(workload, {})
    yield _line(COLUMNS)
    yield "|---" + "|--:" * (len(COLUMNS) - 1) + "|"
    for name in sorted(peers, key=lambda one: -(run.value(way, workload, one, "rps") or 0)):
        yield _line(_row(name, peers[name]))
    for name, reasons in broken.items():
        yield _line([name, f"failed in {len(reasons)} of {run.rounds} rounds: {reasons[0]}"])


def idle_kb(run: Run, peer: str) -> str:
    found = targets.per_idle_connection(peer)(run)
    kept = run.value("direct", "idle", peer, "idle_open") or 0
    some = f" ({kept:,.0f} kept)" if kept < WORKLOADS["idle"].idle else ""
    return f"{found.value:.1f}{some}" if found else ""


def _startups(run: Run) -> Iterator[str]:
    yield _line(("server", "start ms", "RSS after start MB", "KB/idle connection", "system calls"))
    yield "|---" + "|--:" * 4 + "|"
    for name, there in sorted(run.startups.items(), key=lambda item: item[1].start_ms):
        calls = f"{there.syscalls:.1f}" if there.syscalls is not None else ""
        idle = idle_kb(run, name)
        yield _line([name, f"{there.start_ms:.0f}", f"{there.rss_mb:.1f}", idle, calls])


def _warnings(run: Run) -> Iterator[str]:
    for way, workload in run.cells():
        peers = run.figures.get(way, {}).get(workload, {})
        busy, disturbed = [], []
        for peer, rounds in peers.items():
            share = statistics.median(one.load_share for one in rounds)
            if way == "direct" and share > BUSY:
                busy.append(f"{peer} ({share:.0%})")
            foreign = statistics.median(one.foreign_share for one in rounds)
            if foreign > DISTURBED:
                disturbed.append(f"{peer} ({foreign:.0%})")
        if busy:
            yield (
                f"{way}, {workload}: the load generator needed its whole core, so that it is the "
                f"limit and not the server: {', '.join(busy)}."
            )
        if disturbed:
            yield f"{way}, {workload}: other processes had the machine too: {', '.join(disturbed)}."


def _rounds(run: Run) -> str:
    return "1 round" if run.rounds == 1 else f"{run.rounds} rounds (one less of most workloads)"


def _head(run: Run) -> Iterator[str]:
    yield from ("# Benchmark", "", f"Machine: {run.machine}.", "")
    yield "Versions: " + ", ".join(f"{n} {v}" for n, v in run.versions.items()) + "."
    yield from (
        "",
        f"{_rounds(run)} of {run.seconds:g} s or more, the servers in turn within each; "
        "medians, and the range in brackets. CPU is the server's whole process tree, from the "
        "operating system. Never served: connections that got no answer during a whole round (max "
        "counts how long they waited).",
        "",
    )


def _settings(run: Run) -> Iterator[str]:
    yield from ("## Settings", "")
    measured = {peer for ways in run.figures.values() for peers in ways.values() for peer in peers}
    measured |= set(run.startups)
    for name, peer in PEERS.items():
        if name in run.failed:
            yield f"- {name}: NOT MEASURED: {run.failed[name]}"
        elif name in measured:
            yield f"- {name}: {peer.settings}"


def markdown(run: Run) -> str:
    lines = list(_head(run))
    lines += ["## Targets", "", *targets.table(run)]
    before = ""
    for way, workload in run.cells():
        if way != before:
            lines += ["", f"## {WAYS[way]}"]
            before = way
        lines += ["", f"### {workload}: {WORKLOADS[workload].text}", ""]
        lines += _table(run, way, workload)
    if run.startups:
        lines += ["", "## Start, memory and system calls", ""]
        lines += [
            "Start is from exec to the first answer, less the application's own import. System "
            "calls are those of a hello request on one kept-alive connection (uWSGI: a connection "
            "for each), counted by `strace -c`.",
            "",
            *_startups(run),
        ]
    lines += ["", *_settings(run)]
    warnings = list(_warnings(run))
    if warnings:
        lines += ["", "## What to keep in mind", "", *[f"- {text}" for text in warnings]]
    return "\n".join(lines) + "\n"


def _cell(run: Run, way: str, workload: str, peer: str) -> str:
    """Give requests a second and CPU time in few characters, for the summary."""
    rps = run.value(way, workload, peer, "rps")
    if rps is None:
        return "failed" if peer in run.broken.get(way, {}).get(workload, {}) else ""
    cpu = run.value(way, workload, peer, "cpu_us") or 0.0
    return f"{rps:,.0f} · {cpu:,.{0 if cpu >= 100 else 1}f}"


def _summary(run: Run, way: str, names: list[str]) -> Iterator[str]:
    """Give one table for several workloads: a row for each server, a column for each workload."""
    kinds = (run.figures.get(way, {}), run.broken.get(way, {}))
    peers = {peer for kind in kinds for name in names for peer in kind.get(name, {})}
    yield _line(["server", *names])
    yield "|---" + "|--:" * len(names) + "|"
    for peer in sorted(peers, key=lambda one: -(run.value(way, names[0], one, "rps") or 0)):
        yield _line([peer, *(_cell(run, way, name, peer) for name in names)])


def digest(run: Run, links: Path) -> str:
    """Give the page in short, with the chart; `links` is the way to the folder of results."""
    lines = list(_head(run))[2:]
    lines += [f"![The chart of this run]({(links / 'latest.svg').as_posix()})", ""]
    lines += [
        "Requests a second and, behind the point, the server's CPU time a request in µs. ",
        "",
    ]
    lines[-2] += f"[All figures]({(links / 'latest.md').as_posix()}) have latencies and memory too."
    for way, text in WAYS.items():
        for group in ("all", "threads"):
            names = [n for w, n in run.cells() if w == way and WORKLOADS[n].peers == group]
            if names:
                lines += [f"## {text}", ""] if group == "all" else []
                lines += [*_summary(run, way, names), ""]
    lines += ["## Targets", "", *targets.table(run)]
    if run.startups:
        lines += ["", "## Start, memory and system calls", "", *_startups(run)]
    return "\n".join([*lines, "", *_settings(run)]) + "\n"


def as_json(run: Run) -> str:
    data: dict[str, Any] = asdict(run)
    return json.dumps(data, indent=1) + "\n"


def write(run: Run, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latest.md").write_text(markdown(run))
    (folder / "latest.json").write_text(as_json(run))
    if drawn := chart.draw(run):
        (folder / "latest.svg").write_text(drawn)


BEGIN, END = "<!-- figures: bench/run.py --docs -->", "<!-- end of figures -->"


def put_into(run: Run, page: Path, results: Path) -> None:
    """Replace what stands between the two marks in a page of documentation."""
    text = page.read_text()
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{page} has no marks for the figures")
    links = Path(os.path.relpath(results.resolve(), page.parent.resolve()))
    figures = digest(run, links).replace("\n##", "\n###")
    page.write_text(f"{before}{BEGIN}\n\n{figures}\n{END}{after}")
