"""`fulgate.testing`: one exchange in memory, through the real protocol and the real gateway."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.validate import validator

import pytest

import fulgate.testing
from fulgate.testing import Result, call

Environ = dict[str, Any]
Start = Callable[..., Callable[[bytes], object]]


def mirror(environ: Environ, start: Start) -> list[bytes]:
    """Answer with the environ, and with the body that came."""
    body = environ["wsgi.input"].read(-1)
    text = {name: value for name, value in environ.items() if isinstance(value, str)}
    start("200 OK", [("Content-Type", "application/json"), ("X-A", "1"), ("X-A", "2")])
    return [json.dumps({**text, "body": body.decode("latin-1")}).encode()]


def seen(*arguments: Any, **more: Any) -> dict[str, str]:
    result = call(validator(mirror), *arguments, **more)
    assert result.status == "200 OK", result.errors
    found: dict[str, str] = json.loads(result.body)
    return found


def test_plain_call() -> None:
    environ = seen()
    assert environ["REQUEST_METHOD"] == "GET"
    assert environ["REQUEST_URI"] == "/"
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("", "/")
    assert environ["QUERY_STRING"] == ""
    assert environ["HTTP_HOST"] == environ["SERVER_NAME"] == "localhost"
    assert environ["body"] == ""
    assert "CONTENT_LENGTH" not in environ
    assert "CONTENT_TYPE" not in environ


@pytest.mark.parametrize(
    ("path", "query", "uri", "info", "seen_query"),
    [
        ("/a/b", "", "/a/b", "/a/b", ""),
        ("/a?b=c", "", "/a?b=c", "/a", "b=c"),
        ("/a", "b=%20", "/a?b=%20", "/a", "b=%20"),
        ("/caf\xe9", "", "/caf%C3%A9", "/caf\xc3\xa9", ""),
        ("/caf%C3%A9%2525", "", "/caf%C3%A9%2525", "/caf\xc3\xa9%25", ""),
        ("/a b;c=d", "", "/a%20b;c=d", "/a b;c=d", ""),
    ],
)
def test_path_and_query(path: str, query: str, uri: str, info: str, seen_query: str) -> None:
    environ = seen(path=path, query=query)
    assert environ["REQUEST_URI"] == uri
    assert environ["PATH_INFO"] == info
    assert environ["QUERY_STRING"] == seen_query


def test_body_and_headers() -> None:
    headers = {"Content-Type": "text/plain", "X-Thing": "caf\xe9", "Host": "app.example"}
    environ = seen(body=b"a\nb", headers=headers)
    assert environ["REQUEST_METHOD"] == "POST"
    assert environ["CONTENT_LENGTH"] == "3"
    assert environ["CONTENT_TYPE"] == "text/plain"
    assert environ["HTTP_X_THING"] == "caf\xe9"
    assert environ["HTTP_HOST"] == "app.example"
    assert environ["body"] == "a\nb"


def test_body_in_pieces_has_no_length() -> None:
    environ = seen(body=iter([b"a", b"b" * 100_000]), method="PUT")
    assert environ["REQUEST_METHOD"] == "PUT"
    assert "CONTENT_LENGTH" not in environ
    assert environ["body"] == "a" + "b" * 100_000


def test_params_win_and_may_repeat() -> None:
    environ = seen({"SERVER_NAME": "other", "HTTPS": "on", "REMOTE_USER": "me"})
    assert environ["SERVER_NAME"] == "other"
    assert environ["wsgi.url_scheme"] == "https"
    assert environ["REMOTE_USER"] == "me"
    environ = seen([("HTTP_ACCEPT", "a"), ("HTTP_ACCEPT", "b"), ("SERVER_NAME", "x")])
    assert environ["HTTP_ACCEPT"] == "a, b"
    assert environ["SERVER_NAME"] == "x"


def test_settings_of_the_server() -> None:
    environ = seen(path="/app/x", script_name="/app")
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/app", "/x")
    environ = seen(path="/app/x", path_policy="lighttpd")
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/app/x", "")
    twice = [("X-A", "1"), ("X-A", "2")]
    assert call(mirror, headers=twice).code == 400
    assert seen(headers=twice, repeated_params="first")["HTTP_X_A"] == "1"
    assert call(mirror, body=b"123", limit_request_body=2).code == 413


def test_result() -> None:
    result = call(mirror)
    assert (result.status, result.code) == ("200 OK", 200)
    assert result["x-a"] == "1"
    assert result.get_all("X-A") == ["1", "2"]
    assert "Content-Type" in result
    assert "X-B" not in result
    with pytest.raises(KeyError):
        result["X-B"]
    assert json.loads(result.text)["PATH_INFO"] == "/"
    assert result.environ["PATH_INFO"] == "/"
    assert (result.errors, result.app_status, result.broken) == ("", 0, False)


def test_chunks_as_they_left() -> None:
    def app(environ: Environ, start: Start) -> Iterator[bytes]:
        start("200 OK", [])
        yield b"one"
        yield b"two\r\n\r\n"
        yield b"x" * 70_000

    result = call(app)
    assert result.chunks == [b"one", b"two\r\n\r\n", b"x" * 70_000]
    assert result.body == b"".join(result.chunks)


def test_an_application_that_fails() -> None:
    def app(environ: Environ, start: Start) -> list[bytes]:
        environ["wsgi.errors"].write("before\n")
        raise SystemExit(3)

    result = call(app)
    assert (result.code, result.app_status, result.broken) == (500, 3, False)
    assert result.errors.startswith("before\nTraceback")
    assert call(app, stderr=False).errors == ""


@pytest.mark.parametrize(("abort_after", "sent"), [(0, 0), (1, 1), (2, 2)])
def test_abort(abort_after: int, sent: int) -> None:
    closed = []

    def app(environ: Environ, start: Start) -> Iterator[bytes]:
        try:
            start("200 OK", [])  # raises Aborted, where nobody waits for the answer any more
            for _ in range(5):
                yield b"x"
        finally:
            closed.append(environ["fulgate.aborted"]())

    result = call(app, abort_after=abort_after)
    assert result.broken
    assert result.body == b"x" * sent
    assert result.code == (200 if sent else 0)
    assert closed == [True]


def test_abort_while_reading() -> None:
    def app(environ: Environ, start: Start) -> list[bytes]:
        try:
            environ["wsgi.input"].read(-1)
        except ConnectionError as error:
            raised.append(error)
            raise
        return []

    raised: list[ConnectionError] = []
    assert call(app, body=b"x", abort_after=0) == Result("", [], b"", [], "", 0, True, environ={})
    assert len(raised) == 1


def test_work_after_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    done: list[int] = []

    def fail() -> None:
        raise LookupError("after all")

    def app(environ: Environ, start: Start) -> list[bytes]:
        environ["fulgate.after"](fail)
        environ["fulgate.after"](lambda: done.append(1))
        start("200 OK", [])
        return [b"%d" % len(done)]

    assert call(app).body == b"0"
    assert done == [1]
    assert "LookupError: after all" in caplog.text


def test_example_of_the_documentation() -> None:
    text = fulgate.testing.__doc__ or ""
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]

    def app(environ: Environ, start: Start) -> list[bytes]:
        assert environ["REQUEST_METHOD"] == "POST"
        start("200 OK", [("Content-Type", "text/html; charset=utf-8")])
        return [environ["wsgi.input"].read(-1)]

    assert len(lines) >= 4
    exec("\n".join(lines), {"app": app})


def test_import_is_light() -> None:
    code = (
        "import sys, fulgate.testing\n"
        "print([n for n in ('asyncio', 'twisted', 'uvicorn') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
