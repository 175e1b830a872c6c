"""All statements, and a run of them."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from types import ModuleType
from typing import Final

from fulgate.conform import aborts, answers, crowds, faults, management, roles, spawned, streams
from fulgate.conform.asking import Asking
from fulgate.conform.statements import (
    FAIL,
    NOT_APPLICABLE,
    PASS,
    Failed,
    NotApplicable,
    Result,
    Statement,
)
from fulgate.conform.target import HELLO, Target
from fulgate.errors import FulgateError

__all__ = ["STATEMENTS", "Unreachable", "recognise", "run"]

MODULES: Final = (spawned, streams, management, aborts, crowds, answers, roles, faults)
RECOVERY = 5.0  # seconds beyond twice the timeout, for a server to be done with what was asked last


class Unreachable(FulgateError):
    """Nobody listens, or what does is not the application. The process ends with status 2."""

    exit_status = 2


def _of(module: ModuleType) -> list[Statement]:
    return [thing for thing in vars(module).values() if isinstance(thing, Statement)]


def _place(found: Statement) -> tuple[bool, int]:
    return found.number.startswith("R"), int(found.number.lstrip("R"))


STATEMENTS: Final[dict[str, Statement]] = {
    found.number: found
    for found in sorted((one for module in MODULES for one in _of(module)), key=_place)
}
"""Each by its number, in their order."""


def recognise(target: Target) -> None:
    """Make sure that the server serves the application for this. Raises Unreachable."""
    try:
        with Asking(target) as asking:
            asking.send(target.request("/hello"))
            reply = asking.reply()
            asking.wait(lambda: HELLO in reply.stdout)
            if HELLO not in reply.stdout:
                raise Failed(
                    "/hello is not answered as the application for this does it"
                    f" (docs/conformance.md): {asking.shown()}, {reply.stdout[:100]!r}"
                )
    except Failed as error:
        raise Unreachable(f"{target.endpoint}: {error}") from None


def run(target: Target, only: Collection[str] = ()) -> Iterator[Result]:
    """Hold the statements against a server one after the other; `only` those of these numbers.

    A server that does not answer any more has the rest not applicable.
    """
    dead = ""
    for found in STATEMENTS.values():
        if only and found.number not in only:
            continue
        if dead:
            seen = f"the server does not answer any more, since statement {dead}"
            yield Result(found, NOT_APPLICABLE, seen, 0.0)
            continue
        began = time.monotonic()
        outcome, seen = _check(found, target)
        if lost := _lost(target):
            dead = found.number
            outcome, seen = FAIL, "; ".join([*([seen] if seen else []), lost])
        yield Result(found, outcome, seen, time.monotonic() - began)


def _check(found: Statement, target: Target) -> tuple[str, str]:
    try:
        return PASS, found.check(target) or ""
    except NotApplicable as error:
        return NOT_APPLICABLE, str(error)
    except Failed as error:
        return FAIL, str(error)


def _lost(target: Target) -> str:
    """Say whether the server has stopped answering. It may take a while, to end what it does."""
    until = time.monotonic() + 2 * target.timeout + RECOVERY
    while True:
        try:
            with Asking(target) as asking:
                asking.send(target.request("/hello"))
                if HELLO in asking.answer().stdout:
                    return ""
            last = asking.shown()
        except Failed as error:
            last = str(error)
        if time.monotonic() > until:
            return f"afterwards the server does not answer: {last}"
        time.sleep(0.05)
