"""Autobahn's cases: over FastCGI as lighttpd speaks it, through lighttpd, through the HTTP front.

All 517 run on the first two, and what concerns frames on the third, whose frames are uvicorn's.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from fulgate import Server
from tests.alone import free_port
from tests.autobahn.cases import BULKS, CASES, Bulk, Case
from tests.autobahn.echo import app
from tests.autobahn.play import exchange, play
from tests.autobahn.wires import FastCGIWire, HTTPWire
from tests.driver_suite.kit import until
from tests.servers import Fulgate, LighttpdNext, Running

OPTIONS = '"upgrade" => "enable"\n"fix-root-scriptname" => "enable"'

# Of messages, what goes through the front.
FEW = {"9.1.2", "9.2.2", "9.3.3", "9.7.3", "10.1.1", "12.1.5"}

by_number = pytest.mark.parametrize("case", CASES, ids=lambda case: case.number)
by_bulk = pytest.mark.parametrize("bulk", BULKS, ids=lambda bulk: bulk.number)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="fulgate-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def direct(place: Path) -> Iterator[Path]:
    """The socket of a server in this process."""
    path = place / "direct.sock"
    server = Server(app, bind=(f"unix:{path}",), lifespan="off", loop="asyncio")
    server.start()
    yield path
    server.stop(1.0)


@pytest.fixture(scope="module")
def started(place: Path) -> Iterator[Running]:
    with ExitStack() as stack:
        yield Running(place, [], stack)


@pytest.fixture(scope="module")
def lighttpd(started: Running) -> LighttpdNext:
    fulgate = started(Fulgate, "tests.autobahn.echo:app", "--lifespan", "off")
    return started(LighttpdNext, fulgate.backend, options=OPTIONS)


@pytest.fixture(scope="module")
def front(started: Running) -> int:
    """The port of the HTTP front for development."""
    port = free_port()
    options = ("--lifespan", "off", "--http", f"127.0.0.1:{port}")
    env = {"PYTHONWARNINGS": "default"}
    fulgate = started(Fulgate, "tests.autobahn.echo:app", *options, env=env)
    until(lambda: "Open http" in fulgate.log(), "the front does not answer")
    return port


def test_none_is_missing() -> None:
    numbers = [case.number for case in CASES] + [bulk.number for bulk in BULKS]
    assert len(set(numbers)) == len(numbers)
    groups = Counter(number.partition(".")[0] for number in numbers)
    assert groups == {
        "1": 16, "2": 11, "3": 7, "4": 10, "5": 20, "6": 145, "7": 37, "9": 54, "10": 1, "12": 90,
        "13": 126,
    }  # fmt: skip


@by_number
def test_frames_over_fastcgi(case: Case, direct: Path) -> None:
    with closing(FastCGIWire(direct)) as wire:
        play(case, wire)


@by_bulk
def test_messages_over_fastcgi(bulk: Bulk, direct: Path) -> None:
    with closing(FastCGIWire(direct, ", ".join(bulk.offers))) as wire:
        exchange(bulk, wire)


@pytest.mark.slow
@pytest.mark.requires_server("lighttpd-next")
@by_number
def test_frames_through_lighttpd(case: Case, lighttpd: LighttpdNext) -> None:
    with closing(HTTPWire(lighttpd.port)) as wire:
        play(case, wire)


@pytest.mark.slow
@pytest.mark.requires_server("lighttpd-next")
@by_bulk
def test_messages_through_lighttpd(bulk: Bulk, lighttpd: LighttpdNext) -> None:
    with closing(HTTPWire(lighttpd.port, ", ".join(bulk.offers))) as wire:
        exchange(bulk, wire)


@pytest.mark.slow
@by_number
def test_frames_through_the_front(case: Case, front: int) -> None:
    with closing(HTTPWire(front)) as wire:
        play(case, wire, drops=True)


@pytest.mark.slow
@pytest.mark.parametrize("bulk", [b for b in BULKS if b.number in FEW], ids=lambda b: b.number)
def test_messages_through_the_front(bulk: Bulk, front: int) -> None:
    with closing(HTTPWire(front, ", ".join(bulk.offers))) as wire:
        exchange(bulk, wire)
