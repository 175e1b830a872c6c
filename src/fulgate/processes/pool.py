"""What a pool of workers needs next: a pure decision, on what was seen of it.

`decide` is asked whenever something has changed, and about once a second. It keeps nothing: what
must be remembered is in `History`, which the master brings up to date.

A worker is *fresh* when it is meant to stay, and *spent* when it is to be replaced: it is of a
generation before the last reload, or too old, too big, has answered enough requests, or has one
that does not end. What is spent serves on until as many fresh ones are ready as there have to be.
So an application that cannot be loaded any more costs nobody his answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Action", "GiveUp", "History", "Kill", "Policy", "Seen", "Spawn", "Stop", "decide"]

FIRST_PAUSE = 0.1  # seconds before another try, after a worker that did not get ready; doubles
LONGEST_PAUSE = 10.0
PATIENCE = 5.0  # seconds beyond the time that a worker has for its end


@dataclass(frozen=True, slots=True)
class Policy:
    """How many workers there are to be, and how long each lives. 0 means no limit.

    `mode` is static, dynamic or ondemand, as PHP-FPM's pm.
    """

    mode: str = "static"
    workers: int = 1  # all there are in static mode, else the most there may be
    start: int = 1  # dynamic: so many at first
    min_spare: int = 1  # dynamic: spawn when fewer are idle
    max_spare: int = 1  # dynamic: stop one when more are idle
    spawn_rate: int = 32  # dynamic: the most that are spawned in a second
    idle_timeout: float = 10.0  # ondemand: seconds after which an idle one goes
    max_age: float = 0.0  # seconds
    max_rss: int = 0  # bytes
    graceful_timeout: float = 30.0  # seconds for a worker that was told to stop
    boot_timeout: float = 0.0  # seconds for a worker to get ready
    give_up_after: int = 5  # workers one after the other that did not get ready, before any did
    emergency_threshold: int = 0  # so many crashes...
    emergency_interval: float = 60.0  # ... within so many seconds replace all workers,
    emergency_stop: bool = False  # or end the master


@dataclass(frozen=True, slots=True)
class Seen:
    """A worker, as the master sees it. Times are of the same clock as `now`."""

    pid: int
    started: float
    generation: int = 0
    ready: bool = False
    stopping: float = 0.0  # when it was told to stop; 0 if it was not
    busy: int = 0  # requests that run
    capacity: int = 1  # so many make it full
    idle_since: float = 0.0
    requests: int = 0
    max_requests: int = 0  # its own limit, with jitter; 0 for none
    rss: int = 0
    stuck: bool = False  # a request of it did not end in time
    dead: bool = False  # it holds its interpreter and cannot be told anything
    killed: bool = False

    @property
    def full(self) -> bool:
        """Has it as many requests as it should have?"""
        return self.busy >= self.capacity


@dataclass(frozen=True, slots=True)
class History:
    """What came before."""

    generation: int = 0  # of workers that are spawned now
    failures: int = 0  # workers one after the other that did not get ready
    failed: float = 0.0  # when the last of them went
    ever_ready: bool = False  # was one, since the master began?
    crashes: tuple[float, ...] = ()  # when workers that were ready died
    rate: int = 1  # dynamic: how many may be spawned now, for want of idle ones
    free: int = 1 << 30  # places on the scoreboard
    started: bool = False  # dynamic: were the first ones spawned?
    stopping: bool = False  # the pool is to end


@dataclass(frozen=True, slots=True)
class Spawn:
    """Fork another worker."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Tell a worker to finish what it has, and end."""

    pid: int
    why: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End a worker at once."""

    pid: int
    why: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The pool cannot be started, or its workers die too often: end the master."""

    why: str


Action = Spawn | Stop | Kill | GiveUp


def decide(
    policy: Policy,
    workers: Sequence[Seen],
    now: float,
    waiting: int,
    history: History | None = None,
) -> list[Action]:
    """Say what to do about a pool. `waiting` counts connections that nobody has accepted yet."""
    past = history or History()
    actions = _kill(policy, workers, now)
    if past.stopping:
        return actions + [Stop(w.pid, "the pool ends") for w in workers if not w.stopping]
    if not past.ever_ready and past.failures >= policy.give_up_after > 0:
        return [*actions, GiveUp(f"{past.failures} workers one after the other did not get ready")]
    killed = {action.pid for action in actions if isinstance(action, Kill)}
    living = [w for w in workers if not (w.stopping or w.killed or w.pid in killed)]
    before = _emergency(policy, past)
    died = f"{policy.emergency_threshold} workers died within {policy.emergency_interval:.0f} s"
    if before and policy.emergency_stop:
        return [*actions, GiveUp(died)]
    reasons = {
        w.pid: died if w.started <= before else spent(policy, w, now, past.generation)
        for w in living
    }
    fresh = [w for w in living if not reasons[w.pid]]
    old = [w for w in living if reasons[w.pid]]
    target = _target(policy, fresh, old, now, waiting, past)
    lacking = min(target - len(fresh), past.free)
    if lacking > 0 and now >= past.failed + pause(past.failures):
        # After a failure one at a time, to see whether the next one fares better.
        starting = any(not w.ready for w in fresh)
        actions += [Spawn()] * (lacking if not past.failures else 0 if starting else 1)
    ready = sum(1 for w in fresh if w.ready)
    over = ready + len(old) - min(target, policy.workers)
    for worker in sorted(old, key=lambda w: (not w.stuck, w.started))[: max(0, over)]:
        actions.append(Stop(worker.pid, reasons[worker.pid]))
    if not old:
        actions += _fewer(policy, fresh, target, now)
    return actions


def pause(failures: int) -> float:
    """Give the seconds to wait after so many workers that did not get ready."""
    return min(FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE) if failures else 0.0


def spent(policy: Policy, worker: Seen, now: float, generation: int) -> str:
    """Say why a worker is to be replaced; "" when it is not."""
    if worker.generation != generation:
        return "reload"
    if worker.stuck:
        return "a request did not end in time"
    if 0 < worker.max_requests <= worker.requests:
        return f"{worker.requests} requests"
    if 0 < policy.max_age <= now - worker.started:
        return f"{now - worker.started:.0f} s old"
    if 0 < policy.max_rss <= worker.rss:
        return f"{worker.rss >> 20} MiB of memory"
    return ""


def _kill(policy: Policy, workers: Sequence[Seen], now: float) -> list[Action]:
    found: list[Action] = []
    for worker in workers:
        if worker.killed:
            continue
        if worker.dead:
            found.append(Kill(worker.pid, "a request did not end, and nothing else runs"))
        elif worker.stopping and now > worker.stopping + policy.graceful_timeout + PATIENCE:
            found.append(Kill(worker.pid, "it did not end when it was told to"))
        elif not worker.ready and 0 < policy.boot_timeout < now - worker.started:
            found.append(Kill(worker.pid, "it did not get ready in time"))
    return found


def _emergency(policy: Policy, past: History) -> float:
    """Give when so many had died that it is an emergency; 0.0 where there was no such time.

    They die of something that they share, such as memory of PHP-FPM's kind. Those that are forked
    afterwards are the fresh start, of which the deaths are counted anew.
    """
    found, recent = 0.0, list[float]()
    for at in past.crashes:
        recent = [one for one in (*recent, at) if at - one <= policy.emergency_interval]
        if 0 < policy.emergency_threshold <= len(recent):
            found, recent = at, []
    return found


def _target(
    policy: Policy,
    fresh: Sequence[Seen],
    old: Sequence[Seen],
    now: float,
    waiting: int,
    past: History,
) -> int:
    """Say how many workers there are to be; what is spent counts for those that replace it."""
    if policy.mode == "static":
        return policy.workers
    idle = sum(1 for w in fresh if not w.full)  # those that start are about to be
    if policy.mode == "ondemand":
        wanted = len(fresh) + (1 if waiting and not idle else 0)
        busy_old = sum(1 for w in old if w.full)
        return min(policy.workers, max(wanted, busy_old, 1 if old and not fresh else 0))
    if not past.started:
        return min(policy.workers, policy.start)
    if old:
        return min(policy.workers, max(len(old) + len(fresh), policy.min_spare))
    lacking = min(max(0, policy.min_spare - idle), past.rate)
    return min(policy.workers, len(fresh) + lacking)


def _fewer(policy: Policy, fresh: Sequence[Seen], target: int, now: float) -> list[Action]:
    """Stop what there is too much of."""
    idle = sorted((w for w in fresh if w.ready and not w.busy), key=lambda w: w.idle_since)
    if policy.mode == "ondemand":
        return [
            Stop(w.pid, "idle") for w in idle if now - w.idle_since >= policy.idle_timeout
        ] + _surplus(policy, fresh, 0)
    surplus = _surplus(policy, fresh, 0)
    if surplus or policy.mode == "static":
        return surplus
    spare = sum(1 for w in fresh if w.ready and not w.full)
    if idle and spare > policy.max_spare and len(fresh) > policy.min_spare:
        return [Stop(idle[0].pid, "more are idle than there have to be")]
    return []


def _surplus(policy: Policy, fresh: Sequence[Seen], least: int) -> list[Action]:
    """Stop the youngest of those that are beyond the most there may be, idle ones first."""
    over = len(fresh) - policy.workers
    order = sorted(fresh, key=lambda w: (w.busy > 0, -w.started))
    return [Stop(w.pid, "fewer workers are wanted") for w in order[: max(over, least)]]
