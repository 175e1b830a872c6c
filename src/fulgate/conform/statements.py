"""What a statement is, and how a check of one says what it saw."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from fulgate.conform.target import Target
from fulgate.errors import FulgateError

__all__ = [
    "FAIL",
    "NOT_APPLICABLE",
    "PASS",
    "Failed",
    "NotApplicable",
    "Result",
    "Statement",
    "case",
    "statement",
]

PASS: Final = "pass"
FAIL: Final = "fail"
NOT_APPLICABLE: Final = "not applicable"

Check = Callable[[Target], str | None]


class Failed(FulgateError):
    """The server breaks the statement; the message says what was seen."""


class NotApplicable(FulgateError):
    """The statement cannot be held against this server; the message says why."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of FastCGI 1.0. `section` is empty where it is not the specification's.

    `check` holds a server against it. It gives what there is to remark, or None, and raises Failed
    and NotApplicable, and what a connection raises.
    """

    number: str
    section: str
    text: str
    check: Check


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a statement. `outcome` is PASS, FAIL or NOT_APPLICABLE."""

    statement: Statement
    outcome: str
    seen: str  # what failed, why it is not applicable, or a remark; often ""
    seconds: float


def statement(number: str, section: str, text: str) -> Callable[[Check], Statement]:
    """Make a Statement of the function that checks it."""
    return lambda check: Statement(number, section, text, check)


@contextlib.contextmanager
def case(name: str) -> Iterator[None]:
    """Have what fails in here begin with `name`."""
    try:
        yield
    except Failed as error:
        raise Failed(f"{name}: {error}") from None
