"""What a run found: as text, as JSON, and as JUnit's XML."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Final

import click

from fulgate import __version__
from fulgate.client.records import printable
from fulgate.conform.statements import FAIL, NOT_APPLICABLE, PASS, Result

__all__ = ["line", "summary", "to_json", "to_junit"]

COLOURS: Final = {PASS: "green", FAIL: "red", NOT_APPLICABLE: "yellow"}
SHORT: Final = {PASS: "pass", FAIL: "FAIL", NOT_APPLICABLE: "n/a "}


def line(result: Result) -> str:
    """Give a result as one line, coloured."""
    outcome = click.style(SHORT[result.outcome], COLOURS[result.outcome])
    text = f"{outcome}  {result.statement.number:>2}  {result.statement.text}"
    return f"{text}: {_seen(result)}" if result.seen else text


def _seen(result: Result) -> str:
    return printable(result.seen.encode("utf-8", "backslashreplace"))


def summary(results: Sequence[Result]) -> str:
    """Give the counts in words."""
    count = _counts(results)
    return f"{count[PASS]} pass, {count[FAIL]} fail, {count[NOT_APPLICABLE]} not applicable"


def _counts(results: Sequence[Result]) -> dict[str, int]:
    outcomes = [result.outcome for result in results]
    return {outcome: outcomes.count(outcome) for outcome in SHORT}


def to_json(endpoint: str, results: Sequence[Result]) -> str:
    """Give a run as JSON."""
    count = _counts(results)
    found = {
        "fulgate": __version__,
        "endpoint": endpoint,
        "passed": count[PASS],
        "failed": count[FAIL],
        "not_applicable": count[NOT_APPLICABLE],
        "statements": [
            {
                "number": result.statement.number,
                "section": result.statement.section,
                "text": result.statement.text,
                "outcome": result.outcome,
                "seen": _seen(result),
                "seconds": round(result.seconds, 3),
            }
            for result in results
        ],
    }
    return json.dumps(found, indent=2, ensure_ascii=False)


def to_junit(endpoint: str, results: Sequence[Result]) -> bytes:
    """Give a run as JUnit's XML, a test case for each statement."""
    count = _counts(results)
    suite = ET.Element(
        "testsuite",
        name=f"FastCGI 1.0: {endpoint}",
        tests=str(len(results)),
        failures=str(count[FAIL]),
        errors="0",
        skipped=str(count[NOT_APPLICABLE]),
        time=f"{sum(result.seconds for result in results):.3f}",
    )
    for result in results:
        found = result.statement
        one = ET.SubElement(
            suite,
            "testcase",
            classname="fulgate.conform",
            name=f"{found.number}: {found.text}",
            time=f"{result.seconds:.3f}",
        )
        seen = _seen(result)
        if result.outcome == FAIL:
            ET.SubElement(one, "failure", message=seen)
        elif result.outcome == NOT_APPLICABLE:
            ET.SubElement(one, "skipped", message=seen)
        elif seen:
            ET.SubElement(one, "system-out").text = seen
    suites = ET.Element("testsuites")
    suites.append(suite)
    ET.indent(suites)
    text: bytes = ET.tostring(suites, "utf-8", xml_declaration=True)
    return text + b"\n"
