"""Many peers at once, and slow ones: statements 19, R5 and R6."""

from __future__ import annotations

import contextlib
import time
from collections import Counter

from fulgate.conform.asking import Asking, says_hello
from fulgate.conform.statements import Failed, NotApplicable, case, statement
from fulgate.conform.target import Target, begin, encode
from fulgate.protocols.fastcgi_records import OVERLOADED, PARAMS, STDIN, record

__all__: list[str] = []

STARTED = "served"
WAITS = "waiting"
REFUSED = "OVERLOADED"
UNAVAILABLE = "503"
A_MOMENT = 1.0  # seconds in which an application begins that is not hindered
ARRIVAL = 0.2  # seconds in which what was sent is received


@statement(
    "19",
    "5.5",
    "OVERLOADED when resources are exhausted: on request; by default a 503, which clients"
    " understand",
)
def overloaded(target: Target) -> str:
    with contextlib.ExitStack() as stack:
        crowd: list[Asking] = []
        began = time.monotonic()
        for _ in range(target.crowd):
            with contextlib.suppress(Failed):  # the backlog is full: it waits
                crowd.append(stack.enter_context(Asking(target)))
            if time.monotonic() - began > target.timeout:
                break
        for one in crowd:
            one.send(target.head("/hold", length=200_000), record(STDIN, 1, b"abc"))
        found = _outcomes(target, crowd)
    _wait_for_room(target)
    told = ", ".join(f"{count} {name}" for name, count in found.most_common())
    if set(found) - {STARTED, WAITS, REFUSED, UNAVAILABLE}:
        raise Failed(f"of {len(crowd)} requests: {told}")
    if not (found[REFUSED] or found[UNAVAILABLE]):
        raise NotApplicable(f"no request of {len(crowd)} was refused: {told}; see --crowd")
    return f"of {len(crowd)} requests: {told}"


def _wait_for_room(target: Target) -> None:
    """Wait until it has noticed that the crowd has gone, so that nothing else is refused for it."""
    until = time.monotonic() + target.timeout
    outcome = REFUSED
    while outcome not in (STARTED, WAITS) and time.monotonic() < until:
        with contextlib.suppress(Failed), Asking(target) as asking:
            asking.send(target.head("/hold", length=200_000), record(STDIN, 1, b"abc"))
            asking.wait(lambda: _outcome(asking) != WAITS, A_MOMENT)
            outcome = _outcome(asking)


def _outcomes(target: Target, crowd: list[Asking]) -> Counter[str]:
    """Say what became of each, once nobody waits any more, or after a time."""
    until = time.monotonic() + target.timeout
    while True:
        for one in crowd:
            one.receive()
        found = Counter(_outcome(one) for one in crowd)
        if not found[WAITS] or time.monotonic() > until:
            return found
        time.sleep(0.1)
        for one in crowd:  # else it could be closed because its body has stopped
            if not one.reply().ended:
                one.send(record(STDIN, 1, b"x"))


def _outcome(asking: Asking) -> str:
    reply = asking.reply()
    if reply.ended:
        if reply.protocol_status == OVERLOADED:
            return REFUSED
        if reply.protocol_status or reply.status != 503:
            return f"answered with protocolStatus {reply.protocol_status}, {reply.stdout[:30]!r}"
        return UNAVAILABLE
    if b"first" in reply.stdout:
        return STARTED
    return "closed without an answer" if asking.closed else WAITS


@statement(
    "R5", "", "Limits on the size of PARAMS, on the count of pairs and on the body; 431 and 413"
)
def limits(target: Target) -> None:
    many = {f"X{n}": "" for n in range(20_000)}
    for name, data, status in (
        ("PARAMS of 1 MB", target.request("/hello", more={"LONG": "v" * 1_000_000}), 431),
        ("20,000 pairs", target.request("/hello", more=many), 431),
        ("a body of 10^17 bytes", target.head("/length", length=10**17), 413),
    ):
        with case(name), Asking(target) as asking:
            asking.send(data)
            found = asking.answer().status
            if found != status:
                raise Failed(f"the status is {found}, and not {status}")


@statement(
    "R6",
    "",
    "A connection that dribbles its PARAMS costs no thread, a dribbled body none for a time; both"
    " are closed at their deadline",
)
def dribbles(target: Target) -> str:
    block = encode(target.params("/hello"))
    beginnings = {
        "PARAMS": begin() + record(PARAMS, 1, block[:20]),
        "a body": target.head("/length", length=100) + record(STDIN, 1, b"x"),
    }
    for name, beginning in beginnings.items():
        with case(f"{target.crowd} connections dribble {name}"), contextlib.ExitStack() as stack:
            for _ in range(target.crowd):
                stack.enter_context(Asking(target)).send(beginning)
            time.sleep(ARRIVAL)  # else it may find the server before they do
            with Asking(target) as asking:
                says_hello(asking, target.request("/hello"))
    if not target.deadline:
        return "their end was not waited for: no --deadline"
    with case("one that dribbles PARAMS"), Asking(target) as asking:
        asking.send(begin() + record(PARAMS, 1, block[:20]))
        _is_closed_in_time(asking, target.deadline, record(PARAMS, 1, b"x"))
    with case("one whose body stops"), Asking(target) as asking:
        asking.send(beginnings["a body"])
        _is_closed_in_time(asking, target.deadline)
    return ""


def _is_closed_in_time(asking: Asking, deadline: float, piece: bytes = b"") -> None:
    until = time.monotonic() + deadline
    while not asking.wait(lambda: asking.closed, 0.2):
        if time.monotonic() > until:
            raise Failed(f"it is open after {deadline:g} s")
        asking.send(piece)
