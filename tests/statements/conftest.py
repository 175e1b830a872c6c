"""The server that most statements are held against."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import SERVERS
from tests.servers import Fulgate
from tests.statements import serving, still_serves


@pytest.fixture(scope="package")
def shared() -> Iterator[Fulgate]:
    """One server with a single thread, for whatever leaves nothing behind."""
    with serving("--threads", "1") as server:
        yield server


@pytest.fixture
def served(shared: Fulgate, request: pytest.FixtureRequest) -> Iterator[Fulgate]:
    """The shared server, which still serves when the test has ended."""
    request.node.stash.setdefault(SERVERS, []).append(shared)
    yield shared
    still_serves(shared)
