"""Answers: statements 21 to 26."""

from __future__ import annotations

from fulgate.conform.asking import Asking, Reply, expect_body, says_hello
from fulgate.conform.statements import Failed, case, statement
from fulgate.conform.streams import quiet
from fulgate.conform.target import HELLO, Target, begin, encode
from fulgate.protocols.fastcgi_records import END_REQUEST, PARAMS, STDERR, STDIN, STDOUT, record

__all__: list[str] = []

LOGGED = b"a line for the log"
STATUS = 7


@statement(
    "21",
    "6.1",
    "A STDOUT stream is always closed by an empty record, refusals, aborts and broken answers"
    " apart",
)
def stdout_is_closed(target: Target) -> None:
    for method, path, query in (
        ("GET", "/hello", ""),
        ("HEAD", "/hello", ""),
        ("GET", "/size", "0"),
        ("GET", "/size", "200000"),
        ("GET", "/redirect", ""),
    ):
        with case(f"{method} {path}"), Asking(target) as asking:
            asking.send(target.request(path, query, more={"REQUEST_METHOD": method}))
            records = asking.answer().records
            stdout = [one.content for one in records if one.kind == STDOUT]
            if not stdout or stdout[-1]:
                raise Failed("END_REQUEST came before an empty record of STDOUT")
            if b"" in stdout[:-1]:
                raise Failed("more of STDOUT came after the empty record that closes it")
            if records[-1].kind != END_REQUEST:
                raise Failed(f"{records[-1].name} came after END_REQUEST")


@statement(
    "22",
    "6.1",
    "STDERR may interleave with STDOUT; without errors there is none, or one empty record",
)
def stderr(target: Target) -> str:
    with case("/hello"), Asking(target) as asking:
        reply = says_hello(asking, target.request("/hello"))
        empty = [one for one in reply.records if one.kind == STDERR]
        if reply.stderr or len(empty) > 1:
            raise Failed(f"{len(empty)} records of STDERR, {reply.stderr[:40]!r}")
    with case("/stderr"), Asking(target) as asking:
        reply = says_hello(asking, target.request("/stderr"))
        if reply.stderr and LOGGED not in reply.stderr:
            raise Failed(f"STDERR is {reply.stderr[:60]!r}")
        return "" if reply.stderr else "what the application logs goes elsewhere"


@statement(
    "23",
    "6.2",
    "The answer may start, and end, before STDIN has ended; never before PARAMS has",
)
def before_stdin_ends(target: Target) -> None:
    with case("before the end of PARAMS"), Asking(target) as asking:
        asking.send(begin(), record(PARAMS, 1, encode(target.params("/hello"))))
        quiet(asking)
        says_hello(asking, record(PARAMS, 1) + record(STDIN, 1))
    with case("its start within STDIN"), Asking(target) as asking:
        asking.send(target.head("/hold", length=200_000), record(STDIN, 1, b"abc"))
        if not asking.wait(lambda: b"first" in asking.reply().stdout):
            raise Failed(f"the application wrote at once, and {asking.shown()}")
    with case("its end within STDIN"), Asking(target) as asking:
        says_hello(asking, target.head("/hello", length=200_000) + record(STDIN, 1, b"abc"))
    with case("its end before STDIN"), Asking(target) as asking:
        says_hello(asking, target.head("/hello", length=200_000))


@statement("24", "6.1", "Output is CGI (Status, Location, headers), never HTTP/1.x of its own")
def output_is_cgi(target: Target) -> None:
    with case("/hello"), Asking(target) as asking:
        asking.send(target.request("/hello"))
        reply = asking.answer()
        _is_cgi(reply.stdout)
        _is_head(reply)
        expect_body(reply, HELLO)
    with case("/redirect"), Asking(target) as asking:
        asking.send(target.request("/redirect"))
        reply = asking.answer()
        _is_cgi(reply.stdout)
        if reply.status != 302 or reply.header(b"location") != b"http://localhost/elsewhere?a=1":
            raise Failed(f"the head is {b' | '.join(reply.head)!r}")


def _is_cgi(stdout: bytes) -> None:
    if stdout[:5].upper() == b"HTTP/":
        raise Failed(f"the answer begins with {stdout[:40]!r}")


def _is_head(reply: Reply) -> None:
    """RFC 3875, section 6: fields alone, and the type of what follows them."""
    if wrong := [line for line in reply.head if not line.partition(b":")[1]]:
        raise Failed(f"the head has {wrong[0][:40]!r}")
    if not (reply.header(b"content-type") or b"").startswith(b"text/plain"):
        raise Failed(f"there is no Content-Type: text/plain in {b' | '.join(reply.head)!r}")


@statement("25", "6.2", "appStatus carries the application's exit status")
def app_status(target: Target) -> None:
    with case("/hello"), Asking(target) as asking:
        if found := says_hello(asking, target.request("/hello")).app_status:
            raise Failed(f"appStatus is {found}, and not 0")
    with case("/exit"), Asking(target) as asking:
        asking.send(target.request("/exit", str(STATUS)))
        found = asking.answer().app_status
        if found != STATUS:
            raise Failed(f"appStatus is {found}, and not {STATUS}")


@statement("26", "6.2", "A body shorter than CONTENT_LENGTH can be told by the application")
def short_body(target: Target) -> None:
    for length in (20, 200_000):
        with case(f"10 bytes of {length:,}"), Asking(target) as asking:
            asking.send(target.head("/length", length=length), record(STDIN, 1, b"0123456789"))
            asking.send(record(STDIN, 1))
            reply = asking.answer()
            if reply.body != f"? of {length}\n".encode():  # an error told it, and not the end
                expect_body(reply, f"10 of {length}\n".encode())
