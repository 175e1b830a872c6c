"""Answers from files, by wsgi.file_wrapper."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from collections.abc import Iterable
from io import BufferedIOBase
from typing import Any

import pytest

from tests.driver_suite.kit import END, TEXT, Environ, Flag, Log, MakeServer, Start, pattern, until
from tests.raw import Raw, head


def temporary(data: bytes) -> Any:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the server closes it
    file.write(data)
    file.seek(0)
    return file


class FromFile:
    """Answers with a file of its own for each request, and counts those that were closed."""

    def __init__(self, data: bytes, headers: Any = TEXT, start_at: int = 0) -> None:
        self.data = data
        self.headers = headers
        self.start_at = start_at
        self.files: list[BufferedIOBase] = []
        self.returned = Flag()

    def __call__(self, environ: Environ, start: Start) -> Iterable[bytes]:
        start("200 OK", list(self.headers))
        if environ["PATH_INFO"] == "/hello":
            return [b"hello"]
        file = temporary(self.data)
        file.seek(self.start_at)
        self.files.append(file)
        environ["fulgate.after"](self.returned.set)
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](file, 8192)
        return wrapped

    def all_closed(self) -> bool:
        return all(file.closed for file in self.files)


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 131_056, 3_000_000])
def test_a_file_leaves_whole(make_server: MakeServer, size: int) -> None:
    app = FromFile(pattern(size))
    served = make_server(app)
    for address in (served.address, served.tcp):
        with Raw(address) as raw:
            for keep in (True, False):
                answer = raw.request("/file", keep=keep)
                assert answer.body == app.data
                assert b"Content-Length: %d\r\n" % size in answer.stdout
    until(app.all_closed, "a file is left open")


@pytest.mark.parametrize("length", [5, 500_000])
def test_a_file_leaves_from_its_position_up_to_content_length(
    make_server: MakeServer, log: Log, length: int
) -> None:
    app = FromFile(pattern(600_000), [*TEXT, ("Content-Length", str(length))], 50_000)
    served = make_server(app)
    with Raw(served.address) as raw:
        for _ in range(2):
            assert raw.request("/file").body == app.data[50_000 : 50_000 + length]
        assert raw.request("/file", REQUEST_METHOD="HEAD").body == b""


def test_a_file_that_is_cut_off_while_it_is_sent_breaks_the_answer(
    make_server: MakeServer, log: Log
) -> None:
    app = FromFile(pattern(5_000_000))
    served = make_server(app)
    for keep in (True, False):
        with Raw(served.address) as raw:
            raw.expect()
            raw.send(head("/file", keep=keep), END)
            raw.until(1, b"\r\n\r\n")
            cut_off(5_000_000, 300_000)
            with pytest.raises(EOFError):
                raw.answer()
            assert app.data.startswith(raw.reader.answers[1].body[:300_000])
            assert not raw.reader.answers[1].ended
    until(lambda: len(log.lines()) == 2, "it was not logged")
    with Raw(served.address) as raw:
        assert raw.request().body == b"hello"


def cut_off(size: int, left: int) -> None:
    """Cut off the file of that size, which the server has."""
    for name in os.listdir("/proc/self/fd"):
        # The application's descriptor is closed as soon as the driver has one of its own.
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/self/fd/{name}").st_size == size:
                os.truncate(f"/proc/self/fd/{name}", left)
                return
    raise AssertionError("no such file is open")


def test_a_peer_that_goes_within_a_file(make_server: MakeServer) -> None:
    app = FromFile(pattern(5_000_000))
    served = make_server(app)
    chance = random.Random(1)
    for _ in range(5):
        with Raw(served.address) as raw:
            raw.expect()
            raw.send(head("/file"), END)
            raw.until(1, app.data[: chance.choice((1, 100_000))])
    until(app.all_closed, "a file is left open")
    with Raw(served.address) as raw:
        assert raw.request().body == b"hello"
