"""When the leader hands the lead on: the decision, by its samples."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator

import pytest

from fulgate.drivers.lead import SAMPLES_TO_BEGIN, Sample, Waiting
from fulgate.drivers.worker import Worker


def samples(
    *, ticks: int, requests: int, cpu: float = 0.0, queued: float = 0.0, polled: float = 0.0
) -> Iterator[Sample]:
    """What a thread's counters say at each tick of 5 ms, of which these parts were spent so."""
    for n in range(ticks + 1):
        yield Sample(n * 0.005, n * cpu, n * queued, n * polled, n * requests)


def decide(waiting: Waiting, found: Iterable[Sample]) -> list[bool | None]:
    return [waiting.hand_on(sample) for sample in found]


def test_requests_that_wait_at_every_tick_are_worth_a_wake_up() -> None:
    decisions = decide(Waiting(), samples(ticks=6, requests=1, cpu=0.0001))
    assert decisions == [None] * SAMPLES_TO_BEGIN + [True] * (7 - SAMPLES_TO_BEGIN)


@pytest.mark.parametrize(
    ("requests", "spent"),
    [
        (50, {"cpu": 0.0049}),  # they compute
        (5, {"cpu": 0.001, "queued": 0.0039}),  # they wait for a core
        (5, {"cpu": 0.001, "polled": 0.0039}),  # there are no more of them
        (100, {"cpu": 0.001}),  # they wait 40 us each
    ],
    ids=["compute", "core", "poll", "little"],
)
def test_other_requests_are_not(requests: int, spent: dict[str, float]) -> None:
    decisions = decide(Waiting(), samples(ticks=20, requests=requests, **spent))
    assert decisions == [None] + [False] * 20


def test_noise_passes() -> None:
    waiting = Waiting()
    quiet = list(samples(ticks=10, requests=50, cpu=0.005))
    decide(waiting, quiet)
    last = quiet[-1]
    for turn in range(1, 5):  # at every second tick something takes the core for 5 ms
        late = Sample(last.wall + 0.01 * turn, last.cpu, 0.0, 0.0, last.requests + 50 * turn)
        again = Sample(late.wall + 0.005, late.cpu + 0.005, 0.0, 0.0, late.requests + 50)
        assert waiting.hand_on(late) is None
        assert waiting.hand_on(again) is False
        last = Sample(last.wall + 0.005, again.cpu, 0.0, 0.0, last.requests + 50)


def test_a_request_that_has_not_ended_counts_too() -> None:
    decisions = decide(Waiting(), samples(ticks=SAMPLES_TO_BEGIN, requests=0))
    assert decisions[-1] is True


def test_one_sample_is_enough_to_go_on() -> None:
    waiting = Waiting()
    decide(waiting, samples(ticks=SAMPLES_TO_BEGIN, requests=1))
    waiting.forget()
    assert decide(waiting, samples(ticks=1, requests=1)) == [None, True]
    # until there was one that did not wait
    waiting.forget()
    assert decide(waiting, samples(ticks=1, requests=1, cpu=0.005)) == [None, False]
    waiting.forget()
    assert decide(waiting, samples(ticks=1, requests=1)) == [None, None]


def test_clocks_that_disagree_do_not_make_it_negative() -> None:
    waiting = Waiting()
    waiting.hand_on(Sample(0.0, 0.0, 0.0, 0.0, 0))
    assert waiting.hand_on(Sample(0.005, 0.006, 0.0, 0.0, 1)) is False
    assert waiting.per_request == 0.0


def test_samples_of_two_threads_are_not_compared() -> None:
    waiting = Waiting()
    waiting.hand_on(Sample(0.0, 0.0, 0.0, 0.0, 0))
    waiting.forget()
    assert waiting.hand_on(Sample(5.0, 0.001, 0.0, 0.0, 100)) is None
    assert waiting.per_request == 0.0


def test_a_poll_that_goes_on_is_counted() -> None:
    worker = Worker()
    worker.thread = threading.current_thread()
    try:
        before = worker.sample()
        if before is None:
            pytest.skip("the kernel does not tell")
        worker.polls_since = time.perf_counter() - 1
        sample = worker.sample()
        assert sample is not None
        assert 1 <= sample.polled - before.polled < 2
    finally:
        worker.close()
