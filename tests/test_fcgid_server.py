"""Fulgate started by Apache's mod_fcgid, by the script and the .htaccess that the manual shows."""

# ruff: noqa: F403

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import apps
from tests.http_suite import *
from tests.http_suite import MakeSite, Site
from tests.servers import Running
from tests.servers.web import PATIENCE
from tests.spawned import Account, page
from tests.spawned.servers import fcgid

pytestmark = pytest.mark.requires_server("apache2", "mod_fcgid")

NOTED = """
import atexit
from pathlib import Path

Path(__file__).with_name("pid").write_text(str(os.getpid()))
atexit.register(Path(__file__).with_name("pid").unlink)
"""


class Spawned:
    """The process that Apache has started, which is no child of ours."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.told = False

    @property
    def pid_file(self) -> Path:
        return self.account.home / "app" / "pid"

    def log(self) -> str:
        return (self.account.home / "app.log").read_text()

    def accepts(self) -> bool:
        return not self.told

    def stop(self) -> int:
        """Have it end, and wait until it has ended in order."""
        os.kill(int(self.pid_file.read_text()), signal.SIGTERM)
        self.told = True
        deadline = time.monotonic() + PATIENCE
        while self.pid_file.exists():
            if time.monotonic() > deadline:
                return 1
            time.sleep(0.01)
        return 0


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    with tempfile.TemporaryDirectory(prefix="fulgate-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        found = Account(Path(path) / "home")
        (found.home / "app").chmod(0o777)
        text = Path(apps.__file__).read_text()
        (found.home / "app" / "myapp.py").write_text(f"{text}\nimport os\n{NOTED}")
        yield found


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Give a folder in which the user whom Apache gives scripts may write."""
    with tempfile.TemporaryDirectory(prefix="fulgate-", dir="/tmp") as path:
        Path(path).chmod(0o777)
        yield Path(path)


@pytest.fixture
def site(running: Running, account: Account) -> MakeSite:
    shown = page("shared-hosting.md", account.home)
    (script,) = (block for block in shown if block.startswith("#!"))
    (htaccess,) = (block for block in shown if "fcgid-script" in block)

    def make(*options: str) -> Site:
        # A process of mod_fcgid's answers one request at a time, whatever --threads says.
        given = dict(zip(options[::2], options[1::2], strict=True))
        more = [f", {k[2:].replace('-', '_')}={v}" for k, v in given.items() if k != "--threads"]
        assert script.count("threads=1") == 1
        account.script(script.replace("threads=1", "threads=1" + "".join(more)))
        (account.www / ".htaccess").write_text(htaccess)
        (account.home / "app.log").unlink(missing_ok=True)
        # What the page names that is the host's to set.
        apache = running(fcgid, account, "FcgidOutputBufferSize 0", "FcgidMaxProcesses 4")
        return Site(apache, Spawned(account), sees_breaks=False)

    return make
