"""Hold every server to the statements, and write what was found into docs/conformance.md.

usage: python -m tests.conform.table [NAME ...]

With names only those columns are made anew.
"""

from __future__ import annotations

import re
import sys
import tempfile
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fulgate.conform.run import STATEMENTS
from tests.conform import Outcomes
from tests.conform.peers import PAGE, PEERS, hold

BEGIN = "<!-- made by make conform: from here -->\n"
END = "<!-- to here -->\n"
AT_ONCE = 3  # servers, which mostly wait
SHOWN = {"pass": "yes", "fail": "**no**", "not applicable": "n/a"}
MISSING = "?"
WIDTH = 110


class Table:
    """What the page says: for each column a title, its cells, and what was seen."""

    def __init__(self) -> None:
        self.titles: dict[str, str] = {}  # "uWSGI": "uWSGI 2.0.21"
        self.cells: dict[str, dict[str, str]] = {}  # a number's cell
        self.seen: dict[str, str] = {}

    @classmethod
    def read(cls, page: str) -> Table:
        """Read what the page says at present."""
        table = cls()
        text = page.partition(BEGIN)[2].partition(END)[0]
        rows = [
            [cell.strip() for cell in line.strip("|\n").split("|")]
            for line in text.splitlines()
            if line.startswith("|")
        ]
        for place, title in enumerate(rows[0][2:] if rows else [], 2):
            name = title.partition(" ")[0]
            table.titles[name] = title
            table.cells[name] = {row[0]: row[place] for row in rows[2:]}
        for name, seen in re.findall(r"^### (\S+),[^\n]*\n\n(.*?)\n(?=### |\Z)", text, re.M | re.S):
            table.seen[name] = seen
        return table

    def add(self, name: str, title: str, found: Outcomes) -> None:
        """Put in what was found for a server."""
        self.titles[name] = title
        self.cells[name] = {number: SHOWN[outcome] for number, outcome in found.of.items()}
        lines = [
            line
            for number, seen in found.seen.items()
            if seen
            for line in textwrap.wrap(
                f"{number:>2}  {_steady(seen)}", WIDTH, subsequent_indent="    "
            )
        ]
        self.seen[name] = "\n".join(["```text", *lines, "```", ""])

    def text(self) -> str:
        """Give it as Markdown."""
        names = [name for name in PEERS if name in self.titles]
        head = ["#", "statement", *(self.titles[name] for name in names)]
        lines = [_row(head), _row(["---"] * len(head))]
        for number, found in STATEMENTS.items():
            section = f" ({found.section})" if found.section else ""
            cells = [self.cells[name].get(number, MISSING) for name in names]
            lines.append(_row([number, found.text + section, *cells]))
        for name in names:
            lines += ["", f"### {name}, {PEERS[name].how}", "", self.seen[name].rstrip("\n")]
        return "\n".join([*lines, ""])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _steady(seen: str) -> str:
    """Leave out what differs from run to run."""
    return re.sub(r"/tmp/\S+/", "", seen)


def written(page: str, table: Table) -> str:
    """Give the page with a table in it."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + table.text() + END + rest.partition(END)[2]


def main(names: list[str]) -> int:
    table = Table.read(PAGE.read_text())

    def one(name: str) -> tuple[str, str, Outcomes]:
        peer = PEERS[name]
        with tempfile.TemporaryDirectory(prefix="fulgate-", dir="/tmp") as folder:
            Path(folder).chmod(0o755)
            return name, f"{name} {peer.version()}", hold(peer, Path(folder))

    there = [name for name in names or PEERS if not PEERS[name].missing]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for name, title, found in pool.map(one, there):
            print(f"{title}: fails {', '.join(found.having('fail')) or 'none'}", flush=True)
            table.add(name, title, found)
    for name in names or PEERS:
        if reason := PEERS[name].missing:
            print(f"{name}: {reason}")
            if name not in table.titles:
                table.titles[name] = f"{name} ({reason})"
                table.cells[name] = {}
                table.seen[name] = reason + "\n"
    PAGE.write_text(written(PAGE.read_text(), table))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
