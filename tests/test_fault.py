"""No system call that goes wrong costs a descriptor, a thread, or a second END_REQUEST."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from tests.fault.client import Flaw
from tests.fault.harness import FAULTS, SHORT, Fault, Server, build_shim, fault_loop

pytestmark = pytest.mark.requires_program("cc")

FULGATE = [sys.executable, "-m", "fulgate", "serve", "tests.fault.app:app", "--threads", "2"]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("fault"))


def tiny(folder: Path, shim: Path, flaw: str) -> Server:
    path = folder / "sock"
    command = [sys.executable, "-m", "tests.fault.tiny", str(path), flaw]
    return Server(command, path, shim, patience=3.0 if flaw == "none" else 1.5)


# What the workload makes, at the least, of each call: a loop that ends sooner tested nothing.
LEAST = {"recv": 12, "send": 12, "accept": 7, "wait": 12, "ctl": 7}


def hold(folder: Path, shim: Path, fault: Fault, *options: str) -> None:
    path = folder / "sock"
    with Server([*FULGATE, "--bind", f"unix:{path}", *options], path, shim) as server:
        reached = fault_loop(server, fault)
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()
    assert reached >= LEAST[fault.call]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_nothing_is_lost_when_a_call_goes_wrong(fault: Fault, folder: Path, shim: Path) -> None:
    hold(folder, shim, fault)


# poll(2) cannot be cut short: it tells of all descriptors at once.
POLL_FAULTS = [f for f in FAULTS if f.call in ("recv", "wait") and str(f) != "wait-short"]


@pytest.mark.parametrize("fault", POLL_FAULTS, ids=str)
def test_nothing_is_lost_with_the_portable_poller(fault: Fault, folder: Path, shim: Path) -> None:
    hold(folder, shim, fault, "--poller", "poll")


@pytest.mark.parametrize(
    ("flaw", "fault", "message"),
    [
        ("leak", Fault("recv", errno.ECONNRESET, lost=1), r"leaked: \d+ descriptors"),
        ("close", Fault("recv", errno.ECONNRESET, lost=1), "closed that was not open"),
        ("stuck", Fault("recv", errno.ECONNRESET, lost=1), r"\d threads, \d before"),
        ("twice", Fault("send", errno.EAGAIN), "a second END_REQUEST"),
        ("cut", Fault("send", SHORT), "silence|belongs to no request"),
        ("accept", Fault("accept", errno.EMFILE), "the server ended|no connection|not answered"),
        ("none", Fault("recv", errno.ECONNRESET, lost=0), "1 requests were lost, 0 may be"),
    ],
)
def test_the_loop_sees_a_flaw(
    flaw: str, fault: Fault, message: str, folder: Path, shim: Path
) -> None:
    with tiny(folder, shim, flaw) as server, pytest.raises(Flaw, match=message):
        fault_loop(server, fault)


@pytest.mark.parametrize(
    "fault", [fault for fault in FAULTS if fault.call in ("recv", "send", "accept")], ids=str
)
def test_the_loop_passes_a_server_without_flaws(fault: Fault, folder: Path, shim: Path) -> None:
    with tiny(folder, shim, "none") as server:
        assert fault_loop(server, fault) >= LEAST[fault.call]
