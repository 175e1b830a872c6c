"""ASGI applications in the workers of a master."""

from __future__ import annotations

import os
import signal

import pytest

from tests.driver_suite.kit import until
from tests.raw import Raw
from tests.servers import Fulgate, Running


@pytest.mark.slow
def test_a_kept_connection_outlives_a_reload(running: Running) -> None:
    fulgate = running(Fulgate, "tests.frameworks.asgi_pid:app", "--workers", "2")

    def ask() -> bytes:
        with Raw(str(fulgate.socket)) as client:
            return client.request().body

    before: set[bytes] = set()

    def both() -> bool:
        before.add(ask())
        return len(before) == 2

    until(both, "one worker has all")
    with Raw(str(fulgate.socket)) as kept:
        assert kept.request().body in before
        os.kill(fulgate.pid, signal.SIGHUP)
        until(lambda: kept.request().body not in before, "the old worker goes on")
        assert kept.request().body not in before
