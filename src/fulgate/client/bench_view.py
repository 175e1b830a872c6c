"""The terminal of `fulgate bench`: progress while it runs, and the report. Needs rich."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from fulgate.client.bench_plan import Plan
from fulgate.client.bench_report import PERCENTILES, Report, rows

__all__ = ["View"]

BAR = 40  # columns
EIGHTHS = " ▏▎▍▌▋▊▉"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _size(number: float) -> str:
    for unit in ("B", "KB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.1f} GB"


def _time(ms: float) -> str:
    """Give a time in three digits, with its unit."""
    if ms < 1:
        return f"{ms * 1000:.0f} µs"
    if ms < 1000:
        return f"{ms:.3g} ms" if ms < 100 else f"{ms:.0f} ms"
    return f"{ms / 1000:.3g} s" if ms < 100_000 else f"{ms / 1000:.0f} s"


class View:
    """Shows one run: progress on standard error if that is a terminal, the report on the other."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._console = Console(highlight=False)
        errors = Console(stderr=True, highlight=False)
        # It draws when it is told something; a thread of its own would be there at the fork.
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[answered]}"),
            TextColumn("[cyan]{task.fields[speed]}[/]"),
            TextColumn("[red]{task.fields[errors]}[/]"),
            console=errors,
            auto_refresh=False,
            transient=True,
            disable=not errors.is_terminal,
        )
        self._task = self._progress.add_task(
            "", total=plan.count or plan.seconds, answered="", speed="", errors=""
        )
        self._begun = time.monotonic()
        self._last = (self._begun, 0)
        self._speed = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def tell(self, answered: int, errors: int) -> None:
        """Show what has been done so far."""
        now = time.monotonic()
        at, before = self._last
        if now - at >= 0.5:
            self._speed = f"{_count((answered - before) / (now - at))}/s"
            self._last = now, answered
        passed = now - self._begun
        plan = self._plan
        self._progress.update(
            self._task,
            completed=answered if plan.count else min(passed, plan.seconds),
            description=f"{passed:.0f} of {plan.seconds:g} s"
            if plan.seconds
            else f"{passed:.0f} s",
            answered=_count(answered),
            speed=self._speed,
            errors=f"{_count(errors)} errors" if errors else "",
        )
        self._progress.refresh()

    # The report

    def report(self, report: Report) -> None:
        """Print what came of it."""
        plan, counts = report.plan, report.counts
        out = self._console
        kept = "kept alive" if plan.keep else "a new one for each request"
        rate = f", {plan.rate:,g} requests/s" if plan.rate else ""
        body = f", {_size(report.body_size)} of body" if report.body_size else ""
        processes = f", {report.processes} processes" if report.processes > 1 else ""
        out.print(
            f"[bold]{escape(report.method)} {escape(report.target)}[/] of"
            f" {escape(report.endpoint)}{body}",
            soft_wrap=True,
        )
        out.print(f"{plan.connections} connections, {kept}{rate}{processes}", style="dim")
        out.print()
        out.print(Padding(self._figures(report), (0, 0, 0, 2)))
        if counts.latency.count:
            out.print()
            self._latencies(report)
            out.print()
            self._histogram(report)
        if notes := report.notes():
            out.print()
            for note in notes:
                line = Table.grid(padding=(0, 1))
                line.add_row("[yellow]![/]", escape(note))
                out.print(line)

    def _figures(self, report: Report) -> Table:
        counts = report.counts
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column(justify="right")
        table.add_column()
        table.add_row(
            "requests", f"[bold]{_count(report.per_second)}/s[/]",
            f"{_count(counts.answered)} in {counts.seconds:.2f} s",
        )  # fmt: skip
        received = counts.received / counts.seconds if counts.seconds else 0
        table.add_row("received", f"{_size(received)}/s", f"{_size(counts.received)}")
        for status, number in sorted(counts.statuses.items()):
            style = "green" if status.startswith("2") else "red"
            table.add_row("status", f"[{style}]{status}[/]", _count(number))
        for kind, number in sorted(counts.errors.items()):
            first = escape(counts.examples.get(kind, ""))
            table.add_row("error", f"[red]{kind}[/]", f"{_count(number)}; first: {first}")
        if not counts.errors:
            table.add_row("errors", "0", "")
        table.add_row("connects", _count(counts.connects), "")
        table.add_row(
            "generator", f"{counts.cpu_share:.0%} of a core",
            f"{counts.cpu_seconds / max(counts.answered, 1) * 1e6:.1f} µs of CPU a request",
        )  # fmt: skip
        return table

    def _latencies(self, report: Report) -> None:
        counts = report.counts
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        for _ in range(len(PERCENTILES) + 2):
            table.add_column(justify="right")
        names = ["mean", *(f"{p:g} %" for p in PERCENTILES), "max"]
        table.add_row("", *(f"[dim]{name}[/]" for name in names))
        lines = [("latency", counts.latency)]
        if report.plan.rate:
            lines += [("from sending", counts.service), ("sent late", counts.late)]
        for name, histogram in lines:
            times = [histogram.mean, *histogram.percentiles(*PERCENTILES), histogram.max]
            table.add_row(name, *(_time(ns / 1e6) for ns in times))
        self._console.print(Padding(table, (0, 0, 0, 2)))

    def _histogram(self, report: Report) -> None:
        found = rows(report.counts.latency)
        whole = sum(count for _, _, count in found)
        most = max(count for _, _, count in found)
        table = Table.grid(padding=(0, 1))
        table.add_column(justify="right", style="dim")
        table.add_column(width=BAR, style="cyan")
        table.add_column(justify="right")
        table.add_column(justify="right", style="dim")
        for low, _, count in found:
            share = f"{count / whole:.1%}" if count else ""
            table.add_row(_time(low), Text(_bar(count / most)), share, _count(count))
        self._console.print(Padding(table, (0, 0, 0, 2)))


def _bar(share: float) -> str:
    eighths = round(share * BAR * 8)
    if share and not eighths:
        eighths = 1
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()
