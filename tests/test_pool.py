"""What a pool needs next, as tables: what is seen, and what is to be done."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fulgate.processes.pool import (
    Action,
    GiveUp,
    History,
    Kill,
    Policy,
    Seen,
    Spawn,
    Stop,
    decide,
    pause,
)

NOW = 1000.0


def ready(pid: int, **more: float) -> Seen:
    return replace(Seen(pid, NOW - 100 + pid, ready=True, idle_since=NOW - 1), **more)  # type: ignore[arg-type]


def brief(actions: list[Action]) -> str:
    """Write actions as "+" for Spawn, "-3" for Stop(3), "!3" for Kill(3), "give up"."""
    words = []
    for action in actions:
        match action:
            case Spawn():
                words.append("+")
            case Stop(pid):
                words.append(f"-{pid}")
            case Kill(pid):
                words.append(f"!{pid}")
            case GiveUp():
                words.append("give up")
    return " ".join(words)


STATIC = Policy(workers=2)
ROOM = {"busy": 3, "capacity": 4}  # on a loop
FULL = {"busy": 4, "capacity": 4}
TWO = [ready(1), ready(2)]


@pytest.mark.parametrize(
    ("policy", "workers", "history", "expected"),
    [
        (STATIC, [], History(), "+ +"),
        (STATIC, [ready(1)], History(), "+"),
        (STATIC, TWO, History(), ""),
        (STATIC, [*TWO, ready(3)], History(), "-3"),
        (STATIC, [*TWO, ready(3), ready(4, busy=1)], History(), "-3 -2"),
        (STATIC, [ready(1), Seen(2, NOW)], History(), ""),
        (STATIC, [ready(1), ready(2, stopping=NOW - 1)], History(), "+"),
        # reload: the new ones first, then as many old ones go as there are new ones ready
        (STATIC, TWO, History(1), "+ +"),
        (STATIC, [*TWO, Seen(3, NOW, 1), Seen(4, NOW, 1)], History(1), ""),
        (STATIC, [*TWO, ready(3, generation=1), Seen(4, NOW, 1)], History(1), "-1"),
        (STATIC, [ready(2), ready(3, generation=1), ready(4, generation=1)], History(1), "-2"),
        (STATIC, TWO, History(1, free=1), "+"),
        (STATIC, TWO, History(1, free=0), ""),
        # one that cannot be loaded costs nothing but tries
        (STATIC, TWO, History(1, failures=1, failed=NOW, ever_ready=True), ""),
        (STATIC, TWO, History(1, failures=3, failed=NOW - 0.5, ever_ready=True), "+"),
        (STATIC, [*TWO, Seen(3, NOW, 1)], History(1, 3, NOW - 5, True), ""),
        (STATIC, [], History(failures=4, failed=NOW - 0.7), ""),
        (STATIC, [], History(failures=4, failed=NOW - 0.9), "+"),
        (STATIC, [], History(failures=5, failed=NOW), "give up"),
        (STATIC, [], History(failures=99, failed=NOW - 11, ever_ready=True), "+"),
        # recycling
        (STATIC, [ready(1), ready(2, requests=9, max_requests=10)], History(), ""),
        (STATIC, [ready(1), ready(2, requests=10, max_requests=10)], History(), "+"),
        (
            STATIC,
            [ready(1), ready(2, requests=10, max_requests=10), ready(3)],
            History(),
            "-2",
        ),
        (replace(STATIC, max_age=99.5), TWO, History(), ""),
        (replace(STATIC, max_age=98.5), TWO, History(), "+"),
        (replace(STATIC, max_age=98.5), [*TWO, ready(3)], History(), "-1"),
        (replace(STATIC, max_rss=100), [ready(1, rss=99), ready(2, rss=100)], History(), "+"),
        (STATIC, [ready(1), ready(2, stuck=True)], History(), "+"),
        (STATIC, [ready(1), ready(2, stuck=True), ready(3)], History(), "-2"),
        # what does not end
        (STATIC, [*TWO, ready(3, stopping=NOW - 34)], History(), ""),
        (STATIC, [*TWO, ready(3, stopping=NOW - 36)], History(), "!3"),
        (STATIC, [*TWO, ready(3, stopping=NOW - 36, killed=True)], History(), ""),
        (STATIC, [ready(1), ready(2, dead=True)], History(), "!2 +"),
        (replace(STATIC, boot_timeout=9), [ready(1), Seen(2, NOW - 10)], History(), "!2 +"),
        (replace(STATIC, boot_timeout=11), [ready(1), Seen(2, NOW - 10)], History(), ""),
        (STATIC, TWO, History(stopping=True), "-1 -2"),
        (STATIC, [ready(1), ready(2, stopping=NOW)], History(stopping=True), "-1"),
        # an emergency
        (
            replace(STATIC, emergency_threshold=2),
            TWO,
            History(crashes=(NOW - 62, NOW - 1)),
            "",
        ),
        (
            replace(STATIC, emergency_threshold=2),
            TWO,
            History(crashes=(NOW - 59, NOW - 1)),
            "+ +",
        ),
        (  # those that have come since are the fresh start
            replace(STATIC, emergency_threshold=2),
            [*TWO, ready(3, started=NOW - 0.5), ready(4, started=NOW - 0.5)],
            History(crashes=(NOW - 59, NOW - 1)),
            "-1 -2",
        ),
        (  # and of these, too, as many have to die
            replace(STATIC, emergency_threshold=2),
            [ready(3, started=NOW - 8), ready(4, started=NOW - 1)],
            History(crashes=(NOW - 20, NOW - 10, NOW - 2)),
            "",
        ),
        (
            replace(STATIC, emergency_threshold=2),
            [ready(3, started=NOW - 8), ready(4, started=NOW - 1)],
            History(crashes=(NOW - 20, NOW - 10, NOW - 4, NOW - 2)),
            "+",
        ),
        (  # or all ends
            replace(STATIC, emergency_threshold=2, emergency_stop=True),
            TWO,
            History(crashes=(NOW - 59, NOW - 1), ever_ready=True),
            "give up",
        ),
        (
            replace(STATIC, emergency_threshold=2, emergency_stop=True),
            TWO,
            History(crashes=(NOW - 62, NOW - 1), ever_ready=True),
            "",
        ),
    ],
)
def test_static(policy: Policy, workers: list[Seen], history: History, expected: str) -> None:
    assert brief(decide(policy, workers, NOW, 0, history)) == expected


DYNAMIC = Policy("dynamic", workers=5, start=2, min_spare=1, max_spare=3)
STARTED = History(started=True)


@pytest.mark.parametrize(
    ("workers", "history", "expected"),
    [
        ([], History(), "+ +"),
        (TWO, STARTED, ""),
        ([ready(1, busy=1), ready(2, busy=3)], STARTED, "+"),
        ([ready(1, busy=1), Seen(2, NOW)], STARTED, ""),
        # what has room for more requests needs no other, and is not stopped while it runs some
        ([ready(1, **ROOM)], STARTED, ""),
        ([ready(1, **FULL)], STARTED, "+"),
        ([ready(number, **ROOM) for number in range(1, 5)], STARTED, ""),
        ([*(ready(number, **ROOM) for number in range(1, 4)), ready(4)], STARTED, "-4"),
        ([ready(n, busy=1) for n in range(5)], STARTED, ""),
        ([ready(n) for n in range(3)], STARTED, ""),
        ([ready(n, idle_since=NOW - n) for n in range(4)], STARTED, "-3"),
        ([ready(1, busy=1), ready(2, busy=1)], History(1, started=True), "+ +"),
    ],
)
def test_dynamic(workers: list[Seen], history: History, expected: str) -> None:
    assert brief(decide(DYNAMIC, workers, NOW, 0, history)) == expected


@pytest.mark.parametrize(("rate", "expected"), [(1, "+"), (2, "+ +"), (9, "+ + + +")])
def test_the_spawn_rate_bounds_how_many_come_at_once(rate: int, expected: str) -> None:
    policy = replace(DYNAMIC, workers=9, min_spare=4, max_spare=5)
    busy = [ready(1, busy=1)]
    assert brief(decide(policy, busy, NOW, 0, replace(STARTED, rate=rate))) == expected


ONDEMAND = Policy("ondemand", workers=2, idle_timeout=10)


@pytest.mark.parametrize(
    ("workers", "waiting", "generation", "expected"),
    [
        ([], 0, 0, ""),
        ([], 1, 0, "+"),
        ([Seen(1, NOW)], 1, 0, ""),
        ([ready(1, **ROOM)], 1, 0, ""),
        ([ready(1, **FULL)], 1, 0, "+"),
        ([ready(1)], 1, 0, ""),
        ([ready(1, busy=1)], 1, 0, "+"),
        ([ready(1, busy=1), ready(2, busy=1)], 1, 0, ""),
        ([ready(1, idle_since=NOW - 9)], 0, 0, ""),
        ([ready(1, idle_since=NOW - 10)], 0, 0, "-1"),
        ([ready(1, busy=1, idle_since=NOW - 99)], 0, 0, ""),
        (TWO, 0, 1, "+ -1"),
        ([ready(1), ready(3, generation=1)], 0, 1, "-1"),
    ],
)
def test_ondemand(workers: list[Seen], waiting: int, generation: int, expected: str) -> None:
    assert brief(decide(ONDEMAND, workers, NOW, waiting, History(generation))) == expected


def test_pauses_double_up_to_a_limit() -> None:
    assert [pause(n) for n in (0, 1, 2, 3)] == [0.0, 0.1, 0.2, 0.4]
    assert pause(50) == 10.0
