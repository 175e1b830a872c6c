"""The WSGI gateway: no broken answer, whatever an application or a web server does."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from fulgate.errors import Aborted
from fulgate.gateways.head import known_names, known_statuses
from fulgate.gateways.wsgi import WSGI
from fulgate.testing import call
from tests.gateway import TEXT, Body, Environ, Memory, Start, answering, exchange, run

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

    result = call(app, headers=[("X-User", "a"), ("X-User", "b")])
    assert (result.status, result.body) == ("400 Bad Request", b"400 Bad Request\n")
    joined = call(
        answering([b"x"]), headers=[("X-User", "a"), ("X-User", "b")], repeated_params="last"
    )
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
