"""Answers: whole, in time, and what comes after them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import pytest

from tests.driver_suite.kit import (
    END,
    TEXT,
    Environ,
    Flag,
    Log,
    MakeServer,
    Start,
    answer,
    ask,
    pattern,
    until,
)
from tests.raw import Raw, head


def test_pieces_leave_one_by_one(make_server: MakeServer) -> None:
    go = [Flag() for _ in range(3)]

    def app(environ: Environ, start: Start) -> Iterator[bytes]:
        start("200 OK", TEXT)
        for number, flag in enumerate(go):
            yield b"<%d>" % number
            flag.come()

    served = make_server(app)
    with Raw(served.address) as raw:
        raw.expect()
        raw.send(head(), END)
        for number, flag in enumerate(go):
            assert raw.until(1, b"<%d>" % number).body == b"<0><1><2>"[: 3 * number + 3]
            flag.set()
        assert raw.answer().stdout_ended


@pytest.mark.statement("4")
@pytest.mark.parametrize("piece", [7, 65_536, 1_000_003, 3 << 20])
def test_long_answers_are_whole_however_they_are_read(make_server: MakeServer, piece: int) -> None:
    data = pattern(30_000 if piece < 100 else 3 << 20)

    def app(environ: Environ, start: Start) -> Iterator[bytes]:
        start("200 OK", TEXT)
        for at in range(0, len(data), piece):
            yield data[at : at + piece]

    served = make_server(app, write_behind=300_000)
    chance = random.Random(piece)
    for address in (served.address, served.tcp):
        with Raw(address) as raw:
            for keep in (True, False):
                raw.expect()
                raw.send(head(keep=keep), END)
                while not raw.reader.answers[1].ended:
                    got = raw.socket.recv(chance.choice((100, 10_000, 65_536, 1 << 20)))
                    assert got
                    raw.reader.read(got)
                assert raw.answer().body == data


def test_a_slow_reader_costs_no_thread(make_server: MakeServer) -> None:
    data = pattern(800_000)
    served = make_server(
        lambda environ, start: answer(start, data if environ["PATH_INFO"] == "/long" else b"ok"),
        threads=1,
    )
    slow = [ask(served, "/long", keep=keep) for keep in (True, False)]
    with Raw(served.address) as raw:
        for _ in range(10):
            assert raw.request().body == b"ok"
    for one in slow:
        assert one.answer().body == data
        one.socket.close()


def test_a_reader_that_is_slower_than_that_costs_one(make_server: MakeServer) -> None:
    data = pattern(4_000_000)
    ended = Flag()

    def app(environ: Environ, start: Start) -> Iterator[bytes]:
        start("200 OK", TEXT)
        if environ["PATH_INFO"] != "/long":
            yield b"ok"
            return
        for at in range(0, len(data), 50_000):
            yield data[at : at + 50_000]
        ended.set()

    served = make_server(app, threads=2, write_behind=100_000)
    slow = ask(served, "/long")
    slow.until(1, data[:1000])
    with Raw(served.address) as raw:
        for _ in range(10):
            assert raw.request().body == b"ok"
    assert not ended.is_set()
    assert slow.answer().body == data
    assert slow.request().body == b"ok"
    slow.socket.close()


def test_an_answer_that_breaks_does_not_pass_for_whole(make_server: MakeServer, log: Log) -> None:
    def app(environ: Environ, start: Start) -> Iterator[bytes]:
        start("200 OK", TEXT)
        yield b"first"
        raise LookupError("broken")

    served = make_server(app)
    with Raw(served.address) as raw:
        raw.expect()
        raw.send(head(), END)
        raw.until(1, b"first")
        with pytest.raises(EOFError):
            raw.answer()
    until(log.tracebacks, "it was not logged")


def test_after_runs_when_the_client_has_everything(make_server: MakeServer) -> None:
    go, done = Flag(), Flag()

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        def work() -> None:
            go.come()
            done.set()

        if environ["PATH_INFO"] == "/after":
            environ["fulgate.after"](work)
            return answer(start, bytes(500_000))
        return answer(start)

    served = make_server(app, threads=2)
    with Raw(served.address) as raw:
        assert len(raw.request("/after").body) == 500_000
        for _ in range(3):  # while it is held, the connection goes on
            assert raw.request().body == b"ok\n"
        assert not done.is_set()
        go.set()
        done.come()


def test_after_waits_for_a_slow_client(make_server: MakeServer) -> None:
    ran = Flag()

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/after":
            environ["fulgate.after"](ran.set)
            return answer(start, bytes(900_000))
        return answer(start)

    served = make_server(app, threads=2)
    raw = ask(served, "/after")
    raw.until(1, b"\r\n\r\n")
    with Raw(served.address) as other:
        other.request()
        assert not ran.is_set()
    raw.answer()
    ran.come()
    raw.socket.close()
