"""wsgi.input, wsgi.errors and wsgi.file_wrapper."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgate.errors import Aborted
from fulgate.exchange import Exchange
from fulgate.gateways.streams import Input
from fulgate.testing import call
from tests.gateway import TEXT, Environ, Memory, Start, exchange

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
