"""The master: forks the workers of its pools, watches them, and does what signals ask for.

It has one thread, serves nothing, and runs no application unless that is loaded before the fork.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import select
import signal
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from fulgate.errors import AppNotFound, FulgateError
from fulgate.processes import worker
from fulgate.processes.crew import Crew, Employee, Plan
from fulgate.processes.hooks import Hooks
from fulgate.processes.observer import Boards, Observer, Watches
from fulgate.processes.output import Output
from fulgate.systemd import Watchdog, notify

if TYPE_CHECKING:
    from fulgate.processes.execution import Execution

__all__ = ["Left", "Master"]

log = logging.getLogger("fulgate")

TICK: Final = 1.0  # seconds between two looks at the workers
REST: Final = 10.0  # the same, where nothing depends on the time
QUICK_TICK: Final = 0.1  # the same, while something is under way
CUT_AFTER: Final = 1.0  # seconds for workers that were told to end at once

ENDS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
SIGNALS: Final = (
    *ENDS,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGCHLD,
)


@dataclass(frozen=True, slots=True)
class Left:
    """What a master leaves to the program that it executes in its place; fit for JSON.

    Workers that serve, and such that were told to end and pass their connections on: pid, channel,
    and name of the pool; connections that nobody has yet, with protocol and pool; the observer, by
    pid and channel; the pids of all that are to be reaped.
    """

    serving: Sequence[tuple[int, int, str]] = ()
    leaving: Sequence[tuple[int, int, str]] = ()
    moving: Sequence[tuple[int, str, str]] = ()
    observer: tuple[int, int] | None = None
    former: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Former:
    """A worker of a master of before."""

    channel: socket.socket
    pool: str


def _adopted(fd: int) -> socket.socket:
    found = socket.socket(fileno=fd)
    found.set_inheritable(False)
    found.setblocking(False)
    return found


class Master:
    """Runs pools of workers, until a signal ends it.

    `reload` gives new plans, and raises FulgateError where there are none to be had; `reopen` opens
    the logs anew; `execute` begins to execute the program anew, with the listening sockets, and
    returns None when that is not possible; `settled` is called when all workers are those that
    there are to be, at first and after each reload, and closes the sockets that nobody needs any
    more; `observed` says whether there is to be an observer, and `observe` gives what that runs.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        *,
        hooks: str = "",
        reload: Callable[[], Sequence[Plan]],
        reopen: Callable[[], object],
        execute: Callable[[Master], Execution | None],
        settled: Callable[[Master], None],
        observed: Callable[[], bool],
        observe: Callable[[Boards], Watches],
    ) -> None:
        self.hooks = Hooks(hooks, self)
        self.pid = os.getpid()
        self.generation = 0
        self.watchdog = Watchdog()
        self._reload = reload
        self._reopen = reopen
        self._execute = execute
        self._execution: Execution | None = None
        self._settled = settled
        self._arrived: deque[int] = deque()  # signals that nobody has obeyed yet
        self._counter = itertools.count(1)
        self._handlers: Mapping[int, Any] = {}
        self._status = 0
        self._stopping = 0.0
        self._cut = 0.0
        self._was_ready = False
        self._former: set[int] = set()  # workers of before we were executed
        self._strangers: dict[int, Former] = {}  # those that were not told to end
        self._told: dict[int, Former] = {}  # those that were
        self.outputs: list[Output] = []
        self.observer = Observer(observed, observe, self._close_in_observer, reopen)
        self.crews = {plan.name: self._crew(plan) for plan in plans}

    def _crew(self, plan: Plan) -> Crew:
        return Crew(
            plan,
            self.hooks,
            self._close_in_child,
            self._reopen,
            lambda: next(self._counter),
            self.outputs,
        )

    # ---------------------------------------------------------------- running

    def run(self, hears: Callable[[], object]) -> int:
        """Run until a signal; give the exit status. Raises AppNotFound when nobody gets ready.

        `hears` is called once signals are obeyed.
        """
        self.hooks.call("on_starting")
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            hears()
            while not self._over():
                self._round()
            self.hooks.call("on_exit")
            return self._status
        finally:
            self._end_all()
            signal.set_wakeup_fd(self._wakeup_before)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            os.close(self._reader)
            os.close(self._writer)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._arrived.append(number)

    @property
    def told_to_end(self) -> bool:
        """Has a signal come that ends it, obeyed or not yet?"""
        return bool(self._stopping) or any(number in ENDS for number in list(self._arrived))

    def _over(self) -> bool:
        return bool(self._stopping) and not any(crew.working for crew in self.crews.values())

    def _round(self) -> None:
        now = monotonic()
        for crew in list(self.crews.values()):
            crew.look(now)
            if crew.gave_up and not self._stopping:
                self._give_up(crew)
            if crew.removed and not crew.working:
                del self.crews[crew.plan.name]
        self.observer.look({name: crew.board for name, crew in self.crews.items()}, now)
        self._see_ready()
        self.watchdog.beat(now)
        if self._cut and now > self._cut + CUT_AFTER:
            self._kill_all()
        self._wait()
        while self._arrived:
            self._obey(self._arrived.popleft())
        if self._execution is not None and not self._execution.look():
            self._execution = None
        self._reap()

    def _give_up(self, crew: Crew) -> None:
        """End: at once where nobody is served, else when those that live have finished."""
        if not crew.history.ever_ready:
            raise AppNotFound(f"{crew.plan.name}: {crew.gave_up}; the log says why")
        log.critical("%s: %s, and so all ends; the log says why", crew.plan.name, crew.gave_up)
        self._status = AppNotFound.exit_status
        self._stop()

    def _see_ready(self) -> None:
        if not self._was_ready and all(crew.all_ready() for crew in self.crews.values()):
            self._was_ready = True
            self._settled(self)
            notify("READY=1")
            self.hooks.call("when_ready")
        if self._strangers and all(crew.all_ready() for crew in self.crews.values()):
            for former in self._strangers.values():
                with contextlib.suppress(OSError):
                    former.channel.send(worker.PASS_ON)
            self._told.update(self._strangers)
            self._strangers.clear()

    def leave(self) -> Left:
        """Give what the program that is executed in our place takes over, made inheritable."""
        serving, leaving = dict(self._strangers), dict(self._told)
        moving: list[tuple[int, str, str]] = []
        for name, crew in self.crews.items():
            for pid, employee in crew.working.items():
                kept = leaving if employee.seen.stopping else serving
                kept[pid] = Former(employee.channel, name)
            for connection, protocol in crew.moving:
                connection.set_inheritable(True)
                moving.append((connection.fileno(), protocol, name))
        for former in (*serving.values(), *leaving.values()):
            former.channel.set_inheritable(True)
        return Left(
            [(pid, one.channel.fileno(), one.pool) for pid, one in serving.items()],
            [(pid, one.channel.fileno(), one.pool) for pid, one in leaving.items()],
            moving,
            self.observer.leave(),
            [*self._former, *(pid for crew in self.crews.values() for pid in crew.working)],
        )

    def adopt(self, left: Left) -> None:
        """Take over what was before: its workers end when there are new ones."""
        if left.observer is not None:
            self.observer.adopt(*left.observer)
            self.observer.renew()
        for workers, kept in ((left.serving, self._strangers), (left.leaving, self._told)):
            for pid, fd, pool in workers:
                kept[pid] = Former(_adopted(fd), pool)
        self._former.update(left.former)
        for fd, protocol, pool in left.moving:
            self._take(_adopted(fd), protocol, pool)

    def _take(self, connection: socket.socket, protocol: str, pool: str) -> None:
        """Have a connection that a worker of before has passed on go to another.

        To one that was not told to end, while there is such: ours may boot for long, and a request
        may have come on it.
        """
        for former in self._strangers.values():
            if former.pool == pool:
                with contextlib.suppress(OSError):  # it is gone; the next one
                    worker.hand_over(former.channel, connection, protocol)
                    return
        crew = self._crew_of(connection, next(iter(self.crews.values())))
        crew.moving.append((connection, protocol))

    def _wait(self) -> None:
        """Wait for signals, for what workers say, and for the time of the next look."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        channels: dict[int, tuple[Crew, Employee]] = {}
        for crew in self.crews.values():
            for fd, employee in crew.channels():
                channels[fd] = (crew, employee)
                poll.register(fd, select.POLLIN)
            if crew.wants_to_know():
                for listener in crew.plan.listeners:
                    poll.register(listener, select.POLLIN)
        written = {fd: output for output in self.outputs for fd in output.open}
        for fd in written:
            poll.register(fd, select.POLLIN)
        told = {former.channel.fileno(): pid for pid, former in self._told.items()}
        for fd in told:
            poll.register(fd, select.POLLIN)
        quick = self._cut or any(crew.urgent() for crew in self.crews.values())
        quick = quick or self.observer.missing
        watched = any(crew.watched() for crew in self.crews.values())
        tick = min(QUICK_TICK if quick else TICK if watched else REST, self.watchdog.interval)
        for fd, _ in poll.poll(tick * 1000):
            if fd == self._reader:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._reader, 512)
            elif fd in channels:
                crew, employee = channels[fd]
                crew.hear(employee, monotonic())
                if not employee.seen.ready and not employee.seen.stopping:
                    continue
            elif fd in told:
                self._hear_stranger(told[fd])
            elif fd in written:
                written[fd].read(fd)
        self.outputs[:] = [output for output in self.outputs if output.open]

    def _hear_stranger(self, pid: int) -> None:
        former = self._told[pid]
        try:
            said, fds, _, _ = socket.recv_fds(former.channel, 64, 8)
        except BlockingIOError:
            return
        except OSError:
            said, fds = b"", []
        for connection, protocol in worker.passed_on(said, fds):
            self._take(connection, protocol, former.pool)
        for crew in self.crews.values():
            crew.place()
        if not said:
            self._told.pop(pid).channel.close()

    def _crew_of(self, connection: socket.socket, default: Crew) -> Crew:
        """Give the pool that listens where a connection was made."""
        name = connection.getsockname()
        for crew in self.crews.values():
            if any(listener.getsockname() == name for listener in crew.plan.listeners):
                return crew
        return default

    def _reap(self) -> None:
        now = monotonic()
        for crew in self.crews.values():
            for pid in list(crew.working):
                with contextlib.suppress(ChildProcessError):
                    found, status = os.waitpid(pid, os.WNOHANG)
                    if found:
                        crew.gone(pid, status, now)
        self.observer.reap(now)
        for pid in list(self._former):
            with contextlib.suppress(ChildProcessError):
                if not os.waitpid(pid, os.WNOHANG)[0]:
                    continue
            self._former.discard(pid)
        if os.getpid() == 1:  # in a container everybody's orphans are ours
            ours = {pid for crew in self.crews.values() for pid in crew.working}
            ours |= {*self.observer.known, *self._former}
            if self._execution is not None:
                ours.add(self._execution.pid)
            with contextlib.suppress(ChildProcessError):
                while left := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    if left.si_pid in ours:
                        break
                    os.waitpid(left.si_pid, os.WNOHANG)

    # ---------------------------------------------------------------- signals

    def _obey(self, number: int) -> None:
        match number:
            case signal.SIGTERM | signal.SIGINT:
                if self._stopping:
                    self._status = 128 + number
                    self._cut_all()
                else:
                    self._stop()
            case signal.SIGQUIT:
                self._status = 128 + number
                self._stop()
                self._cut_all()
            case signal.SIGHUP:
                self.reload()
            case signal.SIGUSR1:
                self._reopen()
                self.observer.tell(signal.SIGUSR1)
                for crew in self.crews.values():
                    if crew.plan.sealed:  # others take over, who have the files from here
                        self.generation += 1
                        crew.reload(crew.plan, self.generation)
                    else:
                        crew.tell_all(worker.REOPEN)
            case signal.SIGTTIN | signal.SIGTTOU:
                for crew in self.crews.values():
                    crew.resize(1 if number == signal.SIGTTIN else -1)
            case signal.SIGUSR2:
                if self._execution is not None:
                    log.warning("the program is being checked already, to be executed anew")
                elif not self._stopping:
                    self._execution = self._execute(self)

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping = monotonic()
        notify("STOPPING=1")
        if self._execution is not None:
            self._execution.cancel()
            self._execution = None
        for former in self._strangers.values():
            with contextlib.suppress(OSError):
                former.channel.send(worker.STOP)
        listeners = {one for crew in self.crews.values() for one in crew.plan.listeners}
        for listener in listeners:
            listener.quiesce()
        for crew in self.crews.values():
            crew.stop()
            crew.look(self._stopping)
        for listener in listeners:
            listener.close()  # the workers take who is in the queue

    def _cut_all(self) -> None:
        self._cut = monotonic()
        for crew in self.crews.values():
            crew.tell_all(worker.CUT)

    def reload(self) -> None:
        """Replace all workers by such of the configuration and the code as they are now."""
        if self._stopping:
            return
        notify(f"RELOADING=1\nMONOTONIC_USEC={int(monotonic() * 1e6)}")
        self.hooks.call("on_reload")
        try:
            plans = self._reload()
        except FulgateError as error:
            log.error("the reload has failed, and nothing has changed: %s", error)
        else:
            self.generation += 1
            log.info("reload: new workers take over")
            for plan in plans:
                crew = self.crews.get(plan.name)
                if crew is None:
                    self.crews[plan.name] = self._crew(plan)
                elif plan.threads > crew.board.threads:
                    log.warning("%s: more threads take a restart, or SIGUSR2", plan.name)
                else:
                    crew.reload(plan, self.generation)
            names = {plan.name for plan in plans}
            used = {listener for plan in plans for listener in plan.listeners}
            for name, crew in self.crews.items():
                if name not in names:
                    crew.removed = True
                    gone = [one for one in crew.plan.listeners if one not in used]
                    for listener in gone:
                        listener.quiesce()
                    crew.stop()
                    for listener in gone:
                        listener.close()
            self.observer.renew()
        self._was_ready = False  # systemd is told when it is done

    # ---------------------------------------------------------------- ends

    def _kill_all(self) -> None:
        for crew in self.crews.values():
            for pid in crew.working:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _end_all(self) -> None:
        """However we end: nobody is left behind."""
        if os.getpid() != self.pid:
            return
        self._kill_all()
        if self._execution is not None:
            self._execution.cancel()
        self.observer.kill()
        for crew in self.crews.values():
            for pid, employee in crew.working.items():
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
                employee.channel.close()
            crew.working.clear()
        for output in self.outputs:
            output.drain()

    def _close_in_observer(self) -> None:
        """Close there what serves: who connects waits for a worker, or is refused if none is."""
        self._close_in_child()
        for crew in self.crews.values():
            for listener in crew.plan.listeners:
                if listener.fileno() >= 0:
                    os.close(listener.detach())

    def _close_in_child(self) -> None:
        """Close what must not live on in a worker: while it does, nobody learns of our end."""
        signal.set_wakeup_fd(-1)
        os.close(self._reader)
        os.close(self._writer)
        for crew in self.crews.values():
            for employee in crew.working.values():
                employee.channel.close()
            for connection, _ in crew.moving:
                connection.close()
        for former in [*self._strangers.values(), *self._told.values()]:
            former.channel.close()
        if self._execution is not None:
            self._execution.close()
        self.observer.close()
        for output in self.outputs:
            output.close()
