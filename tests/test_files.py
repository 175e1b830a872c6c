"""Files that the driver sends by itself: which, and how the threads driver goes about it."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from fulgate import Server
from fulgate.drivers import outbox as outbox_module
from fulgate.exchange import Exchange
from fulgate.gateways.files import Stretch, stretch
from tests.driver_suite.files import FromFile
from tests.driver_suite.kit import END, TEXT, Environ, Log, MakeServer, Start, pattern, until
from tests.gateway import run
from tests.model import ABORT_REQUEST
from tests.raw import Raw, head, post, record
from tests.test_drivers import log, make_server, poller  # noqa: F401

DATA = bytes(range(256)) * 1000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    return path


def of(file: Any) -> tuple[int, int] | None:
    part = stretch(file)
    return None if part is None else (part.offset, part.size)


def test_what_open_gives_for_bytes_is_sent_without_reading(path: Path) -> None:
    with path.open("rb") as file:
        assert stretch(file) == Stretch(file.fileno(), 0, len(DATA))
        file.read(10)  # and what it has read ahead counts as not read
        assert of(file) == (10, len(DATA) - 10)
        file.seek(len(DATA) + 5)
        assert of(file) == (len(DATA) + 5, 0)
    with path.open("rb", buffering=0) as file:
        assert of(file) == (0, len(DATA))
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(b"more")
        file.seek(0)
        assert of(file) == (0, len(DATA) + 4)
    with tempfile.NamedTemporaryFile() as file:
        file.write(DATA)
        file.seek(7)
        assert of(file) == (7, len(DATA) - 7)


def test_what_only_reading_can_tell_is_read(path: Path) -> None:
    packed = path.with_name("packed")
    packed.write_bytes(gzip.compress(DATA))

    class Own(io.FileIO):
        pass

    read, write = os.pipe()
    os.close(write)
    with (
        gzip.open(packed) as unpacked,
        io.BufferedReader(gzip.open(packed)) as buffered,
        bz2.open(path) as other,
        path.open() as text,
        Own(path) as own,
        path.open("ab") as written,
        os.fdopen(read, "rb") as pipe,
        path.open("rb") as closed,
    ):
        closed.close()
        for file in (unpacked, buffered, other, text, own, written, pipe, closed):
            assert stretch(file) is None
    assert stretch(io.BytesIO(DATA)) is None


def wrapped(file: Any, headers: Any = TEXT, status: str = "200 OK") -> Any:
    def app(environ: Environ, start: Start) -> Any:
        start(status, list(headers))
        return environ["wsgi.file_wrapper"](file)

    return app


def test_a_carrier_that_sends_no_files_is_given_what_is_read(path: Path) -> None:
    with path.open("rb") as file:
        _, carrier = run(wrapped(file))
        assert file.closed
    assert carrier.wire[0].find(b"Content-Length: %d\r\n" % len(DATA)) > 0
    assert b"".join(data for _, data in carrier.calls) == DATA


def test_a_small_file_leaves_with_its_head(path: Path) -> None:
    path.write_bytes(b"small")
    _, carrier = run(wrapped(path.open("rb")))
    assert carrier.calls == [("finish", b"small")]


def test_a_file_shorter_than_its_content_length_is_an_error(path: Path) -> None:
    headers = [*TEXT, ("Content-Length", str(len(DATA) + 1))]
    made, carrier = run(wrapped(path.open("rb"), headers))
    assert made.status.startswith("500")
    assert [call for call, _ in carrier.calls] == ["finish"]


@pytest.mark.parametrize("status", ["200 OK", "304 Not Modified"])
def test_no_body_where_none_belongs(path: Path, status: str) -> None:
    method = "HEAD" if status == "200 OK" else "GET"
    file = path.open("rb")
    made, carrier = run(wrapped(file, status=status), REQUEST_METHOD=method)
    assert file.closed
    assert carrier.calls == [("finish", b"")]
    assert (("Content-Length", str(len(DATA))) in made.headers) is (method == "HEAD")


class Plain(FromFile):
    """Wants nothing to be done after its answer."""

    def __call__(self, environ: Environ, start: Start) -> Iterable[bytes]:
        return super().__call__({**environ, "fulgate.after": lambda function: None}, start)


def slowly(served: Any, app: FromFile, path: str = "/file", **options: Any) -> Raw:
    """Ask for a file, and read no more than the beginning."""
    raw = Raw(served.address)
    raw.expect()
    raw.send(head(path, **options), END if "CONTENT_LENGTH" not in options else b"")
    raw.until(1, app.data[:100])
    until(app.all_closed, "the application still has it")
    return raw


def test_others_are_served_while_a_file_goes(make_server: MakeServer) -> None:  # noqa: F811
    app = Plain(pattern(5_000_000))
    served = make_server(app, threads=1, write_behind=1000)
    slow = [slowly(served, app, keep=keep) for keep in (True, False)]
    with Raw(served.address) as raw:
        for _ in range(10):
            assert raw.request().body == b"hello"
    for one in slow:
        assert one.answer().body == app.data
    assert slow[0].request().body == b"hello"
    assert slow[1].closed()
    for one in slow:
        one.socket.close()


@pytest.mark.parametrize("kind", ["no sendfile", "not of this file"])
def test_where_there_is_no_sendfile(
    make_server: MakeServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(outbox_module, "_sendfile", None if kind == "no sendfile" else refuse)
    app = Plain(pattern(2_000_000))
    served = make_server(app)
    with Raw(served.address) as raw:
        for _ in range(2):
            assert raw.request("/file").body == app.data


@pytest.mark.statement("15")
def test_abort_ends_a_file(make_server: MakeServer, log: Log) -> None:  # noqa: F811
    ended: list[Exchange] = []
    app = Plain(pattern(50_000_000))
    served = make_server(app, threads=1)
    served.server._driver._ended = ended.append  # type: ignore[attr-defined]
    with slowly(served, app) as raw:
        raw.send(record(ABORT_REQUEST, 1))
        answer = raw.answer()
        assert len(answer.body) < len(app.data)
        assert raw.request().body == b"hello"
    until(lambda: len(ended) == 2, "it was not logged")
    assert ended[0].aborted


def test_a_body_that_nobody_reads_does_not_pile_up(make_server: MakeServer) -> None:  # noqa: F811
    ended: list[Exchange] = []
    app = Plain(pattern(5_000_000))
    served = make_server(app, body_wait=0)
    served.server._driver._ended = ended.append  # type: ignore[attr-defined]
    with slowly(served, app, **post(3_000_000)) as raw:
        raw.send(*(record(5, 1, bytes(60_000)) for _ in range(50)), END)
        assert raw.answer().body == app.data
        assert raw.request().body == b"hello"
    until(lambda: len(ended) == 2, "it was not logged")
    assert ended[0].received == 3_000_000
    assert ended[0].body_size == 0


def test_a_stop_lets_a_file_leave(make_server: MakeServer) -> None:  # noqa: F811
    app = Plain(pattern(5_000_000))
    served = make_server(app)
    with slowly(served, app) as raw:
        results: list[bool] = []
        stopper = threading.Thread(target=lambda: results.append(served.stop()))
        stopper.start()
        assert raw.answer().body == app.data
        stopper.join()
        assert results == [True]


def test_a_client_that_does_not_read_its_file_is_closed(
    make_server: MakeServer,  # noqa: F811
    log: Log,  # noqa: F811
) -> None:
    app = Plain(pattern(5_000_000))
    served = make_server(app, send_timeout=0.2)
    with slowly(served, app):
        until(log.lines, "it is still open")
    assert "did not read the answer in time" in log.lines()[0]


def test_work_after_the_answer_waits_for_the_file(make_server: MakeServer) -> None:  # noqa: F811
    app = FromFile(pattern(5_000_000))
    served = make_server(app, threads=2)
    with slowly(served, app) as raw:
        assert not app.returned.is_set()
        assert raw.answer().body == app.data
        app.returned.come()


def test_a_line_for_a_file_is_logged_once_it_has_left(tmp_path: Path) -> None:
    access = tmp_path / "access"
    app = Plain(pattern(5_000_000))
    with Server(app, bind=(f"unix:{tmp_path}/s",), access_logfile=str(access)) as server:
        assert server.endpoints

        class At:
            address = f"{tmp_path}/s"

        with slowly(At, app) as raw:
            assert access.read_text() == ""
            raw.answer()
            until(access.read_text, "no line")
    (line,) = access.read_text().splitlines()
    assert '"GET /file HTTP/1.1" 200 5000000' in line
    assert line.endswith("ok")
