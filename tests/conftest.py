"""What all tests share: which programs they need, and the servers that they run."""

from __future__ import annotations

import collections
import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fulgate.build import BUILD, COMPILED
from tests.network import why_not
from tests.servers import PATH, RealServer, Running
from tests.servers.apache import MODULES

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

# Before anybody imports it: its assertions are to tell what they saw.
pytest.register_assert_rewrite("tests.driver_suite", "tests.every_protocol", "tests.http_suite")

MISSING = pytest.StashKey[dict[str, set[str]]]()  # program: the tests that need it
ROOT = "the rights of root"
NAMESPACES = "network namespaces"
SERVERS = pytest.StashKey[list[RealServer]]()


def programs_of(item: pytest.Item) -> list[str]:
    """Give the names of the programs that a test says it runs."""
    names: list[str] = []
    for marker in ("requires_server", "requires_program"):
        for mark in item.iter_markers(marker):
            names += mark.args
    return names


def installed(name: str) -> bool:
    if name.startswith("mod_"):
        return (MODULES / f"{name}.so").exists()
    if name == "libfcgi-dev":
        return Path("/usr/include/fcgiapp.h").exists()
    return shutil.which(name, path=PATH) is not None


def pytest_configure(config: pytest.Config) -> None:
    wanted = os.environ.get("FULGATE_TESTS_BUILD", BUILD)
    if wanted != BUILD:
        pytest.exit(f"these tests are to run on a build that is {wanted}, not {BUILD}", 3)
    missing: dict[str, set[str]] = collections.defaultdict(set)
    config.stash[MISSING] = missing
    # What tests start must not keep what it compiled: a file that a test writes anew, of the same
    # length and within the same second, would pass for the old one.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    # A shell has what it runs in the background ignore SIGINT; what we start would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note who lacks what, before options such as -m leave tests out."""
    for item in items:
        if item.get_closest_marker("requires_root") and os.geteuid() != 0:
            config.stash[MISSING][ROOT].add(item.nodeid)
        if item.get_closest_marker("requires_namespaces") and (reason := why_not()):
            config.stash[MISSING][f"{NAMESPACES} ({reason})"].add(item.nodeid)
        for name in programs_of(item):
            if not installed(name):
                config.stash[MISSING][name].add(item.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if COMPILED and item.get_closest_marker("replaces_internals"):
        pytest.skip("replaces what compiled code calls without a look")
    missing = [name for name, tests in item.config.stash[MISSING].items() if item.nodeid in tests]
    if missing:
        reason = "not there: " + ", ".join(missing)
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    missing = config.stash[MISSING]
    if missing:
        terminalreporter.section("not there, so these tests did not run", yellow=True)
        for name, tests in sorted(missing.items()):
            terminalreporter.write_line(f"{name}: {len(tests)} tests")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that started this one, if there are several, what is missing."""
    output: dict[str, object] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        missing = session.config.stash[MISSING]
        output["missing"] = {name: sorted(tests) for name, tests in missing.items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: WorkerController, error: object) -> None:
    """Take what a worker of pytest-xdist found missing: each has looked at all tests."""
    for name, tests in getattr(node, "workeroutput", {}).get("missing", {}).items():
        node.config.stash[MISSING][name] |= set(tests)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the servers logged when the test failed."""
    report = yield
    if report.when == "call" and report.failed:
        for server in item.stash.get(SERVERS, []):
            report.sections.append((f"logs of {server.program}", server.log()))
    return report


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for a Unix socket, that any user may enter."""
    path = Path(tempfile.mkdtemp(prefix="fulgate-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def running(folder: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    started = request.node.stash.setdefault(SERVERS, [])
    with ExitStack() as stack:
        yield Running(folder, started, stack)
