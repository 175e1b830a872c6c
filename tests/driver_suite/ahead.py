"""What comes behind a body that its application does not read."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from fulgate import Aborted
from fulgate.drivers.phases import AHEAD_MOST
from tests.driver_suite.kit import (
    TEXT,
    Environ,
    Flag,
    MakeServer,
    Start,
    answer,
    pattern,
    until,
)
from tests.model import ABORT_REQUEST, PARAMS, REQUEST_COMPLETE, STDIN
from tests.raw import PATIENCE, Raw, begin, environ, head, pairs, post, record, stream

KNOWN = ["nothing", "asked", "begun"]  # of the peer's ways with a connection, before it matters


class ReadsLater:
    """/read, once `open` is set, and at `pace`; /unread, without; others are answered at once."""

    def __init__(self, pace: float = 0.0) -> None:
        self.open = Flag()
        self.inside = 0
        self.over = 0
        self.read = bytearray()
        self.raised: list[type[BaseException]] = []
        self._pace = pace

    def __call__(self, environ: Environ, start: Start) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path not in ("/read", "/unread"):
            return answer(start, path.encode())
        self.inside += 1
        try:
            until(lambda: self.open.is_set() or environ["fulgate.aborted"](), "it stays shut")
            if path == "/unread":
                return answer(start, b"unread")
            while piece := environ["wsgi.input"].read(60_000):
                self.read += piece
                time.sleep(self._pace)
            return answer(start, b"read")
        except BaseException as error:
            self.raised.append(type(error))
            raise
        finally:
            self.over += 1

    def begin(self, raw: Raw, path: str = "/read", **options: Any) -> None:
        """Have request 1 be inside."""
        inside = self.inside
        raw.expect()
        raw.send(head(path, **options))
        until(lambda: self.inside > inside, "it did not start")


def whole(id: int) -> bytes:
    return head(id=id) + record(STDIN, id)


def kept() -> list[int]:
    """Give the sizes of the files that keep what is unread, of all servers in this process."""
    sizes = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            path = os.readlink(f"/proc/self/fd/{name}")
            # Not a file in a folder of a test's that is gone.
            if os.path.basename(path).startswith("fulgate-") and path.endswith("(deleted)"):
                sizes.append(os.stat(f"/proc/self/fd/{name}").st_size)
    return sizes


def none_is_kept() -> None:
    until(lambda: not kept(), "a file is left")


def told(raw: Raw, known: str) -> None:
    """Show, or not, that several requests may come on a connection."""
    if known == "asked":
        assert raw.values(b"FCGI_MPXS_CONNS") == {b"FCGI_MPXS_CONNS": b"1"}
    elif known == "begun":
        for id in (7, 8):
            raw.expect(id)
        block = pairs(environ("/shown"))
        raw.send(begin(7), begin(8), *[record(PARAMS, id, block) for id in (7, 8)])
        raw.send(*[record(PARAMS, id) + record(STDIN, id) for id in (7, 8)])
        assert [raw.answer(id).body for id in (7, 8)] == [b"/shown"] * 2


def fill(raw: Raw, piece: bytes, true: Callable[[], bool]) -> int:
    """Send a stream as far as it goes, until that is true; give how many bytes went."""
    sent = 0
    deadline = time.monotonic() + PATIENCE
    while not (true() and not select.select([], [raw.socket], [], 0.3)[1]):
        assert time.monotonic() < deadline
        raw.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sent += raw.socket.send(piece[sent % len(piece) :])
    raw.socket.settimeout(PATIENCE)
    return sent


@pytest.mark.statement("18")
@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("over", ["unix", "tcp"])
def test_a_request_behind_a_body_that_nobody_reads_is_served(
    make_server: MakeServer, known: str, over: str
) -> None:
    reads = ReadsLater()
    served = make_server(reads, threads=3)
    data = pattern(1_000_000)
    with Raw(served.address if over == "unix" else served.tcp) as raw:
        told(raw, known)
        reads.begin(raw, **post(len(data)))
        for id in (2, 3):
            raw.expect(id)
        raw.send(stream(STDIN, 1, data), whole(2), whole(3))
        for id in (2, 3):
            assert raw.answer(id).body == b"/hello"
        assert kept() == [len(data)]
        reads.open.set()
        assert raw.answer(1).body == b"read"
        assert reads.read == data
        assert raw.request(id=4).body == b"/hello"
    none_is_kept()


@pytest.mark.statement("18")
@pytest.mark.parametrize("size", [66_000, 90_000, 98_304, 400_000])
def test_a_request_behind_a_body_that_is_not_read_yet(make_server: MakeServer, size: int) -> None:
    """The body and what is behind it are there before the application is."""
    reads = ReadsLater()
    served = make_server(reads, threads=3)
    data = pattern(size)
    with Raw(served.address) as raw:
        for id in (1, 2):
            raw.expect(id)
        raw.send(head("/read", id=1, **post(size)), stream(STDIN, 1, data), whole(2))
        assert raw.answer(2).body == b"/hello"
        reads.open.set()
        assert raw.answer(1).body == b"read"
        assert reads.read == data
    none_is_kept()


@pytest.mark.statement("18")
def test_a_request_behind_the_second_half_of_a_body(make_server: MakeServer) -> None:
    """The first half was read; nobody reads any more."""
    half, go = Flag(), Flag()
    seen: list[bytes] = []

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/read":
            return answer(start)
        seen.append(environ["wsgi.input"].read(500_000))
        half.set()
        go.come()
        seen.append(environ["wsgi.input"].read())
        return answer(start)

    served = make_server(app, threads=3)
    data = pattern(1_000_000)
    with Raw(served.address) as raw:
        for id in (1, 2):
            raw.expect(id)
        raw.send(head("/read", id=1, **post(len(data))), stream(STDIN, 1, data), whole(2))
        half.come()
        assert raw.answer(2).body == b"ok\n"
        go.set()
        assert raw.answer(1).body == b"ok\n"
    assert b"".join(seen) == data
    none_is_kept()


@pytest.mark.statement("11")
def test_a_question_behind_a_body_that_nobody_reads(make_server: MakeServer) -> None:
    reads = ReadsLater()
    served = make_server(reads, threads=2)
    data = pattern(3 * AHEAD_MOST)
    with Raw(served.address) as raw:
        reads.begin(raw, **post(len(data)))
        raw.send(stream(STDIN, 1, data[:500_000], end=False))
        assert raw.values(b"FCGI_MPXS_CONNS") == {b"FCGI_MPXS_CONNS": b"1"}
        # Now it is known that others may follow, and all of it is taken.
        raw.send(stream(STDIN, 1, data[500_000:]))
        assert raw.request(id=2).body == b"/hello"
        reads.open.set()
        assert raw.answer(1).body == b"read"
        assert reads.read == data


@pytest.mark.parametrize("over", ["unix", "tcp"])
def test_what_is_kept_of_a_body_has_an_end_where_nobody_shares(
    make_server: MakeServer, over: str
) -> None:
    """The rest waits with the peer, and comes when the application reads."""
    reads = ReadsLater()
    served = make_server(reads, threads=2)
    with Raw(served.address if over == "unix" else served.tcp) as raw:
        reads.begin(raw, **post(1 << 30))
        piece = stream(STDIN, 1, pattern(1 << 20), end=False)
        sent = fill(raw, piece, lambda: sum(kept()) > AHEAD_MOST)
        assert len(kept()) == 1
        assert sum(kept()) < AHEAD_MOST + (1 << 20)
        assert sent < 16 << 20  # that, and the buffers of both sockets
        reads.open.set()
        raw.send(piece[sent % len(piece) :], record(STDIN, 1))
        assert raw.answer(1).body == b"read"
        whole, rest = divmod(len(reads.read), 1 << 20)
        assert reads.read == pattern(1 << 20) * whole
        assert (whole, rest) == (sent // len(piece) + 1, 0)
        assert raw.request().body == b"/hello"
    none_is_kept()


def test_all_of_a_body_is_kept_where_the_connection_is_shared(make_server: MakeServer) -> None:
    reads = ReadsLater()
    served = make_server(reads, threads=2)
    data = pattern(8 * AHEAD_MOST)
    with Raw(served.address) as raw:
        told(raw, "begun")
        reads.begin(raw, **post(len(data)))
        raw.send(stream(STDIN, 1, data))
        assert raw.request(id=2).body == b"/hello"
        assert kept() == [len(data)]
        reads.open.set()
        assert raw.answer(1).body == b"read"
        assert reads.read == data
    none_is_kept()


def test_a_body_that_is_read_slowly_comes_whole(make_server: MakeServer) -> None:
    reads = ReadsLater(pace=0.15)
    served = make_server(reads, threads=2)
    data = pattern(2_000_000)
    reads.open.set()
    with Raw(served.address) as raw:
        assert raw.request("/read", body=data).body == b"read"
        assert reads.read == data
        assert raw.request().body == b"/hello"
    none_is_kept()


@pytest.mark.parametrize("kind", ["no KEEP_CONN", "not multiplexed"])
def test_nobody_looks_where_no_request_may_follow(make_server: MakeServer, kind: str) -> None:
    reads = ReadsLater()
    looks = make_server(reads, threads=3)
    other = looks if kind == "no KEEP_CONN" else make_server(reads, threads=3, multiplex=False)
    data = pattern(150_000)
    with Raw(other.address) as alone, Raw(looks.address) as raw:
        reads.begin(alone, keep=kind != "no KEEP_CONN", **post(len(data)))
        alone.send(stream(STDIN, 1, data, end=False))
        for _ in range(2):  # it was not looked behind the first by the time it was behind this one
            reads.begin(raw, **post(len(data)))
            raw.send(stream(STDIN, 1, data))
            until(kept, "it is not kept")
            assert len(kept()) == 1
            raw.send(record(ABORT_REQUEST, 1))
            raw.answer(1)
            none_is_kept()
        reads.open.set()
        alone.send(record(STDIN, 1))
        assert alone.answer().body == b"read"
        assert reads.read == data


@pytest.mark.statement("16")
@pytest.mark.parametrize("known", KNOWN)
def test_an_abort_behind_a_body_that_nobody_reads(make_server: MakeServer, known: str) -> None:
    reads = ReadsLater()
    served = make_server(reads, threads=2)
    with Raw(served.address) as raw:
        told(raw, known)
        reads.begin(raw, **post(1_000_000))
        raw.send(stream(STDIN, 1, bytes(900_000), end=False), record(ABORT_REQUEST, 1))
        ended = raw.answer(1)
        assert (ended.protocol_status, ended.stdout) == (REQUEST_COMPLETE, b"")
        until(lambda: reads.raised == [Aborted], "its read did not raise")
        none_is_kept()
        reads.open.set()
        assert raw.request("/read", id=1, body=b"abc").body == b"read"
        assert reads.read == b"abc"


@pytest.mark.statement("R5")
@pytest.mark.parametrize("behind", [True, False], ids=["behind", "alone"])
def test_a_body_that_nobody_reads_and_that_is_too_large(
    make_server: MakeServer, behind: bool
) -> None:
    reads = ReadsLater()
    served = make_server(reads, threads=3, limit_request_body=300_000, body_wait=0)
    with Raw(served.address) as raw:
        reads.begin(raw, REQUEST_METHOD="POST")
        raw.send(stream(STDIN, 1, bytes(250_000), end=False))
        if behind:
            assert raw.request(id=2).body == b"/hello"
        raw.send(stream(STDIN, 1, bytes(600_000)))
        reads.open.set()
        assert raw.answer(1).status == "413 Content Too Large"
        assert raw.request(id=1).body == b"/hello"  # the connection goes on
    none_is_kept()


@pytest.mark.parametrize(
    ("size", "over"),
    # Over TCP its end is behind all that waits with it.
    [(500_000, "unix"), (500_000, "tcp"), (3 * AHEAD_MOST, "unix")],
    ids=["near", "near-tcp", "far"],
)
def test_a_peer_that_goes_while_nobody_reads(make_server: MakeServer, size: int, over: str) -> None:
    reads = ReadsLater()
    served = make_server(reads, threads=2)
    raw = Raw(served.address if over == "unix" else served.tcp)
    reads.begin(raw, **post(1 << 30))
    if size > AHEAD_MOST:
        fill(raw, stream(STDIN, 1, bytes(size)), lambda: sum(kept()) > AHEAD_MOST)
    else:
        raw.send(stream(STDIN, 1, bytes(size)))
        until(kept, "nothing is kept")
    raw.socket.close()
    if size > AHEAD_MOST:
        reads.open.set()  # who does not receive does not hear of the end, on each driver
        until(lambda: reads.raised == [Aborted], "its read did not raise")
    until(lambda: reads.over, "the application was not told")
    none_is_kept()
    with Raw(served.address) as other:
        assert other.request().body == b"/hello"


@pytest.mark.parametrize("known", KNOWN)
def test_an_answer_without_reading(make_server: MakeServer, known: str) -> None:
    """The connection goes on, however much of the body is still to come."""
    reads = ReadsLater()
    served = make_server(reads, threads=2)
    with Raw(served.address) as raw:
        told(raw, known)
        for size in (500_000, 3 * AHEAD_MOST):
            reads.open.clear()
            reads.begin(raw, "/unread", **post(2 * size))
            part = stream(STDIN, 1, bytes(size), end=False)
            far = known == "nothing" and size > AHEAD_MOST
            if far:
                fill(raw, part, lambda: sum(kept()) > AHEAD_MOST)
            else:
                raw.send(part)
            until(kept, "nothing is kept")
            reads.open.set()
            assert raw.answer(1).body == b"unread"
            none_is_kept()
            if not far:
                raw.send(record(STDIN, 1))  # too late, and no harm
                assert raw.request(id=2).body == b"/hello"
                assert raw.request("/read", id=1, body=b"ab").body == b"read"
                assert reads.read == b"ab"
                reads.read.clear()


def test_a_body_that_stops_coming_behind_what_was_kept(make_server: MakeServer) -> None:
    reads = ReadsLater()
    served = make_server(reads, threads=2, body_timeout=0.3)
    with Raw(served.address) as raw:
        reads.begin(raw, **post(1_000_000))
        raw.send(stream(STDIN, 1, bytes(500_000), end=False))
        until(kept, "nothing is kept")
        reads.open.set()
        until(lambda: reads.raised == [Aborted], "its read did not raise")
        assert len(reads.read) > 400_000
    none_is_kept()


def test_a_peer_that_sends_all_before_it_reads(make_server: MakeServer) -> None:
    """The application answers at length meanwhile, and reads nothing."""
    go = Flag()

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/large":
            return answer(start)
        write = start("200 OK", TEXT)
        write(bytes(900_000))
        go.come()
        return [b"end"]

    served = make_server(app, threads=3)
    with Raw(served.address) as raw:
        for id in (1, 2):
            raw.expect(id)
        raw.send(head("/large", id=1, **post(1_000_000)))
        raw.send(stream(STDIN, 1, bytes(1_000_000)), whole(2))
        assert raw.answer(2).body == b"ok\n"
        go.set()
        assert raw.answer(1).body == bytes(900_000) + b"end"
    none_is_kept()


def test_a_stop_waits_for_what_is_kept(make_server: MakeServer) -> None:
    reads = ReadsLater()
    served = make_server(reads, threads=3)
    data = pattern(1_000_000)
    with Raw(served.address) as raw:
        reads.begin(raw, **post(len(data)))
        raw.send(stream(STDIN, 1, data))
        until(kept, "nothing is kept")
        clean: list[bool] = []
        thread = threading.Thread(target=lambda: clean.append(served.stop()))
        thread.start()
        reads.open.set()
        assert raw.answer(1).body == b"read"
        assert reads.read == data
        assert raw.closed()
        thread.join(PATIENCE)
        assert clean == [True]
    none_is_kept()
