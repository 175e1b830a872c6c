"""One pool, as its master keeps it: workers, and connections that go from one to another."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Final, NoReturn

from fulgate import stacks
from fulgate.listener import Listener
from fulgate.processes import pool, worker
from fulgate.processes.hooks import Hooks
from fulgate.processes.notes import ERROR, Note
from fulgate.processes.output import Output, Tell
from fulgate.processes.pool import GiveUp, History, Kill, Policy, Seen, Spawn, Stop
from fulgate.processes.scoreboard import BUSY, PoolScore, Scoreboard, Slot
from fulgate.processes.worker import Serves, Worker

__all__ = ["Crew", "Employee", "Plan"]

log = logging.getLogger("fulgate")

AT_ONCE: Final = 1.0  # seconds within which a worker that dies has died at once
SILENT: Final = 3.0  # seconds without a word, after which a late worker holds its interpreter
GRACE: Final = 1.0  # seconds for a worker to see itself to a request that is late


@dataclass(frozen=True)
class Plan:
    """What a pool is to be. `make` is called in each worker, and loads the application."""

    name: str
    policy: Policy
    threads: int
    listeners: tuple[Listener, ...]
    make: Callable[[Slot], Serves]
    max_requests: int = 0
    max_requests_jitter: int = 0
    request_timeout: float = 0.0
    sealed: bool = False  # workers may not open the logs again, being somebody else, or elsewhere
    tell: Tell | None = None  # takes the lines of the workers' output; None leaves that as it is


@dataclass
class Employee:
    """A worker that lives."""

    who: Worker
    channel: socket.socket
    slot: int
    seen: Seen
    ready_at: float = 0.0
    served: int = 0
    told: str = ""  # why it was told to end
    output: Output | None = None
    blocked: bool = False  # it said that its loop is, for longer than a request may take


@dataclass
class Crew:
    """The workers of a pool. `close_in_child` closes what belongs to the master alone."""

    plan: Plan
    hooks: Hooks
    close_in_child: Callable[[], None]
    reopen: Callable[[], object]
    numbers: Callable[[], int]
    outputs: list[Output]  # of workers of all pools, those that have gone among them
    history: History = field(default_factory=History)
    working: dict[int, Employee] = field(default_factory=dict)
    moving: deque[tuple[socket.socket, str]] = field(default_factory=deque)  # with its protocol
    former: Plan | None = None  # what workers of the former generation have
    removed: bool = False  # it is not in the configuration any more
    gave_up: str = ""

    def __post_init__(self) -> None:
        most = self.plan.policy.workers
        self.board = Scoreboard(max(16, 4 * most + 4), self.plan.threads)
        self.score = PoolScore(started=monotonic())
        self._former_generation = 0
        self._rated = 0.0
        self._reached = False

    # ---------------------------------------------------------------- what is to be done

    def look(self, now: float) -> None:
        """See how the workers are, and do what the policy wants."""
        for employee in self.working.values():
            self._see(employee, now)
        taken = {employee.slot for employee in self.working.values()}
        self.history = replace(self.history, free=self.board.slots - len(taken))
        waiting = self._waiting()
        seen = [employee.seen for employee in self.working.values()]
        policy = self.plan.policy
        actions = pool.decide(policy, seen, now, waiting, self.history)
        self._rate(sum(isinstance(action, Spawn) for action in actions), now)
        for action in actions:
            match action:
                case Spawn():
                    if not self.spawn(now):
                        break
                case Stop(pid, why):
                    self.order(self.working[pid], why)
                case Kill(pid, why):
                    self.kill(self.working[pid], why)
                case GiveUp(why):
                    self.gave_up = self.gave_up or why
        all_busy = len(seen) >= policy.workers and all(s.full for s in seen)
        if all_busy and not self._reached:
            self.score = replace(self.score, reached=self.score.reached + 1)
        self._reached = all_busy
        self.place()
        rests = int(policy.mode == "ondemand" and not self.history.stopping)
        self.board.publish(replace(self.score, generation=self.history.generation, rests=rests))

    def _see(self, employee: Employee, now: float) -> None:
        glance = self.board.glance(employee.slot)
        seen = employee.seen
        idle_since = seen.idle_since
        if glance.busy or glance.requests != employee.served:
            idle_since = now
        employee.served = glance.requests
        limit = self.plan.request_timeout
        late = 0 < limit < now - glance.oldest - GRACE and glance.oldest > 0
        employee.seen = replace(
            seen,
            busy=glance.busy,
            capacity=glance.capacity or 1,
            idle_since=idle_since,
            requests=glance.requests,
            rss=glance.rss,
            dead=employee.blocked or (late and now - glance.heard > SILENT),
        )

    def _waiting(self) -> int:
        """Is a connection there that nobody accepts? Only asked where it matters."""
        if self.plan.policy.mode != "ondemand" or self.history.stopping:
            return 0
        poll = select.poll()
        for listener in self.plan.listeners:
            poll.register(listener, select.POLLIN)
        return len(poll.poll(0))

    def wants_to_know(self) -> bool:
        """Is it to be told as soon as somebody connects?"""
        if self.plan.policy.mode != "ondemand" or self.history.stopping:
            return False
        fresh = [e.seen for e in self.working.values() if not e.seen.stopping]
        idle = any(not seen.full for seen in fresh)
        return not idle and len(fresh) < self.plan.policy.workers

    def urgent(self) -> bool:
        """Is there something that does not wait for a second?"""
        if self.moving or self.history.failures:
            return True
        return any(e.seen.stopping or not e.seen.ready for e in self.working.values())

    def watched(self) -> bool:
        """Is there something that depends on the time, or on what workers write?"""
        policy = self.plan.policy
        return (
            policy.mode != "static"
            or policy.max_age > 0
            or policy.max_rss > 0
            or self.plan.request_timeout > 0
        )

    def _rate(self, spawned: int, now: float) -> None:
        """Spawn twice as many in each second in which too few are idle, as PHP-FPM does."""
        policy = self.plan.policy
        if not self.history.started:
            self.history = replace(self.history, started=True)
        elif spawned and now - self._rated >= 1.0:
            self._rated = now
            self.history = replace(self.history, rate=min(2 * self.history.rate, policy.spawn_rate))
        elif now - self._rated >= 2.0:
            self.history = replace(self.history, rate=1)

    # ---------------------------------------------------------------- doing it

    def spawn(self, now: float) -> bool:
        """Fork a worker; False when the system does not let us."""
        number = next(s for s in range(self.board.slots) if self._free(s))
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            return self._cannot(error, now)
        try:
            output = Output(self.plan.tell) if self.plan.tell is not None else None
        except OSError as error:
            ours.close()
            theirs.close()
            return self._cannot(error, now)
        slot = self.board.take(number, self.history.generation)
        limit = self.plan.max_requests
        if limit:
            limit += random.randint(0, self.plan.max_requests_jitter)
        slot.most = limit  # the worker says when it is there, which wakes us to look
        who = Worker(self.numbers(), self.plan.name, slot)
        self.hooks.call("pre_fork", who)
        # It is to get one that comes at once, and not what it has copied of our handlers.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        try:
            pid = os.fork()
            if not pid:
                self._child(who, ours, theirs, output)
        except OSError as error:
            ours.close()
            theirs.close()
            if output is not None:
                output.close()
            self.board.retire(number)
            return self._cannot(error, now)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
        if output is not None:
            output.hired(pid)
            self.outputs.append(output)
        ours.setblocking(False)
        self.board.hire(number, pid)
        who.pid = pid
        seen = Seen(pid, now, self.history.generation, idle_since=now, max_requests=limit)
        self.working[pid] = Employee(who, ours, number, seen, output=output)
        self.score = replace(self.score, spawned=self.score.spawned + 1)
        return True

    def _child(
        self, who: Worker, ours: socket.socket, theirs: socket.socket, output: Output | None
    ) -> NoReturn:
        status = 1
        try:
            ours.close()
            self.close_in_child()
            if output is not None:
                output.take_over()
            status = worker.live(who, theirs, self.plan.make, self.hooks, self.reopen, output)
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _free(self, number: int) -> bool:
        return all(employee.slot != number for employee in self.working.values())

    def _cannot(self, error: OSError, now: float) -> bool:
        log.error("%s: cannot fork a worker: %s", self.plan.name, error.strerror)
        # It is nothing that the application did: try for ever.
        failures = min(self.history.failures + 1, self.plan.policy.give_up_after - 1)
        self.history = replace(self.history, failures=max(1, failures), failed=now)
        return False

    def order(self, employee: Employee, why: str) -> None:
        """Tell a worker to finish what it has, and end."""
        now = monotonic()
        employee.told = why
        employee.seen = replace(employee.seen, stopping=now)
        alone = self.history.stopping or self.plan.policy.mode == "ondemand"
        self.tell(employee, worker.STOP if alone else worker.PASS_ON)
        self.hear(employee, now)
        if self.history.stopping and not employee.seen.ready:
            # It may load its application for long yet, and hears no order before that is there.
            # Until then it has no handler for this.
            with contextlib.suppress(ProcessLookupError):
                os.kill(employee.who.pid, signal.SIGTERM)
        if why not in ("reload", "the pool ends", "idle"):
            log.info("%s: worker %d ends: %s", self.plan.name, employee.who.pid, why)
        if employee.seen.generation == self.history.generation and not alone:
            self.score = replace(self.score, recycled=self.score.recycled + 1)

    def kill(self, employee: Employee, why: str) -> None:
        """End a worker at once, and log what it does, where it can be told."""
        pid = employee.who.pid
        log.error("%s: worker %d is killed: %s", self.plan.name, pid, why)
        found = self.board.worker(employee.slot)
        for thread in found.threads if found is not None else ():
            if thread.state == BUSY:
                log.error('it runs "%s" id=%s', thread.line, thread.id or "-")
        self._note(employee, "worker killed")
        stack = stacks.ask(pid)
        if stack:
            log.error("its stacks:\n%s", stack)
        employee.seen = replace(employee.seen, killed=True)
        employee.told = why
        self.score = replace(self.score, killed=self.score.killed + 1)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def _note(self, employee: Employee, what: str) -> None:
        """Note the requests that end with a worker, unless it has noted them as late."""
        found = self.board.worker(employee.slot)
        began = [note.time - note.seconds for note in self.board.notes(employee.slot).read(ERROR)]
        for thread in found.threads if found is not None else ():
            lasted = monotonic() - thread.since
            known = any(abs(time.time() - lasted - at) < 0.1 for at in began)
            if thread.state == BUSY and not known:
                pid = employee.who.pid
                note = Note(time.time(), lasted, pid, thread.line, thread.id, what)
                self.board.gone.put(ERROR, note)

    def tell(self, employee: Employee, what: bytes) -> None:
        with contextlib.suppress(OSError):  # it is gone, or will be killed for not ending
            employee.channel.send(what)

    def tell_all(self, what: bytes) -> None:
        for employee in self.working.values():
            self.tell(employee, what)

    # ---------------------------------------------------------------- what workers say

    def hear(self, employee: Employee, now: float) -> None:
        """Take what a worker says, and the connections that it passes on."""
        while True:
            try:
                said, fds, _, _ = socket.recv_fds(employee.channel, 64, 8)
            except OSError:
                break
            self.moving.extend(worker.passed_on(said, fds))
            if worker.READY in said:
                self._ready(employee, now)
            if worker.LATE in said:
                employee.seen = replace(employee.seen, stuck=True)
            if worker.BLOCKED in said:
                employee.blocked = True
            if not said:
                break
        self.place()

    def _ready(self, employee: Employee, now: float) -> None:
        employee.seen = replace(employee.seen, ready=True, idle_since=now)
        employee.ready_at = now
        log.debug("%s: worker %d is ready", self.plan.name, employee.who.pid)
        # One of before, too, is there to go on when a reload comes this early and fails.
        self.history = replace(self.history, ever_ready=True)
        if employee.seen.generation == self.history.generation:
            self.history = replace(self.history, failures=0)

    def place(self) -> None:
        """Give connections that workers have passed on to others."""
        while self.moving:
            fit = [e for e in self.working.values() if e.seen.ready and not e.seen.stopping]
            newest = max((e.seen.generation for e in fit), default=0)
            fit = [e for e in fit if e.seen.generation == newest]
            random.shuffle(fit)
            for employee in fit:
                try:
                    worker.hand_over(employee.channel, *self.moving[0])
                except OSError:
                    continue
                self.moving.popleft()
                break
            else:
                return  # later

    def gone(self, pid: int, status: int, now: float) -> None:
        """A worker has ended."""
        employee = self.working[pid]
        self.hear(employee, now)  # what it said last
        del self.working[pid]
        employee.channel.close()
        code = os.waitstatus_to_exitcode(status)
        if not employee.seen.killed and code:
            self._note(employee, f"worker ended by signal {-code}" if code < 0 else "worker ended")
        if employee.output is not None:
            employee.output.drain()
        self.board.retire(employee.slot)
        self.hooks.call("child_exit", employee.who)
        if employee.seen.stopping or employee.seen.killed:
            return
        how = f"by signal {-code}" if code < 0 else f"with status {code}"
        name = self.plan.name
        if not employee.seen.ready:
            self._did_not_boot(employee, code, how, now)
        else:
            log.error("%s: worker %d has ended %s", name, pid, how)
            self.score = replace(self.score, died=self.score.died + 1)
            crashes = (*self.history.crashes, now)[-64:]
            self.history = replace(self.history, crashes=crashes)
            if now - employee.ready_at < AT_ONCE:
                failures = self.history.failures + 1
                self.history = replace(self.history, failures=failures, failed=now)

    def _did_not_boot(self, employee: Employee, code: int, how: str, now: float) -> None:
        name = self.plan.name
        self.score = replace(self.score, died=self.score.died + 1)
        log.error("%s: worker %d ended %s before it was ready", name, employee.who.pid, how)
        if employee.seen.generation != self.history.generation:
            return
        failures = self.history.failures + 1
        self.history = replace(self.history, failures=failures, failed=now)
        if code in (2, 3):  # it will not be better the next time
            if not self.history.ever_ready:
                self.gave_up = "the application does not load"
            elif self.former is not None:
                self._go_back()

    def _go_back(self) -> None:
        """The new generation does not load: go on with the former one, as long as it lives."""
        current = self.history.generation
        if any(e.seen.generation == current and e.seen.ready for e in self.working.values()):
            return
        log.error(
            "%s: the reload has failed, for what is said above; the workers of before go on",
            self.plan.name,
        )
        assert self.former is not None
        self.plan, self.former = self.former, None
        self.history = replace(self.history, generation=self._former_generation, failures=0)
        for employee in self.working.values():
            if employee.seen.generation == current:
                employee.seen = replace(employee.seen, killed=True)
                os.kill(employee.who.pid, signal.SIGKILL)

    # ---------------------------------------------------------------- for the master

    def reload(self, plan: Plan, generation: int) -> None:
        """Replace all workers by such of a new plan; those of before finish what they have."""
        self.former, self._former_generation = self.plan, self.history.generation
        self.plan = plan
        self.history = replace(
            self.history, generation=generation, failures=0, started=True, crashes=()
        )

    def stop(self) -> None:
        """Have all workers finish, and end."""
        self.history = replace(self.history, stopping=True)
        for connection, _ in self.moving:
            connection.close()
        self.moving.clear()

    def resize(self, by: int) -> None:
        """Change the count of workers, as long as there is no reload."""
        policy = self.plan.policy
        wanted = min(max(1, policy.workers + by), (self.board.slots - 4) // 2)
        self.plan = replace(self.plan, policy=replace(policy, workers=wanted))
        log.info("%s: %d workers from now on", self.plan.name, wanted)
        self.hooks.call("nworkers_changed", wanted, policy.workers)

    def all_ready(self) -> bool:
        wanted = self.plan.policy
        first = {"static": wanted.workers, "dynamic": wanted.start, "ondemand": 0}[wanted.mode]
        ready = sum(1 for e in self.working.values() if e.seen.ready)
        current = self.history.generation
        old = any(
            not e.seen.stopping and e.seen.generation != current for e in self.working.values()
        )
        return ready >= min(first, wanted.workers) and not old

    def channels(self) -> Iterable[tuple[int, Employee]]:
        return [(e.channel.fileno(), e) for e in self.working.values()]
