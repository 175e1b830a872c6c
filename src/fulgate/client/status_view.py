"""What `fulgate top` shows of a status. Needs rich."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fulgate.processes.scoreboard import BUCKETS, percentile

__all__ = ["view"]


def view(now: dict[str, Any], before: dict[str, Any] | None) -> RenderableType:
    """Give what to show of a status; rates are by the difference to one `before`."""
    then = {pool["name"]: pool for pool in before["pools"]} if before else {}
    seconds = now["time"] - before["time"] if before else 0.0
    parts: list[RenderableType] = []
    for pool in now["pools"]:
        parts += [_head(pool, then.get(pool["name"]), seconds), _workers(pool), Text()]
        if pool["recent_errors"]:
            parts += [_errors(pool), Text()]
    return Group(*parts)


def _head(pool: dict[str, Any], then: dict[str, Any] | None, seconds: float) -> Text:
    totals, threads, workers = pool["totals"], pool["threads"], pool["workers"]
    rate, latency = "-", totals["latency"]
    if then is not None and seconds > 0:
        rate = f"{(totals['requests'] - then['totals']['requests']) / seconds:.1f}"
        latency = _difference(latency, then["totals"]["latency"])
    counts = [0] * BUCKETS
    for number, count in latency:
        counts[number] = count
    shares = ((f"p{share}", percentile(counts, share / 100)) for share in (50, 95, 99))
    shown = "  ".join(f"{name} {value * 1000:.2f} ms" for name, value in shares)
    limit = pool["queue_limit"]
    text = Text()
    text.append(pool["name"], "bold")
    text.append(
        f"  {rate} requests/s  {shown}\n"
        f"{threads['busy']} of {threads['busy'] + threads['idle']} threads busy"
        f"  {workers['ready']} workers ready, {workers['starting']} starting,"
        f" {workers['stopping']} stopping\n"
        f"{totals['requests']} requests  {totals['errors']} errors  {totals['aborted']} aborted"
        f"  {pool['connections']} connections  {pool['rss'] / 1048576:.1f} MB\n"
        f"{pool['queued']} queued, at most {pool['queue_most']} of"
        f" {'any number' if limit is None else limit} in a worker"
        f"  {totals['queue_full']} found it full\n"
    )
    return text


def _difference(now: list[list[int]], then: list[list[int]]) -> list[list[int]]:
    old = {pair[0]: pair[1] for pair in then}
    return [[number, max(0, count - old.get(number, 0))] for number, count in now]


def _errors(pool: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("last errors", "pid", "s", "error", "request"):
        table.add_column(name, justify="right" if name in ("pid", "s") else "left")
    for note in pool["recent_errors"][:5]:
        table.add_row(
            time.strftime("%H:%M:%S", time.localtime(note["time"])),
            str(note["pid"]),
            f"{note['seconds']:.1f}",
            _ascii(note["what"]),
            Text(_ascii(note["line"]), overflow="ellipsis", no_wrap=True),
        )
    return table


def _ascii(text: str) -> str:
    """Leave no control sequence of others'."""
    return ascii(text)[1:-1]


def _workers(pool: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("pid", "state", "busy", "requests", "errors", "MB", "cpu s", "s", "request"):
        table.add_column(name, justify="left" if name in ("state", "request") else "right")
    for worker in pool["processes"]:
        busy = [thread for thread in worker["threads"] if thread["state"] == "busy"]
        longest = max(busy, key=lambda thread: float(thread["for"]), default=None)
        line = _ascii(longest["line"]) if longest else ""
        table.add_row(
            str(worker["pid"]),
            worker["state"],
            f"{worker['busy']}/{worker['capacity']}",
            str(worker["requests"]),
            str(worker["errors"]),
            f"{worker['rss'] / 1048576:.1f}",
            f"{worker['cpu']:.1f}",
            f"{longest['for']:.1f}" if longest else "",
            Text(line, overflow="ellipsis", no_wrap=True),
        )
    return table
