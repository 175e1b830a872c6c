"""Whatever a peer sends, and however it goes away, the server loses nothing by it."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.conversations import Segments, conversations, damaged, disordered, encode
from tests.raw import Raw
from tests.servers import Fulgate
from tests.statements import eventually, serving, sockets, still_serves

THREADS = 2
TIMES = ("--arrival-timeout", "1", "--keep-alive", "1", "--body-wait", "0.05")


@pytest.fixture(scope="module")
def tough() -> Iterator[Fulgate]:
    options = ("--threads", str(THREADS), "--body-timeout", "1", "--send-timeout", "1", *TIMES)
    with serving(*options) as server:
        yield server
        # No thread is stuck or gone, no descriptor is left, and nothing went wrong inside.
        for _ in range(2 * THREADS):
            still_serves(server)
        assert server.status("Threads") == str(THREADS + 2)
        eventually(lambda: sockets(server) == 1, "only the listening socket is left")
        assert "error in the server" not in server.log()
        assert "Traceback" not in server.log()


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    conversations().map(encode) | disordered() | damaged() | st.lists(st.binary(max_size=100)),
    st.lists(st.integers(1, 100), min_size=1, max_size=5),
    st.sampled_from(["goes", "says so", "waits", "never reads"]),
)
def test_conversations(tough: Fulgate, segments: Segments, sizes: list[int], then: str) -> None:
    data = b"".join(segments)
    with Raw(tough.socket) as raw, contextlib.suppress(ConnectionError):
        at = 0
        for size in itertools.cycle(sizes):
            if at >= len(data):
                break
            raw.send(data[at : at + size])
            at += size
        if then == "says so":
            raw.end()
        if then in ("says so", "waits"):
            ended = time.monotonic() + 60
            while chunk(raw):
                assert time.monotonic() < ended, "it is not closed"
    if then == "waits":
        still_serves(tough)


def chunk(raw: Raw) -> bytes:
    raw.socket.settimeout(60)
    return raw.socket.recv(65536)
