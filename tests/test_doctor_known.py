"""Each mistake that the doctor knows is made in a real configuration, and stands in the manual.

What the doctor knows is read from its code: a finding cannot be made without a Mistake, so what a
module can find is what it names. A finding without a test fails here, and so does one that
docs/doctor.md does not have, or has otherwise.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType

import pytest
from _pytest.mark import ParameterSet

import fulgate.doctor
from fulgate.doctor.mistakes import Mistake
from fulgate.doctor.sent import LINES
from tests import (
    test_doctor,
    test_doctor_nginx,
    test_doctor_place,
    test_doctor_sent,
    test_doctor_servers,
)
from tests.servers.fulgate import ROOT
from tests.servers.snippets import SNIPPETS

PACKAGE = Path(fulgate.doctor.__file__).parent
PAGE = (ROOT / "docs" / "doctor.md").read_text()
TESTS = (
    test_doctor,
    test_doctor_nginx,
    test_doctor_place,
    test_doctor_sent,
    test_doctor_servers,
)
# How the doctor is asked for what a module finds.
ASKED = {"nginx": "--nginx", "sent": "--recording", "place": "ENDPOINT", "__init__": "--pid"}

Known = set[tuple[Mistake, str, str]]
"""A mistake, the web server, as SNIPPETS calls it, or "", and how the doctor is asked."""


def of_module(name: str) -> set[Mistake]:
    """Give the mistakes that a module of the doctor's names, or has looked for by `reach`."""
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    made = {
        Mistake[node.attr]
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "Mistake"
        and node.attr.isupper()
    }
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return made | (of_module("reach") if "fulgate.doctor.reach" in imported else set())


def known() -> tuple[Known, Known]:
    """Give what the doctor has lines against, and what it only tells."""
    mended: Known = {(one, "nginx", "--nginx") for one in of_module("nginx")}
    mended |= {(one, web.lower(), "--recording") for one in LINES for web in LINES[one]}
    told: Known = {(one, "", "--pid") for one in of_module("__init__")}
    for one in of_module("place"):
        if one in TOLD_ONLY:
            told.add((one, "", "ENDPOINT"))
        else:
            mended |= {(one, web, "ENDPOINT") for web in SNIPPETS}
    return mended, told


# What is not of a web server's configuration, nor of where it is told to connect to.
TOLD_ONLY = {
    Mistake.LEFT_BEHIND,
    Mistake.DEAD,
    Mistake.BUSY,
    Mistake.WRONG,
    Mistake.WAITING,
    Mistake.LOST_THREADS,
}


def marks(name: str) -> Known:
    """Give what the tests say that they prove, by their marks `mends` or `finds`."""
    return {
        (mistake, mark.kwargs.get("web", ""), mark.kwargs["by"])
        for module in TESTS
        for thing in vars(import_module(module.__name__)).values()
        if isinstance(thing, FunctionType) and thing.__name__.startswith("test_")
        for mark in marks_of(thing)
        if mark.name == name
        for mistake in mark.args
    }


def marks_of(test: FunctionType) -> Iterator[pytest.Mark]:
    for mark in getattr(test, "pytestmark", []):
        yield mark
        if mark.name == "parametrize":
            for case in mark.args[1]:
                if isinstance(case, ParameterSet):
                    for one in case.marks:
                        yield one.mark if isinstance(one, pytest.MarkDecorator) else one


def test_each_is_made_in_a_test_and_its_lines_are_applied() -> None:
    mended, told = known()
    assert marks("mends") == mended
    assert marks("finds") == told
    assert {mistake for mistake, _, _ in mended | told} == set(Mistake)


def test_what_is_asked_for_is_all_that_there_is() -> None:
    """A module that makes findings is one that this knows of."""
    makes = {path.stem for path in PACKAGE.glob("*.py") if of_module(path.stem)}
    assert makes == {*ASKED, "reach"}
    assert of_module("sent") == set(LINES)


# the manual


def tables(heading: str) -> list[dict[str, str]]:
    """Give the rows of the tables under a heading of the page, by their columns' names."""
    _, found, rest = PAGE.partition(f"\n## {heading}\n")
    assert found, heading
    text = rest.partition("\n## ")[0]
    rows: list[dict[str, str]] = []
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        names, _, *lines = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
        ]
        rows += [dict(zip(names, line, strict=True)) for line in lines]
    return rows


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def name_of(row: dict[str, str]) -> Mistake:
    (name,) = code(row["name"])
    return Mistake(name)


def test_the_page_has_all_of_them_and_no_others() -> None:
    shown: Known = set()
    only: Known = set()
    for row in tables("All that it knows"):
        asked = {"ENDPOINT"} & set(row["told by"].split(", ")) | set(code(row["told by"]))
        if "--recording" in asked:  # which is the same for what is listened to
            asked.remove("--listen")
        for by in asked:
            if "in" in row:
                shown |= {(name_of(row), web.lower(), by) for web in row["in"].split(", ")}
            else:
                only.add((name_of(row), "", by))
    assert (shown, only) == known()


def test_the_page_has_the_lines_that_are_printed() -> None:
    source = "".join(path.read_text() for path in PACKAGE.glob("*.py")).replace('\\"', '"')
    for row in tables("All that it knows"):
        for line in code(row.get("what it prints", "")):
            assert line in source, line
        if "`--recording`" in row.get("told by", ""):
            for web, lines in LINES[name_of(row)].items():
                if web.lower() in row["in"].lower().split(", "):
                    assert {line.partition(": ")[2] for line in lines} <= set(
                        code(row["what it prints"])
                    )


def test_what_the_sections_explain_is_what_can_be_found_there() -> None:
    for heading, module in {
        "Where an application listens": "place",
        "How nginx passes requests on": "nginx",
        "What a web server really sends": "sent",
        "What it finds": "__init__",
    }.items():
        assert {name_of(row) for row in tables(heading)} == of_module(module), heading
