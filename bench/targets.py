"""What Fulgate has to reach, each as a figure or a ratio within one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from found import Run
from workloads import WORKLOADS

Value = Callable[[Run], "Found | None"]


class Found(NamedTuple):
    value: float
    note: str = ""  # what it was compared with, where the run decides that


@dataclass(frozen=True)
class Target:
    """`value` must be at most `limit`, or at least with `least`; `aim` is what comes next."""

    text: str
    value: Value
    limit: float
    least: bool = False
    aim: float | None = None
    unit: str = ""

    def reached(self, value: float, limit: float | None = None) -> bool:
        bound = self.limit if limit is None else limit
        return value >= bound if self.least else value <= bound


C = "fulgate-compiled"
# Every server of Python applications over FastCGI, uwsgi or HTTP but bjoern, which is all of C.
PYTHON_PEERS = (
    "flup", "uwsgi-fastcgi", "uwsgi-fastcgi-64", "uwsgi", "gunicorn", "waitress", "uvicorn",
    "uvicorn-uvloop", "granian", "granian-asgi", "fcgisgi", "fcgisgi-asgi", "gevent-fastcgi",
)  # fmt: skip
UWSGI = ("uwsgi", "uwsgi-fastcgi")


def ratio(way: str, workload: str, peer: str, other: str, name: str) -> Value:
    """A figure of one peer, over that of another."""

    def value(run: Run) -> Found | None:
        mine, theirs = (run.value(way, workload, one, name) for one in (peer, other))
        return Found(mine / theirs) if mine is not None and theirs else None

    return value


def difference(way: str, workload: str, peer: str, other: str, name: str) -> Value:
    """A figure of one peer, less that of another."""

    def value(run: Run) -> Found | None:
        mine, theirs = (run.value(way, workload, one, name) for one in (peer, other))
        return Found(mine - theirs) if mine is not None and theirs is not None else None

    return value


def ratio_to_best(
    way: str, workload: str, peer: str, others: tuple[str, ...], name: str, lowest: bool = False
) -> Value:
    """A figure of one peer, over the best of many."""

    def value(run: Run) -> Found | None:
        mine = run.value(way, workload, peer, name)
        best = run.best(way, workload, others, name, lowest)
        return Found(mine / best[0], f"best: {best[1]}") if mine is not None and best else None

    return value


def ratio_of_workloads(workload: str, other: str, peer: str) -> Value:
    """Requests per second on one workload over those on another, direct."""

    def value(run: Run) -> Found | None:
        mine, theirs = (run.value("direct", one, peer, "rps") for one in (workload, other))
        return Found(mine / theirs) if mine is not None and theirs else None

    return value


def figure(workload: str, peer: str, name: str, scale: float = 1.0) -> Value:
    """A figure by itself, direct: the median, and of `max_us` and `never_served` the worst."""

    def value(run: Run) -> Found | None:
        take = run.worst if name in ("max_us", "never_served") else run.value
        mine = take("direct", workload, peer, name)
        return Found(mine * scale) if mine is not None else None

    return value


def per_idle_connection(peer: str) -> Value:
    """Bytes of RSS that each idle connection costs, in KB."""

    def value(run: Run) -> Found | None:
        with_them, without = (run.value("direct", one, peer, "rss_mb") for one in ("idle", "hello"))
        kept = run.value("direct", "idle", peer, "idle_open")
        if with_them is None or without is None or not kept:
            return None
        return Found((with_them - without) * 1e3 / kept, f"{kept:,.0f} kept")

    return value


def per_stream(peer: str) -> Value:
    """Bytes of RSS that each open stream costs, in KB."""

    def value(run: Run) -> Found | None:
        with_them, without = (
            run.value("direct", one, peer, "rss_mb") for one in ("streams", "hello")
        )
        if with_them is None or without is None:
            return None
        return Found((with_them - without) * 1e3 / sum(WORKLOADS["streams"].aside.values()))

    return value


def at_start(peer: str, name: str) -> Value:
    def value(run: Run) -> Found | None:
        there = run.startups.get(peer)
        mine = getattr(there, name) if there else None
        return Found(mine) if mine is not None else None

    return value


def _speed() -> list[Target]:
    direct = "direct, hello: CPU a request, {} / {}"
    found = [
        Target(direct.format(peer, other), ratio("direct", "hello", peer, other, "cpu_us"), *limits)
        for peer, other, limits in (
            (C, "libfcgi", (1.75, False, 1.25)),
            (C, "uwsgi-fastcgi", (0.5,)),
            (C, "flup", (1 / 6,)),
            ("fulgate", "libfcgi", (4.0,)),
        )
    ]
    for work in ("hello", "hello-256"):
        where = f"nginx, {work}"
        found += [
            Target(f"{where}: requests/s, {C} / floor",
                   ratio("nginx", work, C, "floor", "rps"), 0.8, True, 0.9),
            Target(f"{where}: requests/s, {C} / the best Python peer",
                   ratio_to_best("nginx", work, C, PYTHON_PEERS, "rps"), 1.0, True),
            Target(f"{where}: p99, {C} / the lowest of the Python peers",
                   ratio_to_best("nginx", work, C, PYTHON_PEERS, "p99_us", True), 1.0),
            Target(f"{where}: requests/s, {C}-64 / {C}-1",
                   ratio("nginx", work, f"{C}-64", f"{C}-1", "rps"), 0.8, True),
        ]  # fmt: skip
    for work in ("64k", "upload", "close"):
        where = f"nginx, {work}"
        found += [
            Target(f"{where}: CPU a request, {C} / uWSGI",
                   ratio_to_best("nginx", work, C, UWSGI, "cpu_us", True), 1.0),
            Target(f"{where}: requests/s, {C} / the best Python peer",
                   ratio_to_best("nginx", work, C, PYTHON_PEERS, "rps"), 1.0, True),
        ]  # fmt: skip
    return found


def _scoreboard() -> list[Target]:
    what = difference("direct", "hello", f"{C}-status", C, "cpu_us")
    return [Target("direct, hello: CPU a request for the scoreboard", what, 1.0, unit="µs")]


def _connections(peer: str) -> list[Target]:
    found = [
        Target(f"direct, hello-256: connections never served, {peer}",
               figure("hello-256", peer, "never_served"), 0.0),
        Target(f"RSS of an idle connection, {peer}", per_idle_connection(peer), 3.0, unit="KB"),
        Target(f"system calls a request, {peer}", at_start(peer, "syscalls"), 4.0),
        Target(f"RSS after start, {peer}", at_start(peer, "rss_mb"), 25.0, unit="MB"),
        Target(f"start, {peer}", at_start(peer, "start_ms"), 150.0, unit="ms"),
    ]  # fmt: skip
    found += [
        Target(f"direct: requests/s, {work} / hello, {peer}",
               ratio_of_workloads(work, "hello", peer), 0.9, True)
        for work in ("idle", "churn", "silent")
    ]  # fmt: skip
    return found


def _threads(one: str, many: str) -> list[Target]:
    wait = WORKLOADS["wait"].connections / 0.005
    mix = WORKLOADS["mix"].connections / (0.1 * 0.05)
    return [
        Target(f"direct, hello: CPU a request, {many} / {one}",
               ratio("direct", "hello", many, one, "cpu_us"), 1.2),
        Target(f"nginx, hello, nothing pinned: CPU a request, {many} / {one}",
               ratio("nginx", "hello", many, one, "cpu_us"), 1.4),
        Target(f"direct, hello: max latency, {many}",
               figure("hello", many, "max_us", 1e-3), 50.0, unit="ms"),
        Target(f"direct, wait: requests/s, {many} / ideal ({wait:,.0f})",
               figure("wait", many, "rps", 1 / wait), 0.9, True, 0.95),
        Target(f"direct, mix: requests/s, {many} / ideal ({mix:,.0f})",
               figure("mix", many, "rps", 1 / mix), 0.8, True),
        Target(f"direct: requests/s, rare / hello, {many}",
               ratio_of_workloads("rare", "hello", many), 0.8, True),
        Target(f"direct: requests/s, waiters / hello, {many}",
               ratio_of_workloads("waiters", "hello", many), 0.8, True),
        Target(f"direct, compute: requests/s, {many} / {one}",
               ratio("direct", "compute", many, one, "rps"), 1.5, True),
        Target(f"direct, beside-python: p99, {many}",
               figure("beside-python", many, "p99_us", 1e-3), 35.0, unit="ms"),
        Target(f"direct, beside-c: p99, {many}",
               figure("beside-c", many, "p99_us", 1e-3), 5.0, unit="ms"),
    ]  # fmt: skip


def _asgi() -> list[Target]:
    found = [
        Target(f"direct, hello: CPU a request, {peer} / fcgisgi-asgi",
               ratio("direct", "hello", peer, "fcgisgi-asgi", "cpu_us"), 0.5)
        for peer in (f"{C}-asgi", "fulgate-asgi")
    ]  # fmt: skip
    found += [
        Target(f"nginx, hello: requests/s, {C}-asgi{loop} / uvicorn{loop}",
               ratio("nginx", "hello", f"{C}-asgi{loop}", f"uvicorn{loop}", "rps"), 1.0, True)
        for loop in ("", "-uvloop")
    ]  # fmt: skip
    found += [
        Target(f"RSS of a stream that is still, {C}-asgi{loop}",
               per_stream(f"{C}-asgi{loop}"), 12.0, unit="KB")
        for loop in ("", "-uvloop")
    ]  # fmt: skip
    return found


TARGETS: list[Target] = [
    *_speed(),
    *_connections(C),
    *_connections("fulgate"),
    *_asgi(),
    *_scoreboard(),
    *_threads(f"{C}-1", f"{C}-64"),
    *_threads("fulgate-1", "fulgate-64"),
]


def verdict(target: Target, run: Run) -> tuple[str, str]:
    """Give the figure as text, and "reached", "MISSED" or "not measured"."""
    found = target.value(run)
    if found is None:
        return "", "not measured"
    unit = f" {target.unit}" if target.unit else ""
    text = f"{found.value:.3g}{unit}" if found.value < 1000 else f"{found.value:,.0f}{unit}"
    text += f" ({found.note})" if found.note else ""
    if not target.reached(found.value):
        return text, "MISSED"
    if target.aim is not None:
        aimed = target.reached(found.value, target.aim)
        return text, f"reached, {'and' if aimed else 'next is'} {target.aim:g}"
    return text, "reached"


def table(run: Run) -> list[str]:
    """Give the lines of the table of targets; those that the run cannot tell are only counted."""
    lines = ["| target | has to be | is | |", "|---|--:|--:|---|"]
    unknown = 0
    for target in TARGETS:
        text, said = verdict(target, run)
        if said == "not measured":
            unknown += 1
            continue
        unit = f" {target.unit}" if target.unit else ""
        bound = f"{'≥' if target.least else '≤'} {target.limit:.3g}{unit}"
        lines.append(f"| {target.text} | {bound} | {text} | {said} |")
    if unknown:
        lines += ["", f"{unknown} of {len(TARGETS)} targets need what this run did not measure."]
    return lines
