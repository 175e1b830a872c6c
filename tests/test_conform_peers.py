"""`fulgate conform` against servers by others: what docs/conformance.md says of them is so."""

from __future__ import annotations

from pathlib import Path

import pytest

from fulgate.conform.run import STATEMENTS
from tests.conform.peers import PAGE, PEERS, hold
from tests.conform.table import SHOWN, Table, written

NEEDS = {
    "uWSGI": ["uwsgi"],
    "PHP-FPM": [PEERS["PHP-FPM"].program],
    "Go": ["go"],
    "libfcgi": ["cc", "libfcgi-dev"],
}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.requires_program(*NEEDS.get(name, [])))
        for name in PEERS
    ],
)
def test_the_table_is_what_is_found(name: str, folder: Path) -> None:
    found = hold(PEERS[name], folder)
    published = Table.read(PAGE.read_text()).cells[name]
    outcomes = {number: SHOWN[outcome] for number, outcome in found.of.items()}
    wrong = {n: f"{outcomes[n]}: {found.seen[n]}" for n in published if published[n] != outcomes[n]}
    assert not wrong, "make conform"


def test_the_table_has_every_statement_and_server() -> None:
    page = PAGE.read_text()
    table = Table.read(page)
    assert list(table.titles) == list(PEERS)
    for name, cells in table.cells.items():
        assert list(cells) == list(STATEMENTS), name
        assert set(cells.values()) <= set(SHOWN.values()), name


def test_the_page_is_as_it_would_be_written() -> None:
    """The texts of the statements are those of the command, and nothing was changed by hand."""
    page = PAGE.read_text()
    assert written(page, Table.read(page)) == page


def test_fulgate_passes_all() -> None:
    cells = Table.read(PAGE.read_text()).cells["Fulgate"]
    assert set(cells.values()) == {"yes"}
