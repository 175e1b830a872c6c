"""The scoreboard: what is written in one process is read in another, and no sum ever shrinks."""

from __future__ import annotations

import os
import random
import signal
from time import monotonic

import pytest

from fulgate.exchange import Exchange, Role
from fulgate.processes import scoreboard
from fulgate.processes.cell import bucket
from fulgate.processes.latency import bucket_limit, percentile
from fulgate.processes.scoreboard import (
    BUCKETS,
    BUSY,
    IDLE,
    READY,
    STARTING,
    STOPPING,
    PoolScore,
    Scoreboard,
)


def exchange(uri: str = "/a?b", *, status: str = "200 OK", **params: str) -> Exchange:
    made = Exchange(1, Role.RESPONDER, True)
    made.params = {"REQUEST_METHOD": "GET", "REQUEST_URI": uri, **params}
    made.status = status
    made.sent, made.received = 5, 3
    return made


def test_a_thread_shows_what_it_runs_and_counts_what_it_ran() -> None:
    board = Scoreboard(2, 2)
    slot = board.take(1, 7)
    board.hire(1, 4711)
    cell = slot.thread()
    assert cell is not None
    cell.begin(10.0)
    assert board.workers()[0].threads[0].line == ""
    cell.tell(exchange("/" + "x" * 300, REQUEST_ID="the-id"), cell.number)
    (worker,) = board.workers()
    assert (worker.slot, worker.pid, worker.generation, worker.state) == (1, 4711, 7, STARTING)
    (thread,) = worker.threads
    assert (thread.state, thread.since, thread.served, thread.id) == (BUSY, 10.0, 1, "the-id")
    assert thread.line == ("GET /" + "x" * 300)[:160]
    assert worker.busy == 1
    for status in ("200 OK", "204 No Content", "404 Not Found", "500 Internal Server Error"):
        cell.end(exchange(status=status), 10.5)
    cell.begin(10.0)
    assert board.workers()[0].threads[0].line == ""  # what is there is another request's
    aborted, broken = exchange(status="200 OK"), exchange(status="200 OK")
    aborted.aborted = broken.broken = True
    cell.end(aborted, 10.5)
    cell.end(broken, 10.5)
    slot.become(READY)
    slot.hold(0, 5)
    slot.tell(3, 1, 9, 2, 1, 4, 2)
    (worker,) = board.workers()
    assert (worker.state, worker.connections, worker.queued, worker.busy) == (READY, 3, 1, 0)
    assert worker.rss > 1 << 20
    assert worker.threads[0].state == IDLE
    totals = worker.totals
    assert (totals.requests, totals.aborted, totals.broken, totals.errors) == (6, 1, 1, 2)
    assert totals.answers == (0, 4, 0, 1, 1)
    assert (totals.sent, totals.received, totals.busy) == (30, 18, 3.0)
    assert (totals.accepted, totals.refused, totals.dropped) == (9, 2, 1)
    assert (worker.queue_limit, totals.queue_most, totals.queue_full) == (5, 4, 2)
    assert sum(totals.latency) == 6
    assert totals.latency[bucket(0.5)] == 6


def test_a_request_without_what_web_servers_send_has_a_line_too() -> None:
    board = Scoreboard(1, 1)
    cell = board.take(0, 0).thread()
    assert cell is not None
    made = exchange()
    made.params = {"PATH_INFO": "/\u20ac\xe4"}
    cell.begin(1.0)
    cell.tell(made, cell.number)
    assert board.workers()[0].threads[0].line == "- /?\xe4"


def test_there_are_no_more_cells_than_threads() -> None:
    slot = Scoreboard(1, 2).take(0, 0)
    assert slot.thread() is not None
    assert slot.thread() is not None
    assert slot.thread() is None
    with pytest.raises(ValueError, match="no slot 2"):
        Scoreboard(1, 1).take(2, 0)


def test_what_a_worker_counted_stays_when_it_goes() -> None:
    board = Scoreboard(2, 1)
    for generation in range(3):
        slot = board.take(0, generation)
        cell = slot.thread()
        assert cell is not None
        cell.begin(1.0)
        cell.end(exchange(), 1.25)
        slot.tell(0, 0, 4, 3, 0, (7, 9, 8)[generation], 3)
        assert board.totals().requests == generation + 1
        assert board.retire(0).requests == 1
        assert board.workers() == []
        totals = board.totals()
        assert (totals.requests, totals.accepted, totals.sent) == (
            generation + 1,
            4 * generation + 4,
            5 * generation + 5,
        )
        assert (totals.queue_most, totals.queue_full) == ((7, 9, 9)[generation], 3 * generation + 3)
        assert totals.latency[bucket(0.25)] == generation + 1
        assert totals.answers[1] == generation + 1


def test_the_master_tells_of_its_pool() -> None:
    board = Scoreboard(1, 1)
    pool = PoolScore(12.5, 3, 9, 2, 1, 4, 6)
    board.publish(pool)
    assert board.pool() == pool


def test_another_process_reads_while_it_is_written() -> None:
    board = Scoreboard(1, 1)
    pid = os.fork()
    if not pid:
        try:
            cell = board.take(0, 0).thread()
            assert cell is not None
            number = 0
            while True:  # until it is killed
                number += 1
                made = exchange(f"/{number:08d}" * 4, REQUEST_ID=f"{number:08d}" * 4)
                cell.begin(float(number))
                cell.tell(made, cell.number)
                cell.end(made, number + 0.5)
        finally:
            os._exit(1)
    try:
        end = monotonic() + 20
        seen: set[int] = set()
        requests = torn = 0
        while len(seen) < 200 and monotonic() < end:
            for worker in board.workers():
                for thread in worker.threads:
                    if not thread.served:
                        continue
                    number = int(thread.id[:8])
                    whole = thread.line == "GET " + f"/{number:08d}" * 4
                    torn += not whole or thread.id != f"{number:08d}" * 4
                    seen.add(number)
                    assert thread.totals.requests >= requests
                    requests = thread.totals.requests
        assert len(seen) == 200
        assert torn == 0
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_buckets_are_in_order_without_a_gap() -> None:
    for number in range(BUCKETS - 1):
        limit = bucket_limit(number)
        assert bucket(limit) == number + 1
        assert bucket(limit * 0.999999) == number
        assert limit < bucket_limit(number + 1) <= limit * (1 + 1 / 32)
    assert bucket(0.0) == bucket(-1.0) == bucket(1e-9) == 0
    assert bucket(1e9) == BUCKETS - 1


def test_percentiles_are_those_of_the_durations() -> None:
    numbers = random.Random(5)
    durations = sorted(numbers.lognormvariate(-6, 1.5) for _ in range(20000))
    counts = [0] * BUCKETS
    for duration in durations:
        counts[bucket(duration)] += 1
    for share in (0.5, 0.9, 0.99, 0.999):
        real = durations[int(share * len(durations)) - 1]
        assert percentile(counts, share) == pytest.approx(real, rel=0.02)
    assert percentile([0] * BUCKETS, 0.99) == 0.0
    assert percentile(counts, 1.0) >= durations[-1] * 0.97


def test_nothing_is_written_beyond_a_cell() -> None:
    board = Scoreboard(3, 2)
    slot = board.take(1, 1)
    for _ in range(2):
        cell = slot.thread()
        assert cell is not None
        cell.begin(1.0)
        cell.tell(exchange("/" + "y" * 1000, REQUEST_ID="i" * 1000), cell.number)
        cell.end(exchange(), 1e9)
        cell.end(exchange(), 1.0)
    slot.tell(1, 1, 1, 1, 1)
    first, after = board.first_word(1), board.first_word(2)
    assert not any(board.words[scoreboard.HEADER_WORDS : first])
    assert not any(board.words[after:])


def test_a_worker_is_ahead_of_one_that_serves_and_has_clearly_fewer_connections() -> None:
    board = Scoreboard(3, 1)
    mine, other = board.take(0, 1), board.take(1, 1)
    mine.become(READY)
    mine.connected(40)
    assert not mine.ahead()  # nobody else serves yet
    other.become(READY)
    assert mine.ahead()
    other.connected(34)
    assert not mine.ahead()
    mine.connected(1)
    other.connected(0)
    assert not mine.ahead()
    mine.connected(2)
    assert mine.ahead()
    other.become(STOPPING)
    assert not mine.ahead()
