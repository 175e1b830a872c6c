"""flup's client: a WSGI application that stands for a FastCGI application."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from fulgate import Config, Server
from fulgate.errors import ProtocolError
from fulgate.flup.client.fcgi_app import FCGIApp
from fulgate.flup.server import fcgi
from tests.apps import app
from tests.flup import serving, until
from tests.raw import Raw


@pytest.fixture
def path(folder: Path) -> Iterator[str]:
    path = folder / "s"
    with Server(app, Config(bind=(f"unix:{path}",), stderr=True)):
        yield str(path)


class Result:
    """What a WSGI server makes of one call."""

    def __init__(self, application: Any, **environ: Any) -> None:
        self.errors = environ.setdefault("wsgi.errors", io.StringIO())
        setup_testing_defaults(environ)
        self.status = ""
        self.headers: dict[str, str] = {}
        body: Iterable[bytes] = application(environ, self.start)
        self.body = b"".join(body)
        if hasattr(body, "close"):
            body.close()

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        assert isinstance(status, str)
        self.status, self.headers = status, dict(headers)


def post(body: bytes, **environ: Any) -> dict[str, Any]:
    length = str(len(body))
    given = {"REQUEST_METHOD": "POST", "CONTENT_LENGTH": length, "wsgi.input": io.BytesIO(body)}
    return {**given, **environ}


def test_a_request_goes_and_its_answer_comes(path: str) -> None:
    result = Result(FCGIApp(connect=path), PATH_INFO="/hello")
    assert (result.status, result.body) == ("200 OK", b"Hello, world!\n")
    assert result.headers["Content-Length"] == "14"


def test_over_tcp() -> None:
    with Server(app, Config(bind=("tcp:127.0.0.1:0",))) as server:
        port = int(server.endpoints[0].rpartition(":")[2])
        for place in (FCGIApp(connect=("127.0.0.1", port)), FCGIApp(host="127.0.0.1", port=port)):
            assert Result(place, PATH_INFO="/hello").body == b"Hello, world!\n"


@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
def test_bodies(path: str, size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    result = Result(FCGIApp(connect=path), **post(body, PATH_INFO="/digest"))
    facts = json.loads(result.body)
    assert facts["length"] == size
    assert facts["sha256"] == hashlib.sha256(body).hexdigest()


def test_a_body_and_an_answer_at_the_same_time(path: str) -> None:
    """The application answers while the body goes: neither waits for the other for ever."""
    body = b"x" * 20_000_000
    result = Result(FCGIApp(connect=path), **post(body, PATH_INFO="/echo"))
    assert result.body == body


def test_a_body_without_a_length(path: str) -> None:
    environ = post(b"abc", PATH_INFO="/digest")
    environ["CONTENT_LENGTH"] = ""
    assert json.loads(Result(FCGIApp(connect=path), **environ).body)["length"] == 0
    environ |= {"wsgi.input": io.BytesIO(b"abc"), "wsgi.input_terminated": True}
    assert json.loads(Result(FCGIApp(connect=path), **environ).body)["length"] == 3


def test_the_answer_is_streamed(path: str, folder: Path) -> None:
    go = folder / "go"
    environ: dict[str, Any] = {"PATH_INFO": "/stream", "QUERY_STRING": f"go={go}"}
    setup_testing_defaults(environ)
    pieces = iter(FCGIApp(connect=path)(environ, lambda *args: None))
    assert next(pieces) == b"first\n"
    go.touch()
    assert b"".join(pieces) == b"second\n"


def test_close_gives_the_request_up(path: str, folder: Path) -> None:
    report = folder / "report"
    environ: dict[str, Any] = {"PATH_INFO": "/endless", "QUERY_STRING": f"report={report}"}
    setup_testing_defaults(environ)
    answer: Any = FCGIApp(connect=path)(environ, lambda *args: None)
    assert next(iter(answer))
    answer.close()
    until(report.exists, "the application is told")


def test_the_applications_log_goes_to_wsgi_errors(path: str) -> None:
    result = Result(FCGIApp(connect=path), PATH_INFO="/errors")
    assert result.body == b"one\ntwo\n"
    assert result.errors.getvalue() == "before one\nbefore two\nthe last\n"


def test_a_redirect_and_cookies(path: str) -> None:
    result = Result(FCGIApp(connect=path), PATH_INFO="/headers")
    assert result.status == "302 Found"
    assert result.headers["Location"] == "/elsewhere?a=1"


GIVEN = {
    "REQUEST_URI": "/x",
    "HTTP_X": "1",
    "REMOTE_ADDR": "9.9.9.9",
    "AUTH_TYPE": "Basic",
    "OTHER": "o",
    "lower": "l",
    "wsgi.other": "w",
    "PATH_INFO": "/anything",
}


def test_what_is_passed_on(path: str) -> None:
    class Renaming(FCGIApp):
        _environRenames = {"lower": "UPPER"}  # noqa: RUF012  # as a program written for flup does

    seen = json.loads(Result(Renaming(connect=path), **GIVEN).body)
    assert seen["HTTP_X"] == "1"
    assert seen["AUTH_TYPE"] == "Basic"
    assert seen["UPPER"] == "l"
    assert not {"OTHER", "lower", "wsgi.other"} & seen.keys()
    seen = json.loads(Result(FCGIApp(connect=path, filterEnviron=False), **GIVEN).body)
    assert seen["OTHER"] == "o"
    assert not {"lower", "wsgi.other"} & seen.keys()


def test_it_keeps_to_pep_3333(path: str) -> None:
    environ: dict[str, Any] = {"SCRIPT_NAME": "", "PATH_INFO": "/hello", "QUERY_STRING": ""}
    setup_testing_defaults(environ)
    checked: Any = validator(FCGIApp(connect=path))
    answer = checked(environ, lambda status, headers, exc_info=None: lambda data: None)
    assert b"".join(answer) == b"Hello, world!\n"
    answer.close()


def test_an_answer_that_is_cut(path: str) -> None:
    with pytest.raises(ProtocolError):
        Result(FCGIApp(connect=path), PATH_INFO="/breaks")


def test_nobody_listens(folder: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Result(FCGIApp(connect=str(folder / "none")), PATH_INFO="/")


def test_values(path: str) -> None:
    client = FCGIApp(connect=path)
    with client._getConnection() as connection:
        assert client._fcgiGetValues(connection, ["FCGI_MPXS_CONNS"]) == {"FCGI_MPXS_CONNS": "1"}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({}, ValueError), ({"host": "x"}, ValueError), ({"command": "x"}, NotImplementedError)],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        FCGIApp(**arguments)


def test_a_proxy_of_flups_two_halves(path: str, folder: Path) -> None:
    front = str(folder / "front")
    with serving(fcgi.WSGIServer(FCGIApp(connect=path), bindAddress=front), front):
        with Raw(front) as raw:
            assert raw.request().body == b"Hello, world!\n"
            assert raw.request("/echo", body=b"abc" * 100_000).body == b"abc" * 100_000
