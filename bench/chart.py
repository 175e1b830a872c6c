"""The chart of a run: hello, as bars, in one SVG that is readable on light and on dark pages."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape

from found import Run
from peers import PEERS

WIDTH = 960
MARGIN = 24
LABEL = 210  # room for a server's name, left of its bar
VALUE = 200  # room for its figure, right of the longest bar
BAR, STEP = 15, 22
STYLE = """
svg { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
.card { fill: #ffffff; stroke: #d9dce1; }
.title { font-size: 17px; font-weight: 600; fill: #16191f; }
.heading { font-size: 14px; font-weight: 600; fill: #16191f; }
.note { font-size: 12px; fill: #5b6472; }
.name { font-size: 12.5px; fill: #2b313b; text-anchor: end; }
.ours .name { font-weight: 600; fill: #0b5cad; }
.value { font-size: 12px; fill: #2b313b; }
.less { fill: #5b6472; }
.bar { fill: #a9b4c2; }
.ours .bar { fill: #1f77d0; }
.floor .bar { fill: #d5dae1; }
.range { stroke: #16191f; stroke-width: 1.2; stroke-opacity: 0.65; fill: none; }
.grid { stroke: #e8eaee; }
@media (prefers-color-scheme: dark) {
  .card { fill: #15181d; stroke: #333a44; }
  .title, .heading { fill: #f1f3f6; }
  .note, .less { fill: #9aa4b2; }
  .name, .value { fill: #d3d8df; }
  .ours .name { fill: #7fbdf7; }
  .bar { fill: #59636f; }
  .ours .bar { fill: #3f97ea; }
  .floor .bar { fill: #39414b; }
  .range { stroke: #f1f3f6; }
  .grid { stroke: #262c34; }
}
"""


@dataclass(frozen=True)
class Panel:
    heading: str
    note: str
    way: str
    workload: str
    figure: str
    digits: int
    lowest_first: bool


PANELS = (
    Panel(
        "CPU time a request, directly over FastCGI: less is better",
        "µs; 12 bytes, 32 kept-alive connections, the server on one core",
        "direct", "hello", "cpu_us", 1, True,
    ),
    Panel(
        "Requests a second through nginx: more is better",
        "12 bytes, 32 connections, one nginx worker on the same two cores",
        "nginx", "hello", "rps", 0, False,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Bar:
    name: str
    low: float
    middle: float
    high: float
    remark: str = ""


def bars(run: Run, panel: Panel) -> list[Bar]:
    """Give a bar for each server that was measured, the best first."""
    found = []
    for name, rounds in run.figures.get(panel.way, {}).get(panel.workload, {}).items():
        values = [getattr(one, panel.figure) for one in rounds]
        never = statistics.median(one.never_served or 0 for one in rounds)
        remark = f"{never:.0f} of them never served" if never else _about(name)
        found.append(Bar(name, min(values), statistics.median(values), max(values), remark))
    return sorted(found, key=lambda bar: bar.middle if panel.lowest_first else -bar.middle)


def _about(name: str) -> str:
    """Give what sets a server apart from those of Python that speak FastCGI."""
    if name in ("floor", "libfcgi"):
        return "the least in C" if name == "floor" else "C"
    speaks = PEERS[name].speaks
    return "" if speaks == "fastcgi" else speaks.upper() if speaks == "http" else speaks


def _kind(name: str) -> str:
    if name.startswith("fulgate"):
        return "ours"
    return "floor" if name == "floor" else "other"


def _bar(bar: Bar, panel: Panel, top: float, scale: float) -> Iterator[str]:
    left = MARGIN + LABEL
    middle = top + BAR / 2
    low, end, high = (left + scale * value for value in (bar.low, bar.middle, bar.high))
    yield f'<g class="{_kind(bar.name)}">'
    yield f'<text class="name" x="{left - 8}" y="{middle + 4.5:.1f}">{escape(bar.name)}</text>'
    width = max(end - left, 1.0)
    yield f'<rect class="bar" x="{left}" y="{top}" width="{width:.1f}" height="{BAR}" rx="2"/>'
    if high - low > 1:
        yield f'<path class="range" d="M{low:.1f} {middle}H{high:.1f}"/>'
    text = f"{bar.middle:,.{panel.digits}f}"
    remark = f'<tspan class="less" dx="8">{escape(bar.remark)}</tspan>' if bar.remark else ""
    right = max(end, high) + 7
    yield f'<text class="value" x="{right:.1f}" y="{middle + 4.5:.1f}">{text}{remark}</text></g>'


def _panel(panel: Panel, shown: list[Bar], top: float) -> Iterator[str]:
    yield f'<text class="heading" x="{MARGIN}" y="{top + 14}">{escape(panel.heading)}</text>'
    yield f'<text class="note" x="{MARGIN}" y="{top + 32}">{escape(panel.note)}</text>'
    scale = (WIDTH - 2 * MARGIN - LABEL - VALUE) / max(bar.high for bar in shown)
    first = top + 46
    yield f'<path class="grid" d="M{MARGIN + LABEL} {first - 4}V{first + len(shown) * STEP}"/>'
    for number, bar in enumerate(shown):
        yield from _bar(bar, panel, first + number * STEP, scale)


def draw(run: Run) -> str:
    """Give the chart as SVG; empty when nothing of it was measured."""
    lines: list[str] = []
    top = 78.0
    for panel in PANELS:
        shown = bars(run, panel)
        if shown:
            lines += _panel(panel, shown, top)
            top += 46 + len(shown) * STEP + 28
    if not lines:
        return ""
    height = round(top)
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" aria-label="Servers side by side">',
        f"<style>{STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        f'<text class="title" x="{MARGIN}" y="34">What an answer of 12 bytes costs</text>',
        f'<text class="note" x="{MARGIN}" y="52">{escape(str(run.machine))}; one process each; '
        "medians, the line is the range of the rounds</text>",
    ]
    return "\n".join([*head, *lines, "</svg>"]) + "\n"
