"""What flup's servers make of an application's answer, and what may be overridden of that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fulgate.flup.server import fcgi, fcgi_base, fcgi_single
from tests.apps import app
from tests.flup import serving, until
from tests.model import ABORT_REQUEST, STDIN, Answer
from tests.raw import Raw, begin, environ, head, pairs, record, stream
from tests.statements import query

Ask = Callable[..., Answer]


@pytest.fixture(params=[fcgi, fcgi_single], ids=["fcgi", "fcgi_single"])
def module(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def ask(folder: Path) -> Ask:
    """Make one request to a server; give the answer."""
    path = str(folder / "s")

    def ask(kind: Any, application: Any, *request: Any, **arguments: Any) -> Answer:
        options = arguments.pop("request", {})
        with serving(kind(application, bindAddress=path, **arguments), path), Raw(path) as raw:
            return raw.request(*request, **options)

    return ask


def shows(*names: str) -> Any:
    def application(environ: Any, start: Any) -> Any:
        start("200 OK", [("Content-Type", "text/plain")])
        return [repr([environ.get(name) for name in names]).encode()]

    return application


def test_environ_is_put_into_every_request(module: Any, ask: Ask) -> None:
    extra = {"mine": 1, "SCRIPT_NAME": "/at", "HTTPS": "on", "wsgi.version": "no"}
    names = ["mine", "SCRIPT_NAME", "wsgi.url_scheme", "wsgi.version", "PATH_INFO"]
    answer = ask(module.WSGIServer, shows(*names), "/x", environ=extra)
    assert answer.body == b"[1, '/at', 'https', (1, 0), '/x']"


@pytest.mark.parametrize("multithreaded", [True, False])
def test_multithreaded_and_multiprocess(ask: Ask, multithreaded: bool) -> None:
    answer = ask(
        fcgi.WSGIServer,
        shows("wsgi.multithread", "wsgi.multiprocess", "wsgi.run_once"),
        multithreaded=multithreaded,
        multiprocess=True,
    )
    assert answer.body == repr([multithreaded, True, False]).encode()


def test_multithreaded_false_is_one_request_at_a_time(folder: Path) -> None:
    """Also within the pieces of an answer."""
    path = str(folder / "s")
    inside: list[int] = []
    most: list[int] = []

    def application(environ: Any, start: Any) -> Iterator[bytes]:
        inside.append(1)
        most.append(len(inside))
        start("200 OK", [])
        yield b"1"
        most.append(len(inside))
        yield b"2"
        inside.pop()

    server = fcgi.WSGIServer(application, bindAddress=path, multithreaded=False)

    def one() -> None:
        with Raw(path) as raw:
            for _ in range(5):
                assert raw.request().body == b"12"

    with serving(server, path):
        threads = [threading.Thread(target=one) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert set(most) == {1}
    assert len(most) == 40
    assert not server._appLock.locked()


def test_sanitize_env_may_be_overridden(module: Any, ask: Ask) -> None:
    class Server(module.WSGIServer):  # type: ignore[misc]
        def _sanitizeEnv(self, environ: dict[str, Any]) -> None:
            super()._sanitizeEnv(environ)
            environ["PATH_INFO"] = "/changed"

    assert ask(Server, shows("PATH_INFO")).body == b"['/changed']"


# ---------------------------------------------------------------- text


def test_text_is_latin_1(module: Any, ask: Ask) -> None:
    """flup takes text for the body, and bytes for the head."""

    def application(environ: Any, start: Any) -> Any:
        write = start(b"201 Made", [(b"X-A", "b"), ("X-C", b"d")])
        write("é")
        return ["ü", b"!"]

    answer = ask(module.WSGIServer, application)
    assert answer.status == "201 Made"
    assert {b"X-A: b", b"X-C: d"} <= set(answer.head)
    assert answer.body == b"\xe9\xfc!"


def test_a_list_of_text_has_its_length(ask: Ask) -> None:
    def application(environ: Any, start: Any) -> Any:
        start("200 OK", [])
        return ["abc"]

    assert b"Content-Length: 3" in ask(fcgi.WSGIServer, application).head


def test_text_of_a_generator(ask: Ask) -> None:
    closed = []

    def application(environ: Any, start: Any) -> Iterator[str]:
        try:
            start("200 OK", [])
            yield "a"
            yield "b"
        finally:
            closed.append(True)

    assert ask(fcgi.WSGIServer, application).body == b"ab"
    assert closed == [True]


def test_close_is_called(ask: Ask) -> None:
    closed = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"x"])

        def close(self) -> None:
            closed.append(True)

    def application(environ: Any, start: Any) -> Any:
        start("200 OK", [])
        return Body()

    assert ask(fcgi.WSGIServer, application).body == b"x"
    assert closed == [True]


# ---------------------------------------------------------------- errors


def fails(environ: Any, start: Any) -> Any:
    start("200 OK", [("X-Lost", "1")])
    raise LookupError("<why>")


def fails_later(environ: Any, start: Any) -> Iterator[bytes]:
    start("200 OK", [("X-Lost", "1")])
    yield b""
    raise LookupError("<why>")


@pytest.mark.parametrize("application", [fails, fails_later])
def test_the_page_for_errors(
    module: Any, ask: Ask, application: Any, caplog: pytest.LogCaptureFixture
) -> None:
    answer = ask(module.WSGIServer, application, "/there")
    assert answer.status == "500 Internal Server Error"
    assert b"Content-Type: text/html; charset=utf-8" in answer.head
    assert b"The application failed" in answer.body
    assert b"LookupError" not in answer.body
    assert b"X-Lost" not in answer.stdout
    assert b"LookupError: <why>" in answer.stderr
    assert "GET /there: the application raised" in caplog.text
    assert "LookupError: <why>" in caplog.text


def test_debug_shows_the_traceback(module: Any, ask: Ask) -> None:
    answer = ask(module.WSGIServer, fails, debug=True)
    assert b"LookupError: &lt;why&gt;" in answer.body
    assert answer.status == "500 Internal Server Error"


def test_an_error_within_the_answer_breaks_it(module: Any, folder: Path) -> None:
    """flup ends it as if it were whole."""
    path = str(folder / "s")
    with serving(module.WSGIServer(app, bindAddress=path), path), Raw(path) as raw:
        with pytest.raises(EOFError):
            raw.request("/breaks")


def test_error_may_be_overridden(module: Any, ask: Ask) -> None:
    class Server(module.WSGIServer):  # type: ignore[misc]
        def error(self, req: Any) -> None:
            req.stdout.write("Status: 503 Sorry\r\nX-Path: ")
            req.stdout.write(req.params["PATH_INFO"].encode())
            req.stdout.write(b"\r\n\r\nnot ")
            req.stdout.writelines([b"no", "w"])
            req.stdout.flush()
            assert req.server is self
            assert not req.aborted

    answer = ask(Server, fails, "/p")
    assert answer.status == "503 Sorry"
    assert b"X-Path: /p" in answer.head
    assert answer.body == b"not now"


@pytest.mark.parametrize("wrong", ["raises", "silent", "broken"])
def test_an_error_page_that_fails(
    module: Any, ask: Ask, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Server(module.WSGIServer):  # type: ignore[misc]
        def error(self, req: Any) -> None:
            if wrong == "raises":
                raise ValueError("in error()")
            if wrong == "broken":
                req.stdout.write(b"no head\r\n\r\n")

    answer = ask(Server, fails)
    assert answer.status == "500 Internal Server Error"
    assert "the server's error() failed" in caplog.text
    assert "LookupError" in caplog.text


def test_a_client_that_went_is_no_error(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, report = str(folder / "s"), folder / "report"
    errors: list[Any] = []

    class Server(fcgi.WSGIServer):
        def error(self, req: Any) -> None:
            errors.append(req)

    with serving(Server(app, bindAddress=path), path), Raw(path) as raw:
        raw.expect()
        raw.send(head("/endless", query(report=report)), record(STDIN, 1))
        raw.until(1, b"x" * 1024)
        raw.send(record(ABORT_REQUEST, 1))
        raw.answer()
        until(report.exists, "it is told")
    assert errors == []
    assert "raised" not in caplog.text


# ---------------------------------------------------------------- handler


def test_handler_may_be_overridden(module: Any, ask: Ask) -> None:
    """A program that answers without WSGI."""

    class Server(module.WSGIServer):  # type: ignore[misc]
        def handler(self, req: Any) -> tuple[int, int]:
            body = req.stdin.read()
            req.stderr.write("to the log\n")
            req.stdout.write(b"Content-Type: text/plain\r\n\r\n" + body[::-1])
            req.stdout.close()
            assert (req.role, req.data.read()) == (fcgi_base.FCGI_RESPONDER, b"")
            return fcgi_base.FCGI_REQUEST_COMPLETE, 0

    answer = ask(Server, None, request={"body": b"abc"})
    assert answer.status == "200 OK"
    assert answer.body == b"cba"
    assert b"to the log" in answer.stderr


def test_handler_may_call_what_it_overrides(module: Any, ask: Ask) -> None:
    class Server(module.WSGIServer):  # type: ignore[misc]
        def handler(self, req: Any) -> tuple[int, int]:
            req.params["mine"] = "added"
            result: tuple[int, int] = super().handler(req)
            return result

    assert ask(Server, shows("mine")).body == b"['added']"


def test_handler_may_raise(module: Any, ask: Ask) -> None:
    class Server(module.WSGIServer):  # type: ignore[misc]
        def handler(self, req: Any) -> tuple[int, int]:
            raise LookupError("in the handler")

    answer = ask(Server, None, debug=True)
    assert answer.status == "500 Internal Server Error"
    assert b"LookupError: in the handler" in answer.body


def test_handler_may_refuse(module: Any, ask: Ask) -> None:
    class Server(module.WSGIServer):  # type: ignore[misc]
        def handler(self, req: Any) -> tuple[int, int]:
            return fcgi_base.FCGI_OVERLOADED, 0

    assert ask(Server, None).status == "503 Service Unavailable"


@pytest.mark.statement("20")
def test_other_roles_are_refused(module: Any, folder: Path) -> None:
    path = str(folder / "s")
    with serving(module.WSGIServer(app, bindAddress=path), path), Raw(path) as raw:
        raw.expect()
        raw.send(begin(role=2), stream(4, 1, pairs(environ())))
        assert raw.answer().protocol_status == fcgi_base.FCGI_UNKNOWN_ROLE
        assert raw.request().body == b"Hello, world!\n"


def test_roles_without_responder() -> None:
    with pytest.raises(ValueError, match="FCGI_RESPONDER"):
        fcgi.WSGIServer(app, roles=(fcgi_base.FCGI_AUTHORIZER,))


def test_multiplexed_is_accepted(folder: Path) -> None:
    path = str(folder / "s")
    server = fcgi.WSGIServer(app, bindAddress=path, multiplexed=True)
    with serving(server, path), Raw(path) as raw:
        assert raw.request().body == b"Hello, world!\n"


def test_an_argument_that_flup_has_not() -> None:
    with pytest.raises(TypeError, match="maxThread"):
        fcgi.WSGIServer(app, maxThread=3)


def test_fcgi_single_runs_in_the_thread_of_run(folder: Path) -> None:
    path = str(folder / "s")
    ran: list[threading.Thread] = []

    def application(environ: Any, start: Any) -> Any:
        ran.append(threading.current_thread())
        start("200 OK", [])
        return [b""]

    with serving(fcgi_single.WSGIServer(application, bindAddress=path), path) as thread:
        with Raw(path) as raw:
            raw.request()
    assert ran == [thread]
