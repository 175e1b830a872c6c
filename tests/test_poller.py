"""The pollers: each does the same, kqueue on a stand-in for what this system does not have."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fulgate.drivers.poller import END, GONE, READ, WRITE, KqueuePoller, Poller, make
from fulgate.errors import ConfigError
from tests.driver_suite.kit import until
from tests.kqueue import (
    KQ_EV_ADD,
    KQ_EV_DELETE,
    KQ_EV_EOF,
    KQ_FILTER_READ,
    KQ_FILTER_WRITE,
    FakeSelect,
    Kevent,
    Kqueue,
)
from tests.raw import PATIENCE

MAKERS: dict[str, Callable[[], Poller]] = {
    "epoll": lambda: make("epoll"),
    "poll": lambda: make("poll"),
    "kqueue": lambda: KqueuePoller(FakeSelect()),
}
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=list(MAKERS))
def poller(request: pytest.FixtureRequest) -> Iterator[Poller]:
    poller = MAKERS[request.param]()
    yield poller
    poller.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        yield one, other


def events(poller: Poller, timeout: float = PATIENCE) -> dict[int, int]:
    """Poll; without the wake-ups."""
    return {fd: mask for fd, mask in poller.poll(timeout) if not poller.woken(fd)}


def fill(sock: socket.socket) -> None:
    try:
        while True:
            sock.send(bytes(65_536))
    except BlockingIOError:
        pass


def test_what_is_ready_is_reported_until_it_is_taken(poller: Poller, pair: Pair) -> None:
    fd = pair[0].fileno()
    poller.register(fd, READ)
    assert events(poller, 0) == {}
    pair[1].send(b"x")
    assert events(poller) == {fd: READ}
    assert events(poller) == {fd: READ}
    pair[0].recv(1)
    assert events(poller, 0) == {}


def test_room_to_write(poller: Poller, pair: Pair) -> None:
    fd = pair[0].fileno()
    fill(pair[0])
    poller.register(fd, WRITE)
    assert events(poller, 0) == {}
    pair[1].setblocking(False)
    try:
        while True:
            pair[1].recv(65_536)
    except BlockingIOError:
        pass
    assert events(poller) == {fd: WRITE}
    pair[1].send(b"x")
    poller.modify(fd, READ | WRITE)
    assert events(poller) == {fd: READ | WRITE}


def test_what_is_not_wanted_is_not_reported(poller: Poller, pair: Pair) -> None:
    fd = pair[0].fileno()
    pair[1].send(b"x")
    poller.register(fd, WRITE)
    assert events(poller) == {fd: WRITE}
    poller.modify(fd, 0)
    assert events(poller, 0) == {}
    poller.modify(fd, END)
    assert events(poller, 0) == {}
    poller.modify(fd, READ)
    assert events(poller) == {fd: READ}
    poller.modify(fd, END)
    assert events(poller, 0) == {}


@pytest.mark.parametrize("mask", [READ, END, READ | END, READ | WRITE, END | WRITE])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("tcp", [False, True])
def test_the_peer_s_end_is_reported_where_it_is_asked_for(
    poller: Poller, pair: Pair, mask: int, full: bool, tcp: bool
) -> None:
    one, other = connection() if tcp else (pair[0].dup(), pair[1].dup())
    pair[1].close()
    one.setblocking(False)
    with one:
        if full:
            fill(one)
        other.close()
        if tcp:
            until(lambda: gone(one), "the end does not arrive")
        poller.register(one.fileno(), mask)
        found = events(poller)
        assert found[one.fileno()] & (READ | END)
        assert not found[one.fileno()] & ~(END | GONE | mask)


def gone(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def test_half_an_end_is_not_reported_unasked(poller: Poller, pair: Pair) -> None:
    """Nobody could take it: whoever polls would spin."""
    fd = pair[0].fileno()
    fill(pair[0])
    pair[1].shutdown(socket.SHUT_WR)
    poller.register(fd, 0)
    assert events(poller, 0) == {}
    poller.modify(fd, WRITE)
    assert events(poller, 0) == {}
    poller.modify(fd, END)
    assert events(poller) == {fd: END}


def test_a_peer_that_is_gone_is_reported_unasked(pair: Pair) -> None:
    """As far as the system tells: kqueue does not."""
    pair[1].close()
    for kind in ("epoll", "poll"):
        poller = make(kind)
        poller.register(pair[0].fileno(), 0)
        assert events(poller)[pair[0].fileno()] & GONE
        poller.close()


def connection() -> Pair:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        return one, listener.accept()[0]


def test_a_listening_socket_is_reported(poller: Poller) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        poller.register(listener.fileno(), READ)
        assert events(poller, 0) == {}
        with socket.create_connection(listener.getsockname()):
            assert events(poller) == {listener.fileno(): READ}
        poller.unregister(listener.fileno())
        assert events(poller, 0) == {}


def test_what_is_unregistered_is_silent(poller: Poller, pair: Pair) -> None:
    fd = pair[0].fileno()
    poller.register(fd, READ | WRITE)
    poller.unregister(fd)
    pair[1].send(b"x")
    assert events(poller, 0) == {}


def test_a_number_that_is_used_again(poller: Poller) -> None:
    for _ in range(3):
        one, other = socket.socketpair()
        with one, other:
            other.send(b"x")
            poller.register(one.fileno(), READ)
            assert events(poller) == {one.fileno(): READ}
            poller.modify(one.fileno(), READ | WRITE)
            poller.unregister(one.fileno())


def test_a_wake_up_ends_the_poll(poller: Poller) -> None:
    poller.wake()
    assert events(poller) == {}
    began = time.monotonic()
    thread = threading.Timer(0.05, poller.wake)
    thread.start()
    assert events(poller) == {}
    assert time.monotonic() - began < PATIENCE / 2
    thread.join()


def test_wake_ups_that_nobody_takes_do_not_block(poller: Poller) -> None:
    for _ in range(100_000):
        poller.wake()
    assert events(poller) == {}
    assert events(poller, 0) == {}


@pytest.mark.parametrize("what", ["register", "modify"])
def test_what_another_thread_arms_is_seen(poller: Poller, pair: Pair, what: str) -> None:
    fd = pair[0].fileno()
    if what == "modify":
        poller.register(fd, 0)
    pair[1].send(b"x")
    thread = threading.Timer(0.05, getattr(poller, what), (fd, READ))
    thread.start()
    found: dict[int, int] = {}
    until(lambda: found.update(events(poller)) or found, "it is not seen")
    assert found == {fd: READ}
    thread.join()


def test_what_is_closed_while_another_thread_polls_has_ended(poller: Poller, pair: Pair) -> None:
    """Unregistered and closed is enough, though poll(2) holds on to it until it returns."""
    one, other = pair
    poller.register(one.fileno(), READ)
    over = threading.Event()

    def poll() -> None:
        while not over.is_set():
            events(poller)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        time.sleep(0.05)  # it is in the poll now, most probably
        poller.unregister(one.fileno())
        one.close()
        other.settimeout(PATIENCE / 2)
        assert other.recv(1) == b""
    finally:
        over.set()
        poller.wake()
        thread.join()


def test_many_descriptors_and_many_threads(poller: Poller) -> None:
    """One thread polls, as the driver has it; others change what is wanted, and nothing is lost."""
    pairs = [socket.socketpair() for _ in range(20)]
    left = {one.fileno(): 200 for one, _ in pairs}

    def change(mine: list[Pair]) -> None:
        for turn in range(200):
            for one, other in mine:
                want = left[one.fileno()] - 1
                if turn % 2:
                    poller.modify(one.fileno(), 0)
                other.send(b"x")
                poller.modify(one.fileno(), READ)
                deadline = time.monotonic() + PATIENCE
                while left[one.fileno()] != want and time.monotonic() < deadline:
                    time.sleep(0)

    for one, _ in pairs:
        one.setblocking(False)
        poller.register(one.fileno(), 0)
    threads = [threading.Thread(target=change, args=(pairs[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE
    while any(left.values()) and time.monotonic() < deadline:
        for fd in events(poller, 1.0):
            with contextlib.suppress(BlockingIOError):  # a late event
                os.read(fd, 1)
                left[fd] -= 1
    for thread in threads:
        thread.join()
    for one, other in pairs:
        poller.unregister(one.fileno())
        one.close()
        other.close()
    assert not any(left.values())


def test_nothing_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for maker in MAKERS.values():
        poller = maker()
        poller.close()
        poller.wake()  # late, and no harm: the numbers may be somebody else's by now
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", ["epoll", "poll"])
def test_a_poller_that_is_forgotten_leaves_nothing(kind: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    poller = make(kind)
    del poller
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_best_is_taken() -> None:
    poller = make()
    assert type(poller).__name__ == "EpollPoller"
    poller.close()


@pytest.mark.parametrize("kind", ["kqueue", "select", ""])
def test_a_poller_that_is_not_there(kind: str) -> None:
    with pytest.raises(ConfigError, match="there is no poller"):
        make(kind)


# kqueue's own: what the stand-in is asked for


def test_filters_come_and_go_with_what_is_wanted(pair: Pair) -> None:
    made: list[Kqueue] = []
    changes: list[tuple[int, int]] = []

    class Watched(Kqueue):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

        def _change(self, change: Kevent) -> None:
            if change.ident == pair[0].fileno():
                changes.append((change.filter, change.flags))
            super()._change(change)

    class Module(FakeSelect):
        kqueue = Watched

    poller = KqueuePoller(Module())
    fd = pair[0].fileno()
    poller.register(fd, READ | WRITE)
    assert changes == [(KQ_FILTER_READ, KQ_EV_ADD), (KQ_FILTER_WRITE, KQ_EV_ADD)]
    poller.modify(fd, READ)
    assert changes[-1] == (KQ_FILTER_WRITE, KQ_EV_DELETE)
    poller.unregister(fd)
    assert changes[-1] == (KQ_FILTER_READ, KQ_EV_DELETE)
    assert not [key for key in made[0]._filters if key[0] == fd]
    poller.unregister(fd)  # no harm
    poller.close()


def test_the_stand_in_says_what_the_manual_says(pair: Pair) -> None:
    kqueue = Kqueue()
    fd = pair[0].fileno()
    with pytest.raises(OSError, match="no such filter"):
        kqueue.control([Kevent(fd, KQ_FILTER_READ, KQ_EV_DELETE)], 0, 0)
    kqueue.control([Kevent(fd, KQ_FILTER_READ, KQ_EV_ADD)], 0, 0)
    pair[1].send(b"x")
    for _ in range(2):  # without EV_ONESHOT again and again
        (event,) = kqueue.control(None, 8, PATIENCE)
        assert (event.ident, event.filter, event.flags & KQ_EV_EOF) == (fd, KQ_FILTER_READ, 0)
    pair[1].close()
    (event,) = kqueue.control(None, 8, PATIENCE)
    assert event.flags & KQ_EV_EOF
    kqueue.close()
