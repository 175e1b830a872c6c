"""Each statement of FastCGI's conformance list is tested against a running server."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

from tests import statements

STATEMENTS = {*map(str, range(1, 31)), *(f"R{n}" for n in range(1, 7))}


def test_every_statement_is_tested() -> None:
    tested = set()
    for module in pkgutil.iter_modules(statements.__path__, statements.__name__ + "."):
        for name, thing in vars(importlib.import_module(module.name)).items():
            if name.startswith("test_"):
                marks = getattr(thing, "pytestmark", [])
                tested |= {mark.args[0] for mark in marks if mark.name == "statement"}
    assert tested == STATEMENTS


def test_every_marker_names_a_statement(request: pytest.FixtureRequest) -> None:
    for item in request.session.items:
        for mark in item.iter_markers("statement"):
            assert len(mark.args) == 1, item.nodeid
            assert mark.args[0] in STATEMENTS, item.nodeid
