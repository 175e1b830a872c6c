"""What the socket did not take at once, over real sockets that take little."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest

from fulgate.drivers.outbox import JOIN_BELOW, Outbox

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, other = socket.socketpair()
    with one, other:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


def drain(outbox: Outbox, pair: Pair, chance: random.Random) -> bytes:
    """Send and receive by turns until nothing is left."""
    got = b""
    while outbox.size:
        before = outbox.size
        assert outbox.send(pair[0]) is (outbox.size < before)
        try:
            while True:
                got += pair[1].recv(chance.randint(1, 50_000))
        except BlockingIOError:
            pass
    return got


@pytest.mark.parametrize("seed", range(20))
def test_all_of_it_leaves_in_order(pair: Pair, seed: int) -> None:
    chance = random.Random(seed)
    outbox = Outbox()
    put = b""
    got = b""
    for _ in range(chance.randint(1, 300)):
        data = chance.randbytes(chance.choice((0, 1, 8, 100, 5000, 70_000)))
        put += data
        outbox.put(memoryview(data) if chance.random() < 0.3 else data)
        if chance.random() < 0.1:
            outbox.send(pair[0])
            assert outbox.size <= len(put)
    got = drain(outbox, pair, chance)
    assert got == put
    assert outbox.send(pair[0]) is False


def test_its_size_is_what_has_not_left(pair: Pair) -> None:
    outbox = Outbox()
    outbox.put(bytes(1_000_000))
    assert outbox.size == 1_000_000
    assert outbox.send(pair[0]) is True
    left = outbox.size
    received = 0
    try:
        while True:
            received += len(pair[1].recv(65_536))
    except BlockingIOError:
        pass
    assert received == 1_000_000 - left


def test_a_full_socket_makes_no_progress(pair: Pair) -> None:
    outbox = Outbox()
    outbox.put(bytes(1_000_000))
    outbox.send(pair[0])
    size = outbox.size
    assert outbox.send(pair[0]) is False
    assert outbox.size == size


def test_small_pieces_are_joined() -> None:
    outbox = Outbox()
    for _ in range(100_000):
        outbox.put(b"x")
    assert outbox.size == 100_000
    assert len(outbox._buffers) < 2 + 100_000 / JOIN_BELOW * 2


def test_a_peer_that_is_gone(pair: Pair) -> None:
    outbox = Outbox()
    outbox.put(b"one")
    outbox.put(b"two")
    pair[1].close()
    with pytest.raises(OSError, match="Broken pipe"):
        outbox.send(pair[0])


def test_clear() -> None:
    outbox = Outbox()
    outbox.put(b"one")
    outbox.clear()
    assert outbox.size == 0
    assert not outbox._buffers
