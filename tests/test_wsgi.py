"""The WSGI gateway: PEP 3333 to the letter."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.validate import validator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgate.exchange import Buffer, Carrier, Exchange, Role
from fulgate.gateways.wsgi import WSGI
from fulgate.testing import Result, call
from tests.gateway import TEXT, Body, Environ, Memory, Start, answering, exchange, run

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
            made.params = {}  # so the driver does when it has logged the request
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
