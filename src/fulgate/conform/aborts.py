"""Aborts and refusals: statements 15 to 18 and 20."""

from __future__ import annotations

import math

from fulgate.conform.asking import Asking, Reply, expect_body, says_hello
from fulgate.conform.statements import Failed, case, statement
from fulgate.conform.streams import QUIET
from fulgate.conform.target import HELLO, Target, begin, encode, stream
from fulgate.protocols.fastcgi_records import (
    ABORT_REQUEST,
    CANT_MPX_CONN,
    END_REQUEST,
    PARAMS,
    REQUEST_COMPLETE,
    STDIN,
    UNKNOWN_ROLE,
    record,
)

__all__: list[str] = []

A_MOMENT = 1.0  # seconds in which an application begins that is not hindered


@statement(
    "15",
    "5.4",
    "ABORT_REQUEST is answered with END_REQUEST as soon as possible: before PARAMS has ended",
)
def before_params_end(target: Target) -> None:
    params = target.params("/hello")
    for name, sent in (
        ("no PARAMS", []),
        ("a part of PARAMS", params[:2]),
        ("all of them", params),
    ):
        for keep in (True, False):
            with case(f"after {name}"), Asking(target) as asking:
                asking.send(begin(keep=keep), stream(PARAMS, 1, encode(sent), end=False))
                asking.send(record(ABORT_REQUEST, 1))
                _is_complete(asking.answer())


def _is_complete(reply: Reply) -> None:
    if reply.protocol_status != REQUEST_COMPLETE:
        raise Failed(f"protocolStatus is {reply.protocol_status}")


@statement("16", "5.4", "ABORT_REQUEST is answered while the application runs")
def while_it_runs(target: Target) -> None:
    seconds = 2 * math.ceil(target.timeout)
    with Asking(target) as asking:
        asking.send(target.request("/wait", str(seconds)))
        _abort(asking)


@statement("17", "5.4", "ABORT_REQUEST is answered while the application reads STDIN")
def while_it_reads(target: Target) -> None:
    with Asking(target) as asking:
        asking.send(target.head("/hold", length=200_000), record(STDIN, 1, b"abc"))
        _abort(asking)


def _abort(asking: Asking) -> None:
    """Abort what has begun; it must end in time, which the application does not by itself."""
    reply = asking.reply()
    asking.wait(lambda: b"first" in reply.stdout, A_MOMENT)
    if reply.ended:
        raise Failed(f"the application did not wait, but answered {reply.stdout[-40:]!r}")
    asking.send(record(ABORT_REQUEST, 1))
    _is_complete(asking.answer())
    # What follows may have come together with it.
    end = 1 + next(n for n, one in enumerate(asking.order) if one.kind == END_REQUEST)
    asking.wait(lambda: len(asking.order) > end, QUIET)  # that it closes is statement 10
    if len(asking.order) > end:
        raise Failed(f"more came after END_REQUEST; {asking.shown()}")


@statement("18", "5.5", "Concurrent ids are served, or refused with CANT_MPX_CONN")
def concurrent(target: Target) -> str:
    with Asking(target) as asking:
        asking.send(target.head("/hold", length=6), record(STDIN, 1, b"abc"))
        asking.wait(lambda: b"first" in asking.reply().stdout, A_MOMENT)
        asking.send(target.request("/hello", id=2))
        second = asking.reply(2)
        at_once = asking.wait(lambda: second.ended)
        # One that serves them one after the other ends the first one first.
        asking.send(record(STDIN, 1, b"def"), record(STDIN, 1))
        with case("the first"):
            first = asking.answer()
            if not first.body.endswith(b"second\n"):
                raise Failed(f"its answer is {first.stdout[-40:]!r}")
        with case("the second"):
            asking.answer(2)
    if second.protocol_status == CANT_MPX_CONN:
        return "refused"
    if second.body != HELLO:
        raise Failed(f"the second: protocolStatus {second.protocol_status}, {second.stdout[:40]!r}")
    if at_once:
        _interleaved(target)
    return "served at once" if at_once else "served one after the other"


def _interleaved(target: Target) -> None:
    """Each request is to get the body that was sent for it."""
    bodies = {1: b"one two three!", 2: b"123 456 789-0!"}
    with Asking(target) as asking:
        asking.send(*(target.head("/echo", id=id, length=len(body)) for id, body in bodies.items()))
        for at in range(0, len(bodies[1]), 5):
            asking.send(*(record(STDIN, id, body[at : at + 5]) for id, body in bodies.items()))
        asking.send(*(record(STDIN, id) for id in bodies))
        for id, body in bodies.items():
            with case(f"the body of id {id}, interleaved with another"):
                expect_body(asking.answer(id), body)


@statement("20", "5.5", "UNKNOWN_ROLE for a role that is not served, and the connection is kept")
def unknown_roles(target: Target) -> None:
    for role in (4, 0, 4242, 65_535):
        with case(f"role {role}"), Asking(target) as asking:
            asking.send(begin(role=role))
            reply = asking.reply()
            if not asking.wait(lambda: reply.ended, A_MOMENT):  # noqa: B023
                # One may refuse the request when it has the whole of it.
                asking.send(stream(PARAMS, 1, encode(target.params("/hello"))), record(STDIN, 1))
            reply = asking.answer()
            if reply.protocol_status != UNKNOWN_ROLE:
                raise Failed(f"protocolStatus is {reply.protocol_status}")
            if reply.stdout:
                raise Failed(f"it answered: {reply.stdout[:40]!r}")
            with case("the next request"):
                reply.records.clear()
                says_hello(asking, target.request("/hello"))
