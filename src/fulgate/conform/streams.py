"""Records, streams and name-value pairs, and who closes the connection: statements 3 to 10."""

from __future__ import annotations

import time

from fulgate.conform.asking import Asking, expect_body, says_hello
from fulgate.conform.statements import Failed, case, statement
from fulgate.conform.target import Target, begin, encode, stream
from fulgate.protocols.fastcgi_records import (
    ABORT_REQUEST,
    DATA,
    GET_VALUES,
    NULL_REQUEST_ID,
    PARAMS,
    STDIN,
    encode_length,
    encode_pair,
    record,
)

__all__ = ["QUIET", "quiet"]

NAME = "CONFORM_VALUE"
MPXS = encode_pair(b"FCGI_MPXS_CONNS", b"")
DIGITS = b"0123456789"
QUIET = 0.3  # seconds in which nothing may come


def quiet(asking: Asking) -> None:
    """Raise Failed when anything comes, or the connection is closed."""
    until = time.monotonic() + QUIET
    seen = len(asking.order)
    asking.wait(lambda: len(asking.order) > seen or time.monotonic() > until, QUIET)
    if len(asking.order) > seen:
        raise Failed(asking.shown())
    if asking.closed:
        raise Failed("it closed")


@statement("3", "3.3", "Padding of 0 to 255 bytes is skipped on every record, empty ones included")
def padding(target: Target) -> None:
    for size in (0, 1, 7, 8, 128, 255):
        with case(f"padding of {size} bytes"), Asking(target) as asking:
            asking.send(target.request("/echo", "", DIGITS, padding=size))
            expect_body(asking.answer(), DIGITS)
    asked = target.request("/hello")
    if not _says_hello(target, record(GET_VALUES, NULL_REQUEST_ID, MPXS) + asked):
        return  # what it makes of GET_VALUES is statement 11
    for size in (1, 255):
        with case(f"GET_VALUES with padding of {size} bytes"), Asking(target) as asking:
            says_hello(asking, record(GET_VALUES, NULL_REQUEST_ID, MPXS, size) + asked)


def _says_hello(target: Target, data: bytes) -> bool:
    try:
        with Asking(target) as asking:
            says_hello(asking, data)
    except Failed:
        return False
    return True


@statement("4", "3.3", "What is sent has version 1 and at most 65,535 bytes of content")
def sent(target: Target) -> None:
    for size in (1, 65_535, 65_536, 1_000_000):
        with case(f"an answer of {size:,} bytes"), Asking(target) as asking:
            asking.send(target.request("/size", str(size)))
            expect_body(asking.answer(), b"x" * size)


@statement("5", "3.3", "The request id is echoed, up to 65,535")
def ids(target: Target) -> None:
    for id in (1, 2, 255, 256, 257, 32_768, 65_535):
        with case(f"id {id}"), Asking(target) as asking:
            says_hello(asking, target.request("/hello", id=id), id)
            if {one.id for one in asking.order} != {id}:
                raise Failed(asking.shown())


@statement("6", "3.3", "Records of an inactive id are ignored, BEGIN_REQUEST apart")
def inactive(target: Target) -> None:
    noise = b"".join([record(kind, 7, b"noise") for kind in (PARAMS, STDIN, DATA)])
    noise += record(STDIN, 7) + record(ABORT_REQUEST, 7)
    with case("before a request"), Asking(target) as asking:
        says_hello(asking, noise + target.request("/hello"))
        _only_for_1(asking)
    with case("within a request"), Asking(target) as asking:
        asking.send(target.head("/echo", length=10), noise, record(STDIN, 1, DIGITS[:5]), noise)
        asking.send(stream(STDIN, 1, DIGITS[5:]))
        expect_body(asking.answer(), DIGITS)
        _only_for_1(asking)
    # Of a request that is over, which a web server may be sending still.
    late = b"".join([record(kind, 1, b"late") for kind in (STDIN, DATA)])
    late += record(STDIN, 1) + record(ABORT_REQUEST, 1)
    with case("after a request"), Asking(target) as asking:
        says_hello(asking, target.request("/hello"))
        if asking.wait(lambda: asking.closed, QUIET):
            return  # which is statement 10
        asking.reply().records.clear()
        asking.send(late)
        says_hello(asking, target.request("/hello", id=2), 2)
        if asking.reply().records:
            raise Failed(asking.shown())


def _only_for_1(asking: Asking) -> None:
    if {one.id for one in asking.order} != {1}:
        raise Failed(asking.shown())


@statement(
    "7", "3.3", "A stream's value does not depend on record boundaries: a pair may straddle them"
)
def boundaries(target: Target) -> None:
    value = "v" * 300
    for cut in (1, 2, 3, 5, 50):
        with case(f"PARAMS in records of {cut} bytes"), Asking(target) as asking:
            asking.send(target.request("/param", NAME, cut=cut, more={NAME: value}))
            expect_body(asking.answer(), value.encode())
        with case(f"STDIN in records of {cut} bytes"), Asking(target) as asking:
            asking.send(target.head("/echo", length=200))
            asking.send(stream(STDIN, 1, DIGITS * 20, cut=cut))
            expect_body(asking.answer(), DIGITS * 20)


@statement("8", "3.4", "Lengths of 1 and of 4 bytes; a value of 70 kB over two records")
def lengths(target: Target) -> None:
    for size in (0, 1, 126, 127, 128, 129, 255, 256, 300, 70_000):
        with case(f"a value of {size:,} bytes"), Asking(target) as asking:
            asking.send(target.request("/param", NAME, more={NAME: "v" * size}))
            expect_body(asking.answer(), b"v" * size)
    for size in (127, 128, 300):
        name = "N" * size
        with case(f"a name of {size} bytes"), Asking(target) as asking:
            asking.send(target.request("/param", name, more={name: "value"}))
            expect_body(asking.answer(), b"value")
    with case("a short length in 4 bytes"), Asking(target) as asking:
        pair = (len(NAME) | 1 << 31).to_bytes(4, "big") + encode_length(3) + NAME.encode() + b"abc"
        block = encode(target.params("/param", NAME)) + pair
        asking.send(begin(), stream(PARAMS, 1, block), record(STDIN, 1))
        expect_body(asking.answer(), b"abc")


@statement("9", "3.5, 5.1", "Without KEEP_CONN the application closes after END_REQUEST")
def closes(target: Target) -> None:
    for path, query in (("/hello", ""), ("/size", "300000")):
        with case(path), Asking(target) as asking:
            asking.send(target.request(path, query, keep=False))
            asking.answer()
            asking.expect_end()
    with case("a request with a body"), Asking(target) as asking:
        asking.send(target.request("/echo", "", DIGITS, keep=False))
        expect_body(asking.answer(), DIGITS)
        asking.expect_end()
    with case("a refused one"), Asking(target) as asking:
        asking.send(begin(role=4242, keep=False), target.request("/hello", keep=False)[16:])
        reply = asking.reply()
        asking.wait(lambda: reply.ended or asking.closed)
        if reply.ended:  # if not, it breaks statement 20
            asking.expect_end()


@statement("10", "5.1", "With KEEP_CONN the application does not close")
def keeps(target: Target) -> None:
    with Asking(target) as asking:
        for id, path, query in ((1, "/hello", ""), (3, "/size", "300000"), (1, "/hello", "")):
            asking.reply(id).records.clear()
            asking.send(target.request(path, query, id=id))
            asking.answer(id)
        with case("a body that the application does not read"):
            asking.reply(1).records.clear()
            says_hello(asking, target.request("/hello", "", b"x" * 1000))
            says_hello(asking, target.request("/hello", id=2), 2)
