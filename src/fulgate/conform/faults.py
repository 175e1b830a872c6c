"""What no web server should send, and what a server makes of it: statement 30, R1 to R4."""

from __future__ import annotations

from fulgate.conform.asking import Asking
from fulgate.conform.spawned import spawned
from fulgate.conform.statements import Failed, case, statement
from fulgate.conform.target import HELLO, Target, begin, encode, stream
from fulgate.protocols.fastcgi_records import BEGIN_REQUEST, PARAMS, STDIN, record

__all__: list[str] = []

NAME = "CONFORM_VALUE"


def _rest(target: Target, malformed: bytes = b"") -> bytes:
    """Give what follows a BEGIN_REQUEST: a whole request, to which an answer would come."""
    block = encode(target.params("/param", NAME)) + malformed
    return stream(PARAMS, 1, block) + record(STDIN, 1)


def _version(data: bytes, version: int) -> bytes:
    return bytes([version]) + data[1:]


def _closes(target: Target, data: bytes) -> None:
    """Send it; the connection is to be closed, without an answer of the application."""
    with Asking(target) as asking:
        asking.send(data)
        reply = asking.reply()
        asking.wait(lambda: reply.ended or asking.closed)
        if reply.stdout:
            raise Failed(f"the application answered: {reply.stdout[-60:]!r}")
        if not asking.closed:
            asking.expect_end()


@statement("30", "7", "Protocol errors are logged here, not shown to the client")
def logged(target: Target) -> str:
    errors = {
        "a malformed pair": begin() + _rest(target, b"\4\0NAM"),
        "version 2": _version(begin(), 2) + target.request("/hello"),
        "a short BEGIN_REQUEST": record(BEGIN_REQUEST, 1, b"\0\1"),
    }
    closed: list[str] = []
    for name, data in errors.items():
        with case(name), Asking(target) as asking:
            asking.send(data)
            reply = asking.reply()
            asking.wait(lambda: reply.ended or asking.closed, min(target.timeout, 1.0))  # noqa: B023
            # One that takes no notice of the error answers as if there were none.
            if reply.body not in (b"", HELLO) or (reply.stdout and not reply.head):
                raise Failed(f"the client is shown {reply.stdout[-60:]!r}")
            if asking.closed and not reply.ended:
                closed.append(name)
    if not target.spawn:
        return "whether they are logged was not looked at: no --spawn"
    if not closed:
        return "nothing was taken for an error"
    with spawned(target) as server:
        for name in closed:
            with case(name), Asking(target, server.address) as asking:
                before = server.log()
                asking.send(errors[name])
                asking.expect_end()
                if not server.logs_more_than(before):
                    raise Failed(
                        "the connection was closed, and nothing was written to standard error"
                    )
    return ""


@statement(
    "R1", "", "A BEGIN_REQUEST of the wrong length closes the connection, and never hangs it"
)
def begin_length(target: Target) -> None:
    for content in (b"", b"\0\1\1\0\0\0\0", b"\0\1\1\0\0\0\0\0\0"):
        with case(f"{len(content)} bytes"):
            _closes(target, record(BEGIN_REQUEST, 1, content) + _rest(target))


@statement("R2", "", "A version other than 1 closes the connection")
def version(target: Target) -> None:
    for number in (0, 2, 255):
        with case(f"BEGIN_REQUEST of version {number}"):
            _closes(target, _version(begin(), number) + _rest(target))
    with case("STDIN of version 2"):
        _closes(target, target.head("/echo", length=3) + _version(stream(STDIN, 1, b"abc"), 2))


@statement("R3", "", "A malformed pair is an error, and no parameter is invented")
def malformed(target: Target) -> None:
    name = NAME.encode()
    for text, pair in {
        "a value that is cut short": bytes([len(name), 50]) + name + b"invented",
        "a name that is cut short": bytes([50, 0]) + name,
        "one length": bytes([len(name)]),
        "a long length that is cut short": bytes([len(name)]) + b"\x80\0\0",
        "a length of 2 GiB": b"\xff\xff\xff\xff\1" + name,
    }.items():
        with case(text):
            _closes_or_refuses(target, begin() + _rest(target, pair))


def _closes_or_refuses(target: Target, data: bytes) -> None:
    with Asking(target) as asking:
        asking.send(data)
        reply = asking.reply()
        asking.wait(lambda: reply.ended or asking.closed)
        if 200 <= reply.status < 400:
            raise Failed(f"the application answered: {reply.body[:40]!r}")
        if not (asking.closed or reply.ended):
            raise Failed(f"it neither answered nor closed within {target.timeout:g} s")


@statement("R4", "", "BEGIN_REQUEST on an active id is an error")
def active(target: Target) -> None:
    with case("before PARAMS"), Asking(target) as asking:
        asking.send(begin(), begin(), _rest(target))
        _is_refused_or_closed(asking)
    with case("within STDIN"), Asking(target) as asking:
        asking.send(target.head("/echo", length=10), record(STDIN, 1, b"01234"))
        asking.send(begin(), stream(STDIN, 1, b"56789"))
        _is_refused_or_closed(asking)


def _is_refused_or_closed(asking: Asking) -> None:
    reply = asking.reply()
    asking.wait(lambda: reply.ended or asking.closed)
    if reply.ended and not reply.protocol_status:
        raise Failed(f"the application answered: {reply.stdout[-60:]!r}")
    if not reply.ended and not asking.closed:
        raise Failed(f"it was not closed within {asking.timeout:g} s; {asking.shown()}")
