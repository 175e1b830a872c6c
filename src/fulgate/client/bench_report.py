"""What the load generator's counts say, as figures for programs and as sentences for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from fulgate.client.bench_figures import Counts, Histogram
from fulgate.client.bench_plan import Plan

__all__ = ["PERCENTILES", "Report", "rows"]

PERCENTILES: Final = (50.0, 75.0, 90.0, 99.0, 99.9)
LIMITED: Final = 0.9  # of a core, by the load generator: beyond it, it is the limit itself
STARVED: Final = 0.1  # of the time without a core, beyond which the figures are doubtful
LATE: Final = 1_000_000  # ns, beyond which requests went out too late to call it their rate
MOST_ROWS: Final = 16
# Steps of a decade, finest first.
SERIES: Final = (
    (1.0, 1.1, 1.2, 1.35, 1.5, 1.65, 1.8, 2.0, 2.2, 2.5, 2.7, 3.0, 3.3, 3.6, 4.0, 4.5, 5.0, 5.5,
     6.0, 6.7, 7.5, 8.2, 9.1),
    (1.0, 1.2, 1.5, 1.8, 2.2, 2.7, 3.3, 4.0, 5.0, 6.0, 7.5, 9.0),
    (1.0, 1.5, 2.0, 3.0, 4.5, 7.0),
    (1.0, 2.0, 5.0),
    (1.0, 3.0),
    (1.0,),
)  # fmt: skip


def rows(histogram: Histogram) -> list[tuple[float, float, int]]:
    """Give at most 16 rows, each lower bound, upper bound (ms) and count, on a log scale."""
    buckets = list(histogram.buckets())
    if not buckets:
        return []
    found: list[tuple[float, float, int]] = []
    for steps in SERIES:
        edges = [round(step * 10.0**power, 6) for power in range(-3, 8) for step in steps]
        found = _rows(buckets, edges)
        if len(found) <= MOST_ROWS:
            break
    return found


def _rows(
    buckets: list[tuple[int, int, int]], edges: list[float]
) -> list[tuple[float, float, int]]:
    counts = [0] * len(edges)
    at = 0
    for low, high, count in buckets:
        middle = (low + high) / 2e6
        while at + 1 < len(edges) and edges[at + 1] <= middle:
            at += 1
        counts[at] += count
    filled = [number for number, count in enumerate(counts) if count]
    first, last = filled[0], min(filled[-1], len(edges) - 2)
    return [(edges[n], edges[n + 1], counts[n]) for n in range(first, last + 1)]


@dataclass(frozen=True)
class Report:
    """One run, ended."""

    endpoint: str
    method: str
    target: str
    body_size: int
    processes: int
    plan: Plan
    counts: Counts

    @property
    def per_second(self) -> float:
        return self.counts.answered / self.counts.seconds if self.counts.seconds else 0.0

    @property
    def limited(self) -> bool:
        """Was the load generator itself the limit?"""
        counts = self.counts
        return not self.plan.rate and counts.cpu_share >= LIMITED

    @property
    def good(self) -> bool:
        """Was every request that ended answered as it should be, on every connection?"""
        counts = self.counts
        return bool(
            counts.answered and not counts.errors and not counts.never_served and not counts.fatal
        )

    def notes(self) -> list[str]:
        """Give what has to be known to read the figures rightly."""
        counts, plan = self.counts, self.plan
        found = [counts.fatal] if counts.fatal else []
        share = f"{counts.cpu_share:.0%} of a core"
        if self.limited:
            found.append(
                f"The load generator was the limit itself: it used {share}. The application may"
                f" be quicker than this; try --processes {self.processes + 1}."
            )
        if counts.starved_share >= STARVED:
            found.append(
                f"The load generator waited for a core {counts.starved_share:.0%} of the time:"
                " the machine has fewer than it and the application keep busy, and latencies are"
                " longer by that."
            )
        if counts.never_served:
            found.append(
                f"{counts.never_served} of {plan.connections} connections were never served: no"
                " request on them was answered."
            )
        if counts.unsent:
            found.append(
                f"{counts.unsent:,} requests were due and never sent, since none of the"
                f" {plan.connections} connections was free; their waiting is not in the latencies."
            )
        if plan.rate and counts.late.count:
            (late,) = counts.late.percentiles(99)
            if late >= LATE:
                found.append(
                    f"The load generator sent 1 % of its requests more than {late / 1e6:.1f} ms"
                    " late by its own fault; the latencies contain that."
                )
        if counts.oldest > counts.latency.max:
            found.append(
                f"At the end a request had waited {counts.oldest / 1e6:,.1f} ms for its answer:"
                " longer than any that was answered."
            )
        if counts.reconnects:
            found.append(
                f"{counts.reconnects:,} connections were closed after an answer, though they were"
                " to be kept alive."
            )
        if counts.queue_full:
            found.append(
                f"The accept queue was full {counts.queue_full:,} times when a connection was to"
                " be made; it was tried again after 5 ms."
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Give all figures for JSON; docs/bench.md says what they are."""
        counts, plan = self.counts, self.plan
        return {
            "endpoint": self.endpoint,
            "method": self.method,
            "path": self.target,
            "body_bytes": self.body_size,
            "connections": plan.connections,
            "keep_alive": plan.keep,
            "rate": plan.rate or None,
            "seconds": counts.seconds,
            "requests": counts.answered,
            "requests_per_second": self.per_second,
            "received_bytes": counts.received,
            "statuses": counts.statuses,
            "errors": {
                kind: {"count": count, "first": counts.examples.get(kind, "")}
                for kind, count in counts.errors.items()
            },
            "never_served": counts.never_served,
            "unanswered": counts.in_flight,
            "unsent": counts.unsent,
            "oldest_unanswered_ms": counts.oldest / 1e6,
            "connects": counts.connects,
            "reconnects": counts.reconnects,
            "queue_full": counts.queue_full,
            "latency_ms": _times(counts.latency),
            "service_ms": _times(counts.service) if plan.rate else None,
            "late_ms": _times(counts.late) if plan.rate else None,
            "histogram": [list(row) for row in rows(counts.latency)],
            "generator": {
                "processes": self.processes,
                "cpu_seconds": counts.cpu_seconds,
                "cpu_share": counts.cpu_share,
                "starved_share": counts.starved_share,
                "limited": self.limited,
            },
            "good": self.good,
            "notes": self.notes(),
        }


def _times(histogram: Histogram) -> dict[str, float]:
    least = next(histogram.buckets(), (0, 0, 0))[0]
    percentiles = histogram.percentiles(*PERCENTILES)
    return {
        "mean": histogram.mean / 1e6,
        "min": least / 1e6,
        **{f"p{p:g}": ns / 1e6 for p, ns in zip(PERCENTILES, percentiles, strict=True)},
        "max": histogram.max / 1e6,
    }
