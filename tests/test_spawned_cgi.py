"""CGI on pipes: the protocol and its driver, with the real gateway, in one process."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from fulgate.config import Config
from fulgate.drivers.stdio import Stdio
from fulgate.errors import Aborted
from fulgate.exchange import Exchange, Limits
from fulgate.gateways.wsgi import WSGI
from fulgate.protocols.cgi import CGI

PATIENCE = 30.0
PARAMS = {"REQUEST_METHOD": "POST", "SCRIPT_NAME": "/x.cgi", "SERVER_PROTOCOL": "HTTP/1.1"}
Environ = dict[str, Any]
Start = Callable[..., Any]


class Pipes:
    """What a web server has of a CGI script: the ends of two pipes."""

    def __init__(self) -> None:
        self.stdin, self.body = os.pipe()
        self.answer, self.stdout = os.pipe()
        self.open = {self.body, self.answer}

    def close(self, fd: int) -> None:
        if fd in self.open:
            self.open.remove(fd)
            os.close(fd)

    def run(
        self, app: Any, params: dict[str, str], limits: Limits | None = None, **settings: Any
    ) -> tuple[int, Exchange]:
        protocol = CGI({**PARAMS, **params}, limits or Limits())
        config = Config(**settings)
        driver = Stdio(protocol, WSGI(app, stderr=config.stderr), config, self.stdin, self.stdout)
        return driver.run(), protocol.exchange

    def answered(self) -> bytes:
        data = b""
        while piece := os.read(self.answer, 65536):
            data += piece
        return data


@pytest.fixture
def pipes() -> Any:
    made = Pipes()
    yield made
    for fd in list(made.open):
        made.close(fd)


def echo(environ: Environ, start_response: Start) -> list[bytes]:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body]


HEAD = b"Status: 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"


@pytest.mark.parametrize(
    ("params", "sent", "end", "read"),
    [
        ({"CONTENT_LENGTH": "3"}, b"abcdef", False, b"abc"),  # no more may be read
        ({"CONTENT_LENGTH": "0"}, b"abc", False, b""),
        ({"CONTENT_LENGTH": ""}, b"abc", False, b""),
        ({}, b"abc", False, b""),
        ({"CONTENT_LENGTH": "9"}, b"abc", True, b"abc"),  # cut short
        ({"CONTENT_LENGTH": "-1"}, b"abc", True, b"abc"),
        ({"HTTP_TRANSFER_ENCODING": "chunked"}, b"abc", True, b"abc"),
    ],
)
def test_bodies(pipes: Pipes, params: dict[str, str], sent: bytes, end: bool, read: bytes) -> None:
    os.write(pipes.body, sent)
    if end:
        pipes.close(pipes.body)
    status, exchange = pipes.run(echo, params)
    assert status == 0
    assert pipes.answered() == HEAD % len(read) + read
    assert exchange.received == len(read)


def test_a_long_body_and_a_long_answer_that_wait_for_each_other(pipes: Pipes) -> None:
    body = os.urandom(1 << 20)
    os.set_blocking(pipes.stdout, False)  # as a web server may have left it

    def send() -> None:
        rest = memoryview(body)
        while rest:
            rest = rest[os.write(pipes.body, rest) :]

    got: list[bytes] = []
    threads = [
        threading.Thread(target=send),
        threading.Thread(target=lambda: got.append(pipes.answered())),
    ]
    for thread in threads:
        thread.start()
    status, _ = pipes.run(echo, {"CONTENT_LENGTH": str(len(body))})
    for thread in threads:
        thread.join(PATIENCE)
    assert status == 0
    assert got == [HEAD % len(body) + body]


@pytest.mark.parametrize(
    ("params", "end"), [({"CONTENT_LENGTH": "11"}, False), ({"CONTENT_LENGTH": "-1"}, True)]
)
def test_a_body_beyond_the_limit_is_answered_413(
    pipes: Pipes, params: dict[str, str], end: bool
) -> None:
    os.write(pipes.body, b"12345678901")
    if end:
        pipes.close(pipes.body)
    pipes.run(echo, params, Limits(body=10))
    assert pipes.answered().startswith(b"Status: 413 Content Too Large\r\n")


def test_a_body_that_does_not_come(pipes: Pipes) -> None:
    seen: list[BaseException] = []

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        try:
            return echo(environ, start_response)
        except Aborted as error:
            seen.append(error)
            raise

    status, exchange = pipes.run(app, {"CONTENT_LENGTH": "3"}, body_timeout=0.05)
    assert status == 1
    assert exchange.aborted
    assert len(seen) == 1
    assert pipes.answered() == b""


def test_a_client_that_goes(pipes: Pipes, caplog: pytest.LogCaptureFixture) -> None:
    pipes.close(pipes.answer)
    closed: list[bool] = []

    def app(environ: Environ, start_response: Start) -> Any:
        start_response("200 OK", [])
        try:
            for _ in range(3):
                yield b"x"
        finally:
            closed.append(environ["fulgate.aborted"]())

    status, exchange = pipes.run(app, {})
    assert (status, exchange.aborted, closed) == (1, True, [True])
    assert not caplog.records  # no noise: clients go


def test_an_answer_that_is_not_taken(pipes: Pipes) -> None:
    os.set_blocking(pipes.stdout, False)
    size = fcntl.fcntl(pipes.stdout, fcntl.F_GETPIPE_SZ)

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        start_response("200 OK", [])
        return [bytes(2 * size)]

    status, exchange = pipes.run(app, {}, send_timeout=0.05)
    assert (status, exchange.aborted) == (1, True)


def test_an_answer_that_breaks_off(pipes: Pipes) -> None:
    def app(environ: Environ, start_response: Start) -> Any:
        start_response("200 OK", [("Content-Length", "9")])
        yield b"abc"
        raise ValueError("a fault")

    status, exchange = pipes.run(app, {})
    assert status == 1
    assert exchange.broken
    assert pipes.answered() == b"Status: 200 OK\r\nContent-Length: 9\r\n\r\nabc"


def test_what_follows_runs_once_the_server_has_all(pipes: Pipes) -> None:
    seen: list[bytes] = []

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        environ["fulgate.after"](lambda: seen.append(pipes.answered()))
        start_response("204 No Content", [])
        return []

    assert pipes.run(app, {})[0] == 0
    assert seen == [b"Status: 204 No Content\r\n\r\n"]  # to its end: it was closed before


def test_the_exit_status_is_that_of_the_application(pipes: Pipes) -> None:
    def app(environ: Environ, start_response: Start) -> list[bytes]:
        raise SystemExit(7)

    assert pipes.run(app, {})[0] == 7
    assert pipes.answered().startswith(b"Status: 500 ")


def test_environ(pipes: Pipes) -> None:
    seen: Environ = {}

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        seen.update(environ, pairs=environ["fulgate.params"]())
        start_response("200 OK", [])
        return []

    pipes.run(app, {"HTTP_PROXY": "http://192.0.2.66", "REQUEST_URI": "/x.cgi"})
    assert (seen["SCRIPT_NAME"], seen["PATH_INFO"]) == ("/x.cgi", "")
    assert "HTTP_PROXY" not in seen
    assert ("HTTP_PROXY", "http://192.0.2.66") in seen["pairs"]
    assert "PATH_INFO" not in dict(seen["pairs"])
