"""Management records: statements 11 to 14."""

from __future__ import annotations

from fulgate.conform.asking import Asking, expect_body, says_hello
from fulgate.conform.statements import Failed, NotApplicable, case, statement
from fulgate.conform.target import Target, begin, encode
from fulgate.protocols.fastcgi_records import (
    GET_VALUES,
    GET_VALUES_RESULT,
    NULL_REQUEST_ID,
    PARAMS,
    STDIN,
    UNKNOWN_TYPE,
    encode_pair,
    record,
)

__all__: list[str] = []

MPXS = b"FCGI_MPXS_CONNS"
NAMES = (b"FCGI_MAX_CONNS", b"FCGI_MAX_REQS", MPXS)


@statement(
    "11",
    "4.1",
    "GET_VALUES is answered with the values asked for: FCGI_MAX_CONNS, FCGI_MAX_REQS,"
    " FCGI_MPXS_CONNS",
)
def values(target: Target) -> None:
    with case("all three"), Asking(target) as asking:
        _held(asking.values(*NAMES), {name.decode() for name in NAMES})
    for name in NAMES:
        with case(f"{name.decode()} alone"), Asking(target) as asking:
            _held(asking.values(name), {name.decode()})


def _held(told: list[tuple[str, str]] | None, asked: set[str]) -> None:
    if told is None:
        raise Failed("there is no answer")
    names = [name for name, _ in told]
    if left_out := sorted(asked - set(names)):
        raise Failed(f"{', '.join(left_out)} left out")
    if extra := sorted(set(names) - asked) or len(names) != len(asked):
        raise Failed(f"told are {', '.join(names)}" if extra else "a name came twice")
    for name, value in told:
        allowed = ("0", "1") if name == MPXS.decode() else ()
        if not (value.isascii() and value.isdigit()) or (allowed and value not in allowed):
            raise Failed(f"{name} is {value!r}")


@statement("12", "4.1", "Names that it does not know are left out")
def unknown_names(target: Target) -> None:
    with Asking(target) as asking:
        if asking.values(MPXS) is None:
            raise NotApplicable("it answers no GET_VALUES (statement 11)")
    for names in ((b"FCGI_OTHER",), (b"FCGI_OTHER", MPXS), (b"N" * 200,)):
        shown = " and ".join(name.decode()[:20] for name in names)
        with case(f"asked for {shown}"), Asking(target) as asking:
            told = asking.values(*names)
            if told is None:
                raise Failed("there is no answer")
            if unknown := {name for name, _ in told} - {MPXS.decode()}:
                raise Failed(f"told is {', '.join(unknown)[:60]}")


@statement("13", "4.1", "GET_VALUES is accepted at any time, also inside a request")
def at_any_time(target: Target) -> None:
    asked = record(GET_VALUES, NULL_REQUEST_ID, encode_pair(MPXS, b""))
    told = {"REQUEST_METHOD": "POST", "CONTENT_LENGTH": "6"}
    params = target.params("/echo", more=told)
    first, second = encode(params[:2]), encode(params[2:])  # that a pair may be cut is statement 7
    steps = {
        "before a request": b"",
        "after BEGIN_REQUEST": begin(),
        "within PARAMS": record(PARAMS, 1, first),
        "before the end of PARAMS": record(PARAMS, 1, second),
        "after PARAMS": record(PARAMS, 1),
        "within STDIN": record(STDIN, 1, b"abc"),
        "before the end of STDIN": record(STDIN, 1, b"def"),
    }
    with Asking(target) as asking:
        for name, step in steps.items():
            with case(name):
                asking.send(step, asked)
                _is(asking, GET_VALUES_RESULT)
        asking.send(record(STDIN, 1))
        expect_body(asking.answer(), b"abcdef")
    with case("while the application reads"), Asking(target) as asking:
        asking.send(target.head("/hold", length=200_000), record(STDIN, 1, b"abc"))
        asking.wait(lambda: b"first" in asking.reply().stdout, 1.0)
        asking.send(asked)
        _is(asking, GET_VALUES_RESULT)


def _is(asking: Asking, kind: int) -> None:
    told = asking.management_record()
    if told.kind != kind:
        raise Failed(f"{told.name} came")


@statement(
    "14",
    "4.2",
    "An unknown management type T is answered with UNKNOWN_TYPE{T}, and the connection stays"
    " usable",
)
def unknown_types(target: Target) -> None:
    for kind in (12, 77, 255):
        with case(f"type {kind}"), Asking(target) as asking:
            asking.send(record(kind, NULL_REQUEST_ID, b"what"))
            told = asking.management_record()
            if (told.kind, told.content[:1], len(told.content)) != (UNKNOWN_TYPE, bytes([kind]), 8):
                raise Failed(f"{told.name} with {told.content!r} came")
            with case("the next request"):
                says_hello(asking, target.request("/hello"))
