"""examples/stack as it stands: nginx, Fulgate, Django and MariaDB, started by its one script."""

from __future__ import annotations

import http.client
import os
import pwd
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from urllib.parse import urlencode

import pymysql
import pytest

from tests.command import environment, fulgate
from tests.sequence import Sequence
from tests.servers import PATH, connect

STACK = Path(__file__).parent.parent / "examples" / "stack"
PATIENCE = 90.0  # seconds

pytestmark = [
    pytest.mark.requires_server("nginx"),
    pytest.mark.requires_program("mariadbd", "mariadb-install-db", "mariadb"),
    pytest.mark.slow,
    pytest.mark.timeout(300),
]


class Running:
    """The script, run; ended by Ctrl+C on exit, if it still runs."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder / "stack"
        self.out = folder / "out"
        with self.out.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "start.py", "--folder", str(self.folder), *options],
                cwd=STACK,
                env=environment(PATH=PATH),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            self.port = int(self.wait_for(r"http://127\.0\.0\.1:(\d+)/"))
        except BaseException:
            self.end()
            raise

    @property
    def text(self) -> str:
        return self.out.read_text()

    def wait_for(self, pattern: str) -> str:
        end = time.monotonic() + PATIENCE
        while not (match := re.search(pattern, self.text)):
            assert self.process.poll() is None, self.logs()
            assert time.monotonic() < end, self.logs()
            time.sleep(0.05)
        return match[1]

    def logs(self) -> str:
        return "\n".join([self.text, *(p.read_text() for p in self.folder.glob("*.out"))])

    @property
    def pids(self) -> dict[str, int]:
        """Give the processes that the script says it has started."""
        return {name: int(pid) for name, pid in re.findall(r"(\w+) runs \(pid (\d+)\)", self.text)}

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.out").read_text()

    def ready(self) -> int:
        """How many workers have got ready by now?"""
        return len(re.findall(r"is ready$", self.log("fulgate"), re.MULTILINE))

    def wait_for_ready(self, count: int) -> None:
        end = time.monotonic() + PATIENCE
        while self.ready() < count:
            assert time.monotonic() < end, self.logs()
            time.sleep(0.05)

    def query(self, sql: str) -> list[tuple[str, ...]]:
        """Ask the database, on a connection of the test's own."""
        path = str(self.folder / "mariadb.sock")
        user = pwd.getpwuid(os.geteuid()).pw_name
        connection = pymysql.connect(unix_socket=path, user=user, database="guestbook")
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return [tuple(str(value) for value in row) for row in cursor.fetchall()]
        finally:
            connection.close()

    def global_status(self, name: str) -> int:
        return int(self.query(f"SHOW GLOBAL STATUS LIKE '{name}'")[0][1])

    def reload(self) -> None:
        done = fulgate("reload", "--pidfile", str(self.folder / "fulgate.pid"), cwd=self.folder)
        assert done.returncode == 0, done.stderr

    def end(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.end()


@pytest.fixture
def stack(folder: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    options = getattr(request, "param", ())
    with Running(folder, "--log-level", "debug", *options) as running:
        yield running


class Visitor:
    """A browser with a session of its own: it keeps the cookie, and sends the form's token."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.page = ""
        self.cookie = self.token = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.connection.close()

    def read(self) -> int:
        self.connection.request("GET", "/", headers={"Cookie": self.cookie})
        answer = self.connection.getresponse()
        self.page = answer.read().decode()
        if cookie := answer.headers["Set-Cookie"]:
            self.cookie = cookie.partition(";")[0]
        if token := re.search('name="csrfmiddlewaretoken" value="([^"]+)"', self.page):
            self.token = token[1]
        return answer.status

    def write(self, name: str, text: str) -> int:
        fields = {"csrfmiddlewaretoken": self.token, "name": name, "text": text}
        self.connection.request(
            "POST",
            "/",
            urlencode(fields),
            {"Cookie": self.cookie, "Content-Type": "application/x-www-form-urlencoded"},
        )
        answer = self.connection.getresponse()
        self.page = answer.read().decode()
        return answer.status

    @property
    def served_by(self) -> tuple[str, str]:
        """Give the worker and the connection to the database that the page was made with."""
        match = re.search(r"Worker (\d+) on database connection (\d+)", self.page)
        assert match, self.page
        return match[1], match[2]


class Visits(Sequence):
    """The clients of `Sequence`, who write a number each into the guest book, or read it."""

    def __init__(self, port: int) -> None:
        super().__init__(port, clients=6)
        self.served_by: list[tuple[str, str]] = []
        self.visitors: dict[http.client.HTTPConnection, Visitor] = {}

    def connect(self) -> http.client.HTTPConnection:
        visitor = Visitor(self.port)
        assert visitor.read() == 200
        self.visitors[visitor.connection] = visitor
        return visitor.connection

    def ask(self, connection: http.client.HTTPConnection, number: str, size: int) -> str:
        visitor = self.visitors[connection]
        if size:
            status = visitor.write(number, "x" * (size // 10))
            return "" if status == 302 else f"{status} {visitor.page[:200]}"
        if (status := visitor.read()) != 200:
            return f"{status} {visitor.page[:200]}"
        self.served_by.append(visitor.served_by)
        return ""


def check(load: Visits, stack: Running) -> None:
    """Is each number that was written in the database exactly once?"""
    assert load.failures == []
    written = sorted(name for (name,) in stack.query("SELECT name FROM guestbook_entry"))
    assert written == load.numbers(posts_only=True)


def test_what_is_written_is_read(stack: Running) -> None:
    with Visitor(stack.port) as visitor:
        assert visitor.read() == 200
        assert "0 entries" in visitor.page
        assert visitor.write("Zoë", "Grüße <b>an alle</b> 🎉") == 302
        assert visitor.read() == 200
        assert "1 entry" in visitor.page
        assert "Zoë" in visitor.page
        assert "Grüße &lt;b&gt;an alle&lt;/b&gt; 🎉" in visitor.page
        assert visitor.write("", "nobody") == 400
        assert "This field is required" in visitor.page
        visitor.token = "forged"
        assert visitor.write("Mallory", "forged") == 403
    assert stack.query("SELECT name FROM guestbook_entry") == [("Zoë",)]


def test_connections_persist_through_reloads(stack: Running) -> None:
    with Visits(stack.port) as load:
        load.some_more()
        for count in (4, 6, 8):
            stack.reload()
            stack.wait_for_ready(count)
            load.some_more(60)
    check(load, stack)
    workers = {worker for worker, _ in load.served_by}
    connections = {connection for _, connection in load.served_by}
    assert len(workers) >= 4
    # At most one for each of the four threads of a worker, however many requests.
    assert len(connections) <= 4 * 8 < len(load.served_by)
    assert_closed_in_order(stack)


@pytest.mark.parametrize(
    "stack", [("--max-requests", "60", "--max-requests-jitter", "20")], indirect=True
)
def test_connections_persist_through_recycling(stack: Running) -> None:
    with Visits(stack.port) as load:
        stack.wait_for_ready(12)
        load.some_more(20)
    check(load, stack)
    assert len({connection for _, connection in load.served_by}) < len(load.served_by)
    assert_closed_in_order(stack)


def assert_closed_in_order(stack: Running) -> None:
    """Did each worker that has ended take leave of the database?"""
    end = time.monotonic() + PATIENCE
    while stack.global_status("Threads_connected") > 4 * 2 + 1:  # what two workers may have
        assert time.monotonic() < end, stack.logs()
        time.sleep(0.1)
    assert stack.global_status("Aborted_clients") == 0


def test_what_the_database_has_closed_is_opened_anew(stack: Running) -> None:
    with Visitor(stack.port) as visitor:
        assert visitor.read() == 200
        before = visitor.served_by
        ours = "SELECT id FROM information_schema.processlist WHERE db = 'guestbook'"
        for (number,) in stack.query(ours + " AND id <> CONNECTION_ID()"):
            stack.query(f"KILL {number}")
        for _ in range(10):
            assert visitor.read() == 200
            assert visitor.served_by != before


def test_ctrl_c_stops_all_of_it_and_the_next_run_finds_the_entries(folder: Path) -> None:
    with Running(folder) as first:
        with Visitor(first.port) as visitor:
            visitor.read()
            assert visitor.write("Ada", "is here") == 302
        assert list(first.pids) == ["mariadbd", "fulgate", "nginx"]
        assert first.end() == 0, first.logs()
        assert_gone(first)
        assert not (folder / "stack" / "fulgate.sock").exists()
    with Running(folder) as second:
        with Visitor(second.port) as visitor:
            visitor.read()
            assert "Ada" in visitor.page
        assert second.end(signal.SIGTERM) == 0, second.logs()


def assert_gone(stack: Running) -> None:
    for pid in stack.pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with pytest.raises(ConnectionRefusedError):
        connect(stack.port)


def test_a_folder_is_one_runs_own(stack: Running) -> None:
    other = subprocess.run(
        [sys.executable, "start.py", "--folder", str(stack.folder)],
        cwd=STACK,
        env=environment(PATH=PATH),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert other.returncode == 1
    assert "another run has" in other.stderr


def test_when_one_of_them_ends_the_others_are_stopped(stack: Running) -> None:
    os.kill(stack.pids["nginx"], signal.SIGKILL)
    assert stack.process.wait(PATIENCE) == 1
    assert "nginx has ended by itself" in stack.text
    assert_gone(stack)
