"""The WSGI gateway: PEP 3333 to the letter, and no broken answer whatever an application does."""

from __future__ import annotations

import gc
import io
import logging
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgate.errors import Aborted
from fulgate.exchange import Buffer, Carrier, Exchange, Limits, Role
from fulgate.gateways.head import known_names, known_statuses
from fulgate.gateways.streams import Input
from fulgate.gateways.wsgi import WSGI
from fulgate.protocols.fastcgi import FastCGI, record
from fulgate.protocols.fastcgi_client import FastCGIClient
from fulgate.testing import Result, call

Environ = dict[str, Any]
Start = Callable[..., Callable[[bytes], object]]
TEXT = [("Content-Type", "text/plain")]


class Memory(Carrier):
    """Notes what a gateway asks of it; `pieces` are the body as it arrives."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.calls: list[tuple[str, bytes]] = []
        self.wire: list[bytes] = []
        self.fails_at = ""  # the call that raises Aborted
        self.on_receive: Callable[[Exchange], None] = lambda exchange: None

    def _note(self, exchange: Exchange, call: str, data: Buffer = b"") -> None:
        self.calls.append((call, bytes(data)))
        if call == self.fails_at:
            exchange.aborted = True
        if exchange.aborted:
            raise Aborted("gone")

    def receive(self, exchange: Exchange) -> bytes:
        self._note(exchange, "receive")
        self.on_receive(exchange)
        return self.pieces.pop(0) if self.pieces else b""

    def send(self, exchange: Exchange, data: Buffer) -> None:
        self._note(exchange, "send", data)
        self.wire.append(b"".join(exchange.send(data)))

    def finish(self, exchange: Exchange, data: Buffer = b"", app_status: int = 0) -> None:
        self._note(exchange, "finish", data)
        self.wire.append(b"".join(exchange.finish(data, app_status)))

    def fail(self, exchange: Exchange) -> None:
        self._note(exchange, "fail")
        self.wire.append(b"".join(exchange.fail()))

    def log(self, exchange: Exchange, text: str) -> None:
        self._note(exchange, "log", text.encode())


def exchange(**params: str) -> Exchange:
    sent = {"REQUEST_METHOD": "GET", "REQUEST_URI": "/x?y", "QUERY_STRING": "y", **params}
    protocol = FastCGI(Limits(), {})
    _, out = FastCGIClient().begin(sent.items())
    (moved,) = protocol.feed(b"".join(out) + record(5, 1))
    return moved


def run(app: Any, carrier: Memory | None = None, **params: str) -> tuple[Exchange, Memory]:
    made, carrier = exchange(**params), carrier or Memory()
    WSGI(app)(made, carrier)
    return made, carrier


class Body:
    """An iterable that notes what is done to it."""

    def __init__(self, pieces: Iterable[bytes], fail_at: int = -1) -> None:
        self.pieces = iter(pieces)
        self.given = 0
        self.closed = 0
        self.fail_at = fail_at

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self.given == self.fail_at:
            raise LookupError("in the middle")
        piece = next(self.pieces)
        self.given += 1
        return piece

    def close(self) -> None:
        self.closed += 1


def answering(body: Any, status: str = "200 OK", headers: Any = TEXT) -> Any:
    def app(environ: Environ, start: Start) -> Any:
        start(status, headers)
        return body

    return app


# The plain way


def test_one_chunk_is_one_send_with_its_length() -> None:
    for body in [b"hello"], (b"hello",):
        _, carrier = run(answering(body))
        assert carrier.calls == [("finish", b"hello")]
        assert (
            b"Status: 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
            in (carrier.wire[0])
        )


def test_small_list_is_joined_to_one_send() -> None:
    _, carrier = run(answering([b"a", b"", b"bc"]))
    assert carrier.calls == [("finish", b"abc")]
    assert b"Content-Length: 3\r\n" in carrier.wire[0]


def test_large_list_goes_piece_by_piece_with_its_length() -> None:
    pieces = [b"a" * 40000, b"b" * 40000, b"c"]
    _, carrier = run(answering(pieces))
    assert carrier.calls == [("send", pieces[0]), ("send", pieces[1]), ("finish", b"c")]
    assert b"Content-Length: 80001\r\n" in carrier.wire[0]


def test_empty_list() -> None:
    _, carrier = run(answering([]))
    assert carrier.calls == [("finish", b"")]
    assert b"Content-Length: 0\r\n" in carrier.wire[0]


def test_generator_leaves_chunk_by_chunk_from_the_first_that_is_not_empty() -> None:
    sent_before: list[bool] = []

    def app(environ: Environ, start: Start) -> Iterator[bytes]:
        start("200 OK", TEXT)
        for piece in b"", b"one", b"", b"two":
            sent_before.append(made.head_sent)
            yield piece
        sent_before.append(made.head_sent)

    made, carrier = exchange(), Memory()
    WSGI(app)(made, carrier)
    assert carrier.calls == [("send", b"one"), ("send", b"two"), ("finish", b"")]
    assert sent_before == [False, False, True, True, True]
    assert b"Content-Length" not in carrier.wire[0]


def test_start_response_may_come_with_the_first_chunk() -> None:
    def app(environ: Environ, start: Start) -> Iterator[bytes]:
        start("201 Created", TEXT)
        yield b"made"

    result = call(app)
    assert (result.status, result.body) == ("201 Created", b"made")


def test_write() -> None:
    def app(environ: Environ, start: Start) -> list[bytes]:
        write = start("200 OK", TEXT)
        write(b"")
        assert not made.head_sent
        write(b"one ")
        assert made.head_sent
        write(b"two ")
        return [b"three"]

    made, carrier = exchange(), Memory()
    WSGI(app)(made, carrier)
    assert carrier.calls == [("send", b"one "), ("send", b"two "), ("finish", b"three")]


def test_headers_stay_in_order_and_repeated() -> None:
    headers = [("Set-Cookie", "a=1"), ("X-A", "caf\xe9\t"), ("Set-Cookie", "b=2")]
    result = call(answering([b"x"], headers=headers))
    assert result.headers == [*headers, ("Content-Length", "1")]


def test_what_the_application_changes_after_start_response_is_not_sent() -> None:
    def app(environ: Environ, start: Start) -> list[bytes]:
        headers = [("X-A", "1")]
        start("200 OK", headers)
        headers.append(("X-Evil", "a\r\nb"))
        return [b"x"]

    assert call(app).headers == [("X-A", "1"), ("Content-Length", "1")]


# environ


def test_environ() -> None:
    seen: Environ = {}

    def app(environ: Environ, start: Start) -> list[bytes]:
        seen.update(environ)
        assert type(environ) is dict
        assert environ is made.params
        start("200 OK", [])
        return []

    made = exchange(HTTP_X_A="1", HTTP_PROXY="x", CONTENT_LENGTH="")
    WSGI(app, multithread=False, multiprocess=True)(made, Memory())
    assert seen["wsgi.version"] == (1, 0)
    assert seen["wsgi.url_scheme"] == "http"
    assert seen["wsgi.multithread"] is False
    assert seen["wsgi.multiprocess"] is True
    assert seen["wsgi.run_once"] is False
    assert seen["wsgi.input_terminated"] is True
    assert seen["PATH_INFO"] == "/x"
    assert "HTTP_PROXY" not in seen
    assert seen["fulgate.params"]() == [
        ("REQUEST_METHOD", "GET"),
        ("REQUEST_URI", "/x?y"),
        ("QUERY_STRING", "y"),
        ("HTTP_X_A", "1"),
        ("HTTP_PROXY", "x"),
        ("CONTENT_LENGTH", ""),
    ]


def test_params_cannot_take_the_place_of_what_the_server_says() -> None:
    def app(environ: Environ, start: Start) -> list[bytes]:
        assert environ["wsgi.version"] == (1, 0)
        assert environ["wsgi.url_scheme"] == "http"
        assert environ["wsgi.input"].read() == b""
        start("200 OK", [])
        return []

    sent = {"wsgi.version": "x", "wsgi.url_scheme": "https", "wsgi.input": "x"}
    assert call(app, sent).status == "200 OK"


def test_after_and_aborted() -> None:
    done: list[str] = []

    def app(environ: Environ, start: Start) -> list[bytes]:
        assert environ["fulgate.aborted"]() is False
        environ["fulgate.after"](lambda: done.append("one"))
        environ["fulgate.after"](lambda: done.append("two"))
        with pytest.raises(TypeError):
            environ["fulgate.after"]("three")
        start("200 OK", [])
        made.aborted = True
        assert environ["fulgate.aborted"]() is True
        made.aborted = False
        return []

    made, _ = exchange(), None
    WSGI(app)(made, Memory())
    assert made.after is not None
    assert not done  # that is for the driver, once all is sent
    for function in made.after:
        function()
    assert done == ["one", "two"]


def test_no_cycle_keeps_a_request_for_the_garbage_collector() -> None:
    class Marker:
        pass

    class Sink(Carrier):
        def receive(self, exchange: Exchange) -> bytes:
            return b""

        def finish(self, exchange: Exchange, data: Buffer = b"", app_status: int = 0) -> None:
            exchange.ended = True

    def app(environ: Environ, start: Start) -> list[bytes]:
        environ["test.marker"] = Marker()
        noted.append(weakref.ref(environ["test.marker"]))
        start("200 OK", TEXT)
        return [environ["wsgi.input"].read()]

    noted: list[Callable[[], object]] = []
    for stderr in False, True:
        gc.collect()
        gc.disable()
        try:
            made = Exchange(1, Role.RESPONDER, True)
            WSGI(app, stderr=stderr)(made, Sink())
            assert made.ended
            assert noted[-1]() is not None
            del made
            assert noted[-1]() is None
        finally:
            gc.enable()


def validated(environ: Environ, start: Start) -> Iterable[bytes]:
    """Use everything that the validator watches."""
    data = environ["wsgi.input"]
    body = data.read(1) + data.readline() + b"".join(data.readlines()) + b"".join(data)
    environ["wsgi.errors"].write("a line\n")
    environ["wsgi.errors"].writelines(["two\n", "three\n"])
    environ["wsgi.errors"].flush()
    write = start("200 OK", [("Content-Type", "text/plain")])
    write(b"<")
    return iter([body, b">"])


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"CONTENT_LENGTH": ""},
        {"CONTENT_LENGTH": "-1"},
        {"CONTENT_LENGTH": "a"},
        {"HTTP_CONTENT_LENGTH": "11", "HTTP_CONTENT_TYPE": "text/plain"},
        {"SERVER_NAME": "", "SERVER_PORT": ""},
        {"SCRIPT_NAME": "/", "REQUEST_URI": "/", "DOCUMENT_URI": "/"},
        {"SCRIPT_NAME": "/app/", "PATH_INFO": "", "REQUEST_URI": "/app/"},
        {"SCRIPT_NAME": "", "PATH_INFO": "x", "REQUEST_URI": ""},
        {"HTTPS": "on"},
        {"SERVER_SOFTWARE": "Apache", "SCRIPT_NAME": "*", "REQUEST_URI": "*"},
        {"SERVER_PROTOCOL": "", "QUERY_STRING": "a=%20"},
    ],
)
@pytest.mark.parametrize("body", [b"", b"one\ntwo\n\nx", [b"on", b"e\ntwo", b"\n\nx"]])
def test_validator_passes(params: dict[str, str], body: Any) -> None:
    result = call(validator(validated), {"REQUEST_METHOD": "PUT", **params}, body)
    text = body if isinstance(body, bytes) else b"".join(body)
    assert result.status == "200 OK", result.errors
    assert result.body == b"<" + text + b">"
    assert result.errors == "a line\ntwo\nthree\n"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "304 Not Modified", "404 No"])
def test_validator_passes_whatever_the_answer_is(method: str, status: str) -> None:
    def app(environ: Environ, start: Start) -> list[bytes]:
        start(status, [] if status[0] + status[2] in ("24", "34") else TEXT)
        return [] if method == "HEAD" else [b""]

    result = call(validator(app), method=method)
    assert (result.status, result.errors, result.broken) == (status, "", False)


# Answers without a body


@pytest.mark.parametrize("body", [[b"12345"], [b"12", b"345"], (b"x" * 99999, b"y")])
def test_head_has_the_length_but_no_body(body: Any) -> None:
    result = call(answering(body), method="HEAD")
    assert result["Content-Length"] == str(len(b"".join(body)))
    assert result.body == b""


def test_head_with_its_own_length_or_none() -> None:
    result = call(answering([], headers=[("Content-Length", "1234")]), method="HEAD")
    assert (result.headers, result.body) == ([("Content-Length", "1234")], b"")
    assert "Content-Length" not in call(answering([]), method="HEAD")
    assert "Content-Length" not in call(answering([b""]), method="HEAD")


@pytest.mark.parametrize(
    ("method", "status"),
    [("HEAD", "200 OK"), ("GET", "204 No Content"), ("GET", "304 Not Modified")],
)
def test_no_body_but_it_is_read_and_closed(method: str, status: str) -> None:
    body = Body([b"", b"one", b"two"])
    made, carrier = run(answering(body, status), REQUEST_METHOD=method)
    assert (body.given, body.closed) == (3, 1)
    assert carrier.calls == [("send", b""), ("finish", b"")]
    assert b"one" not in b"".join(carrier.wire)
    assert made.sent == 0

    body = Body([b"one"])
    result = call(answering(body, status, [("Content-Length", "3")]), method=method)
    assert result.body == b""
    assert ("Content-Length" in result) == (status[:3] != "204")
    assert not result.broken


def test_write_without_a_body_sends_the_head_alone() -> None:
    def app(environ: Environ, start: Start) -> list[bytes]:
        write = start("304 Not Modified", [])
        write(b"one")
        write(b"two")
        return []

    _, carrier = run(app)
    assert carrier.calls == [("send", b""), ("finish", b"")]


def test_switching_protocols_has_a_body() -> None:
    result = call(answering(iter([b"frame", b"frame"]), "101 Switching Protocols", []))
    assert result.chunks == [b"frame", b"frame"]
    assert "Content-Length" not in call(answering([b"x"], "101 Switching Protocols", []))


# Content-Length that is not the body's


@pytest.mark.parametrize("body", [[b"12345"], [b"1", b"2345"], iter([b"12345"])])
def test_short_body_before_anything_was_sent(body: Any, caplog: pytest.LogCaptureFixture) -> None:
    if isinstance(body, list):
        result = call(answering(body, headers=[("Content-Length", "9")]), path="/short")
        assert result.status == "500 Internal Server Error"
        assert not result.broken
    else:
        result = call(answering(body, headers=[("Content-Length", "9")]), path="/short")
        assert result.broken
    assert "GET /short HTTP/1.1: the body is 4 bytes shorter" in caplog.text
    assert "9" in caplog.text


def test_no_body_at_all_where_one_was_declared() -> None:
    result = call(answering(iter([]), headers=[("Content-Length", "9")]))
    assert (result.status, result.broken) == ("500 Internal Server Error", False)


@pytest.mark.parametrize(
    "body", [[b"12345"], [b"1", b"2", b"345"], (b"x" for x in range(9)), [b"x" * 40000] * 3]
)
def test_long_body_is_cut(body: Any, caplog: pytest.LogCaptureFixture) -> None:
    result = call(answering(body, headers=[("Content-Length", "3")]), path="/long")
    assert result.status == "200 OK"
    assert len(result.body) == 3
    assert not result.broken
    assert "GET /long HTTP/1.1: the body was cut at its Content-Length of 3 bytes" in caplog.text


def test_long_body_without_an_end_is_left() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"xx"

    body = Body(endless())
    result = call(answering(body, headers=[("Content-Length", "3")]))
    assert (result.body, body.given, body.closed) == (b"xxx", 2, 1)


def test_exact_body_in_pieces() -> None:
    result = call(answering(iter([b"12", b"", b"345"]), headers=[("Content-Length", "5")]))
    assert (result.body, result.errors, result.broken) == (b"12345", "", False)


# A head that would break the answer


BAD_HEADS: dict[str, tuple[Any, Any]] = {
    "CR in a value": ("200 OK", [("X-A", "a\rb")]),
    "LF in a value": ("200 OK", [("X-A", "a\nSet-Cookie: b")]),
    "NUL in a value": ("200 OK", [("X-A", "a\0b")]),
    "escape in a value": ("200 OK", [("X-A", "a\x1b")]),
    "DEL in a value": ("200 OK", [("X-A", "\x7f")]),
    "value outside latin-1": ("200 OK", [("X-A", "\u20ac")]),
    "value of bytes": ("200 OK", [("X-A", b"a")]),
    "value of None": ("200 OK", [("X-A", None)]),
    "value of int": ("200 OK", [("Content-Length", 5)]),
    "CR in a name": ("200 OK", [("X\rA", "a")]),
    "colon in a name": ("200 OK", [("X:A", "a")]),
    "space in a name": ("200 OK", [("X A", "a")]),
    "name outside latin-1": ("200 OK", [("X-\u20ac", "a")]),
    "name of bytes": ("200 OK", [(b"X-A", "a")]),
    "empty name": ("200 OK", [("", "a")]),
    "Status": ("200 OK", [("Status", "404 Not Found")]),
    "Connection": ("200 OK", [("Connection", "close")]),
    "Transfer-Encoding": ("200 OK", [("Transfer-Encoding", "chunked")]),
    "KEEP-ALIVE": ("200 OK", [("KEEP-ALIVE", "5")]),
    "length that is no number": ("200 OK", [("Content-Length", "5,5")]),
    "length that is negative": ("200 OK", [("Content-Length", "-1")]),
    "length that is empty": ("200 OK", [("content-length", "")]),
    "length beyond all": ("200 OK", [("Content-Length", "9" * 4000)]),
    "lengths that differ": ("200 OK", [("Content-Length", "5"), ("content-length", "6")]),
    "headers of a tuple": ("200 OK", (("X-A", "a"),)),
    "headers of None": ("200 OK", None),
    "header of three": ("200 OK", [("X-A", "a", "b")]),
    "status of bytes": (b"200 OK", []),
    "status of int": (200, []),
    "status without reason": ("200", []),
    "status without space": ("200OK", []),
    "status too short": ("20 OK", []),
    "status of 4 digits": ("2000 OK", []),
    "status below 100": ("099 OK", []),
    "status of other digits": ("\u0662\u0660\u0660 OK", []),
    "LF in the status": ("200 OK\nX-A: b", []),
    "CR at the status' end": ("200 OK\r", []),
    "space at the status' end": ("200 OK ", []),
    "status outside latin-1": ("200 \u20ac", []),
    "empty status": ("", []),
}


@pytest.mark.parametrize("name", BAD_HEADS)
@pytest.mark.parametrize("swallow", [False, True])
def test_bad_head(name: str, swallow: bool, caplog: pytest.LogCaptureFixture) -> None:
    status, headers = BAD_HEADS[name]

    def app(environ: Environ, start: Start) -> list[bytes]:
        try:
            start(status, headers)
        except (TypeError, ValueError):
            if not swallow:
                raise
        return [b"12345"]

    result = call(app, path="/bad")
    assert result.status == "500 Internal Server Error"
    assert result.body == b"500 Internal Server Error\n"
    assert "X-A" not in result
    assert "GET /bad HTTP/1.1: the application raised" in caplog.text


def test_names_and_statuses_are_remembered_only_up_to_a_limit() -> None:
    def app(environ: Environ, start: Start) -> list[bytes]:
        start("200 " + environ["QUERY_STRING"], [("X-" + environ["QUERY_STRING"], "1")])
        return []

    known = set(known_names), set(known_statuses)
    try:
        for number in range(1500):
            result = call(app, query=f"n{number}")
            assert result.headers[0] == (f"X-n{number}", "1")
            assert result.status == f"200 n{number}"
        assert len(known_names) == len(known_statuses) == 1024
    finally:
        for memory, before in (known_names, known[0]), (known_statuses, known[1]):
            for name in set(memory) - before:
                del memory[name]


def test_reason_may_be_empty() -> None:
    assert call(answering([b"x"], "299 ")).code == 299


# start_response again


def test_second_start_response_needs_exc_info() -> None:
    def app(environ: Environ, start: Start) -> list[bytes]:
        start("200 OK", TEXT)
        start("404 Not Found", TEXT)
        return [b"x"]

    result = call(app)
    assert result.status == "500 Internal Server Error"
    assert "start_response was called again without exc_info" in result.errors


def test_exc_info_replaces_a_head_that_was_not_sent() -> None:
    def app(environ: Environ, start: Start) -> list[bytes]:
        start("200 OK", [("Content-Length", "1000"), ("X-Old", "1")])
        try:
            raise LookupError("never mind")
        except LookupError:
            start("503 Later", [("X-New", "1")], sys.exc_info())
        return [b"sorry"]

    result = call(app)
    assert (result.status, result.body) == ("503 Later", b"sorry")
    assert result.headers == [("X-New", "1"), ("Content-Length", "5")]


def test_exc_info_is_raised_when_the_head_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    body = Body([])

    def app(environ: Environ, start: Start) -> Iterator[bytes]:
        start("200 OK", TEXT)
        yield b"one"
        try:
            raise LookupError("too late")
        except LookupError:
            start("500 Sorry", TEXT, sys.exc_info())
        yield b"never"

    result = call(app)
    assert (result.status, result.body, result.broken) == ("200 OK", b"one", True)
    assert "LookupError: too late" in result.errors
    assert not body.closed


# Applications that fail


def raising(error: BaseException) -> Any:
    def app(environ: Environ, start: Start) -> Any:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (LookupError("a\nb"), 1),
        (SystemExit(7), 7),
        (SystemExit(), 0),
        (SystemExit("text"), 1),
        (KeyboardInterrupt(), 1),
        (GeneratorExit(), 1),
        (MemoryError(), 1),
    ],
)
@pytest.mark.parametrize("sent", [False, True])
def test_application_raises(
    error: BaseException, status: int, sent: bool, caplog: pytest.LogCaptureFixture
) -> None:
    body = Body([b"one"])

    def app(environ: Environ, start: Start) -> Any:
        start("200 OK", [("X-Old", "1")])
        if not sent:
            raise error
        return body

    def stop() -> bytes:
        raise error

    if sent:
        body.pieces = (stop() if number else b"one" for number in range(2))
    result = call(app, path="/\x1b[2J", stderr=False)
    assert body.closed == sent
    assert result.errors == ""
    if sent:
        assert (result.status, result.body, result.broken) == ("200 OK", b"one", True)
    else:
        assert result.status == "500 Internal Server Error"
        assert result.app_status == status
        assert "X-Old" not in result
        assert not result.broken
    (logged,) = (line for line in caplog.records if line.levelno == logging.ERROR)
    assert logged.name == "fulgate"
    assert logged.getMessage() == "GET /%1B%5B2J HTTP/1.1: the application raised"
    assert logged.exc_info is not None


def test_traceback_goes_to_the_web_server_only_when_configured() -> None:
    assert call(raising(LookupError("a\x1bb")), stderr=False).errors == ""
    errors = call(raising(LookupError("a\x1bb"))).errors
    assert errors.startswith("Traceback (most recent call last):\n")
    assert "LookupError: a\\x1bb\n" in errors
    assert b"Traceback" not in call(raising(LookupError("x"))).body


@pytest.mark.parametrize(
    "result",
    [
        None, 5, "text", ["text"], [b"a", "b"], [b"a" * 70000, "b"], [None], [bytearray(b"x")],
        iter(["text"]), [b"a" * 70000, memoryview(b"b")],
    ],
)  # fmt: skip
def test_body_that_is_none(result: Any) -> None:
    answer = call(answering(result))
    assert answer.status == "500 Internal Server Error"
    assert "TypeError" in answer.errors


def test_write_of_text() -> None:
    def app(environ: Environ, start: Start) -> list[bytes]:
        start("200 OK", TEXT)("text")  # type: ignore[arg-type]
        return []

    assert call(app).status == "500 Internal Server Error"


@pytest.mark.parametrize("body", [[b"x"], [], iter([b"x"]), iter([]), [b"x" * 70000, b"y"]])
def test_start_response_never_called(body: Any) -> None:
    result = call(lambda environ, start: body)
    assert result.status == "500 Internal Server Error"
    assert "start_response was not called" in result.errors


def test_error_for_head_has_no_body() -> None:
    result = call(raising(LookupError()), method="HEAD")
    assert (result.status, result.body) == ("500 Internal Server Error", b"")


@pytest.mark.parametrize("fail_at", [0, 1, 2])
def test_close_is_called_when_iterating_fails(fail_at: int) -> None:
    body = Body([b"one", b"two", b"three"], fail_at)
    result = call(answering(body))
    assert body.closed == 1
    assert result.broken == (fail_at > 0)


def test_close_that_fails_after_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Body):
        def close(self) -> None:
            raise LookupError("in close")

    result = call(answering(Broken([b"one"])))
    assert (result.status, result.body, result.broken) == ("200 OK", b"one", False)
    assert "in close" in caplog.text


def test_close_of_a_list_like_body() -> None:
    class Pages(list[bytes]):
        closed = False

        def close(self) -> None:
            self.closed = True

    pages = Pages([b"x"])
    assert call(answering(pages)).body == b"x"
    assert pages.closed


# Aborted


@pytest.mark.parametrize("at", ["receive", "send", "finish"])
def test_abort_closes_and_is_no_noise(at: str, caplog: pytest.LogCaptureFixture) -> None:
    body = Body([b"one", b"two"])

    def app(environ: Environ, start: Start) -> Body:
        start("200 OK", TEXT)
        if at == "receive":
            body.pieces = iter([environ["wsgi.input"].read(1)])
        return body

    carrier = Memory()
    carrier.fails_at = at
    caplog.set_level(logging.INFO)
    run(app, carrier)
    assert carrier.calls[-1][0] == at
    assert not caplog.records
    assert body.closed == (at != "receive")


def test_abort_that_an_application_wraps_is_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Environ, start: Start) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            raise LookupError("the client went away") from error
        return []

    carrier = Memory()
    carrier.fails_at = "receive"
    run(app, carrier)
    assert not [line for line in caplog.records if line.levelno > logging.DEBUG]


def test_error_after_an_abort_is_still_an_error(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Environ, start: Start) -> list[bytes]:
        made.aborted = True
        raise LookupError("something else")

    made = exchange()
    carrier = Memory()
    WSGI(app)(made, carrier)
    assert "something else" in caplog.text
    assert carrier.calls == []


def test_abort_while_a_body_that_is_not_sent_goes_on() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x"
            made.aborted = True

    body = Body(endless())
    made = exchange(REQUEST_METHOD="HEAD")
    WSGI(answering(body))(made, Memory())
    assert (body.given, body.closed) == (2, 1)


def test_application_that_ignores_the_abort_is_still_cut_off() -> None:
    def app(environ: Environ, start: Start) -> list[bytes]:
        write = start("200 OK", TEXT)
        for _ in range(3):
            try:
                write(b"x")
            except Aborted:
                attempts.append(1)
        return [b"y"]

    attempts: list[int] = []
    carrier = Memory()
    carrier.fails_at = "send"
    run(app, carrier)
    assert len(attempts) == 3
    assert carrier.wire == []


# What is refused


def test_refused_by_the_repair_of_params() -> None:
    def app(environ: Environ, start: Start) -> list[bytes]:
        raise AssertionError("not to be called")

    result = call(app, headers=[("Host", "a"), ("Host", "b")])
    assert (result.status, result.body) == ("400 Bad Request", b"400 Bad Request\n")
    joined = call(answering([b"x"]), headers=[("Host", "a"), ("Host", "b")], repeated_params="last")
    assert joined.status == "200 OK"


def test_refused_by_the_protocol() -> None:
    result = call(answering([b"x"]), body=b"12345", limit_request_body=4)
    assert result.status == "413 Content Too Large"


def reading(environ: Environ, start: Start) -> list[bytes]:
    data = environ["wsgi.input"].read()
    start("200 OK", TEXT)
    return [data]


def reading_late(environ: Environ, start: Start) -> Iterator[bytes]:
    start("200 OK", TEXT)
    yield b"began"
    environ["wsgi.input"].read()


def reading_and_swallowing(environ: Environ, start: Start) -> list[bytes]:
    start("200 OK", TEXT)
    try:
        environ["wsgi.input"].read()
    except OSError:
        return [b"no matter"]
    return []


@pytest.mark.parametrize("app", [reading, reading_and_swallowing])
def test_body_limit_while_reading(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    result = call(app, body=[b"123", b"45"], limit_request_body=4)
    assert result.status == "413 Content Too Large"
    assert not result.broken
    assert [line.levelname for line in caplog.records] == ["WARNING"]
    assert "the body is longer than 4 bytes" in caplog.text


def test_body_limit_after_the_answer_began() -> None:
    result = call(reading_late, body=[b"123", b"45"], limit_request_body=4)
    assert (result.status, result.body, result.broken) == ("200 OK", b"began", True)


# wsgi.input


@pytest.mark.statement("26")
def test_body_shorter_than_content_length_can_be_told() -> None:
    def app(environ: Environ, start: Start) -> list[bytes]:
        data = environ["wsgi.input"].read()
        start("200 OK", TEXT)
        return [b"%d of %s" % (len(data), environ["CONTENT_LENGTH"].encode())]

    assert call(app, {"CONTENT_LENGTH": "10"}, [b"12", b"345"]).body == b"5 of 10"


def test_body_is_not_cut_at_content_length() -> None:
    """An upgraded connection has CONTENT_LENGTH=0 and goes on."""

    def app(environ: Environ, start: Start) -> Iterator[bytes]:
        start("101 Switching Protocols", [])
        while frame := environ["wsgi.input"].read(2):
            yield frame

    sent = {"CONTENT_LENGTH": "0", "HTTP_UPGRADE": "websocket"}
    assert call(app, sent, [b"abc", b"d", b"e"]).chunks == [b"ab", b"cd", b"e"]


sizes = st.one_of(st.none(), st.integers(-1, 12))
calls = st.lists(
    st.tuples(st.sampled_from(["read", "readline", "readlines", "next"]), sizes), max_size=12
)
bodies = st.lists(st.text("ab\n", min_size=1, max_size=9).map(str.encode), max_size=8)


@given(bodies, calls)
@settings(max_examples=400)
def test_input_reads_as_a_file_does(
    pieces: list[bytes], calls: list[tuple[str, int | None]]
) -> None:
    carrier = Memory(*pieces)
    data = Input(exchange(), carrier)
    model = io.BytesIO(b"".join(pieces))
    for name, size in [*calls, ("read", None), ("read", 5), ("readline", 5), ("readlines", 0)]:
        if name == "next":
            assert next(data, b"") == next(model, b"")
        elif size is None:
            assert getattr(data, name)() == getattr(model, name)()
        else:
            assert getattr(data, name)(size) == getattr(model, name)(size)
    assert len([1 for call, _ in carrier.calls if call == "receive"]) <= len(pieces) + 1


def test_input_takes_none_for_all() -> None:
    assert Input(exchange(), Memory(b"a\nb", b"c")).read(None) == b"a\nbc"
    assert Input(exchange(), Memory(b"a", b"b\nc")).readline(None) == b"ab\n"
    assert Input(exchange(), Memory(b"a\nb", b"c")).readlines(None) == [b"a\n", b"bc"]


def test_input_receives_no_more_than_it_needs() -> None:
    carrier = Memory(b"a\n", b"b", b"c")
    data = Input(exchange(), carrier)
    assert (data.readline(), len(carrier.pieces)) == (b"a\n", 2)
    assert (data.read(0), data.readline(0), len(carrier.pieces)) == (b"", b"", 2)
    assert (data.read(1), len(carrier.pieces)) == (b"b", 1)


@pytest.mark.parametrize("method", ["read", "readline"])
def test_input_keeps_what_came_before_an_error(method: str) -> None:
    def fail(exchange: Exchange) -> None:
        if not carrier.pieces:
            raise Aborted("gone")

    carrier = Memory(b"one", b"two", b"")
    carrier.on_receive = fail
    carrier.pieces.pop()
    data = Input(exchange(), carrier)
    assert data.read(1) == b"o"
    with pytest.raises(Aborted):
        getattr(data, method)()
    assert data.read(5) == b"netwo"


def test_input_of_one_long_line_in_many_pieces() -> None:
    pieces = [b"x" * 1000] * 5000
    data = Input(exchange(), Memory(*pieces))
    assert data.readline(10) == b"x" * 10
    assert len(data.readline()) == 5_000_000 - 10


# wsgi.errors


def test_errors_go_to_the_log_line_by_line(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Environ, start: Start) -> list[bytes]:
        errors = environ["wsgi.errors"]
        assert errors.write("one\ntw") == 6
        errors.writelines(["o\r\n", "thr"])
        errors.flush()
        errors.write("ee \x1b[2J %s caf\xe9 \u2028\n")
        errors.write("last")
        with pytest.raises(TypeError):
            errors.write(b"bytes")
        start("200 OK", [])
        return []

    result = call(app, stderr=False)
    assert result.errors == ""
    lines = [(line.name, line.getMessage()) for line in caplog.records]
    texts = ["one", "two", "thr", "ee \\x1b[2J %s caf\xe9 \\u2028", "last"]
    assert lines == [("fulgate.app", text) for text in texts]
    assert call(app).errors == "".join(text + "\n" for text in texts)


def test_errors_keep_no_endless_line(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Environ, start: Start) -> list[bytes]:
        for _ in range(200):
            environ["wsgi.errors"].write("x" * 1000)
        assert caplog.records
        start("200 OK", [])
        return []

    assert call(app, stderr=False).status == "200 OK"
    assert sum(len(line.getMessage()) for line in caplog.records) == 200_000


# wsgi.file_wrapper


@pytest.mark.parametrize("block", [(), (1000,)])
def test_file_wrapper(block: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 1000)
    files = []

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        file = path.open("rb")
        files.append(file)
        start("200 OK", [("Content-Length", "256000")])
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](file, *block)
        return wrapped

    result = call(app)
    assert result.body == path.read_bytes()
    assert files[0].closed
    assert max(map(len, result.chunks)) <= (block[0] if block else 65536)


def test_file_wrapper_of_what_cannot_be_closed() -> None:
    class File:
        def __init__(self) -> None:
            self.left = [b"one", b"two"]

        def read(self, size: int) -> bytes:
            return self.left.pop(0) if self.left else b""

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        start("200 OK", [])
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](File())
        return wrapped

    assert call(app).chunks == [b"one", b"two"]


# On the wire


@pytest.mark.statement("24")
def test_output_is_cgi_and_never_http() -> None:
    made, carrier = run(answering([b"x"], "404 Not Found"))
    assert carrier.wire[0][8:].startswith(b"Status: 404 Not Found\r\nContent-Type: text/plain\r\n")
    assert b"HTTP/1." not in carrier.wire[0]
    assert made.status == "404 Not Found"


shapes = st.lists(st.binary(max_size=5), max_size=5)


@given(shapes, st.sampled_from(["list", "tuple", "iterator", "write"]), st.integers(-1, 12),
       st.sampled_from(["GET", "HEAD"]), st.sampled_from(["200 OK", "204 No Content"]))  # fmt: skip
@settings(max_examples=400)
def test_no_shape_gives_a_broken_answer(
    pieces: list[bytes], shape: str, length: int, method: str, status: str
) -> None:
    def app(environ: Environ, start: Start) -> Any:
        write = start(status, [] if length < 0 else [("Content-Length", str(length))])
        if shape == "write":
            for piece in pieces:
                write(piece)
            return []
        return (
            tuple(pieces) if shape == "tuple" else iter(pieces) if shape == "iterator" else pieces
        )

    result: Result = call(app, method=method)
    whole = b"".join(pieces)
    if method == "HEAD" or status[:3] == "204":
        assert (result.status, result.body, result.broken) == (status, b"", False)
    elif length <= len(whole):
        assert (result.status, result.broken) == (status, False)
        assert result.body == (whole if length < 0 else whole[:length])
    elif shape in ("list", "tuple") or not whole:
        assert (result.code, result.broken) == (500, False)
    else:
        assert result.broken
    if "Content-Length" in result and method == "GET" and not result.broken:
        assert result["Content-Length"] == str(len(result.body))
