"""Where logs go: syslog and systemd's journal by their own protocols, and disks that are full."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fulgate import targets
from fulgate.config import Config
from fulgate.errors import ConfigError
from fulgate.logs import Logs
from fulgate.targets import Journal, Syslog, address_of_syslog
from tests.command import APP, Served
from tests.flup import until
from tests.test_access_formats import exchange

log = logging.getLogger("fulgate")


@pytest.fixture
def receiver(folder: Path) -> Iterator[socket.socket]:
    """What syslogd and journald are: a datagram socket."""
    with listening(folder / "log") as sock:
        yield sock


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(20)
        yield sock


def configured(receiver: socket.socket, **settings: object) -> Config:
    return Config(
        error_logfile="syslog",
        access_logfile="syslog",
        access_log_format='%(h)s "%(r)s"',
        syslog_to=receiver.getsockname(),
        **settings,  # type: ignore[arg-type]
    )


def test_syslog(receiver: socket.socket) -> None:
    logs = Logs(configured(receiver, syslog_facility="local3", syslog_ident="site"))
    try:
        assert logs.access is not None
        logs.access(exchange())
        access = receiver.recv(9999).decode()
        log.error("two\nlines \x1b[2J")
        first, second = receiver.recv(9999).decode(), receiver.recv(9999).decode()
    finally:
        logs.close()
    stamp = r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d"
    head = rf"{stamp} site\[{os.getpid()}\]: "
    assert re.fullmatch(rf'<158>{head}10.0.0.9 "GET /a/b\?c=d HTTP/1.1"', access)  # local3.info
    assert re.fullmatch(rf"<155>{head}\[MainThread\] two", first)  # local3.err
    assert re.fullmatch(rf"<155>{head}  lines \\x1b\[2J", second)


def test_syslog_over_udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(20)
        port = sock.getsockname()[1]
        target = Syslog(address_of_syslog(f"udp:127.0.0.1:{port}"), "daemon", "fulgate")
        target.write(b"a line\n")
        line = sock.recv(9999).decode()
        old = Syslog(("127.0.0.1", port), "user", "fulgate", "3164")
        old.write(b"a line\n", 3)
        old_line = sock.recv(9999).decode()
        target.close()
        old.close()
    pid = os.getpid()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
    assert re.fullmatch(rf"<30>1 {stamp} [!-~]+ fulgate {pid} - - a line", line)
    assert re.fullmatch(
        rf"<11>\w{{3}} .\d \d\d:\d\d:\d\d [!-~]+ fulgate\[{pid}\]: a line", old_line
    )


@pytest.mark.parametrize("text", ["relative", "udp:", "udp:h:99999", "tcp:h:1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match="syslog_to"):
        Config(syslog_to=text)


def test_a_syslog_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot reach syslog at .*: No such file"):
        Logs(Config(error_logfile="syslog", syslog_to=str(tmp_path / "no")))


def entry(data: bytes) -> dict[str, str]:
    """Read an entry of the journal's native protocol."""
    found = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, sign, value = line.partition(b"=")
        if not sign:
            (size,) = struct.unpack("<Q", data[:8])
            value, data = data[8 : 8 + size], data[9 + size :]
        found[name.decode()] = value.decode()
    return found


def test_journal(receiver: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Journal.__init__, "__defaults__", (receiver.getsockname(),))
    logs = Logs(
        Config(
            error_logfile="journald",
            access_logfile="journald",
            access_log_format="%(s)s",
            log_limit=0,
        )
    )
    try:
        assert logs.access is not None
        logs.access(exchange(REQUEST_URI="/a\nPRIORITY=0"))
        access = entry(receiver.recv(9999))
        log.warning("two\nlines")
        record = entry(receiver.recv(9999))
        log.critical("x" * 1_000_000)
        _, fds, _, _ = socket.recv_fds(receiver, 9999, 1)
        with open(fds[0], "rb") as file:
            file.seek(0)
            large = entry(file.read())
    finally:
        logs.close()
    assert access == {
        "MESSAGE": "200",
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "fulgate",
        "REQUEST_ID": "5f1c",
        "REQUEST_METHOD": "GET",
        "REQUEST_URI": "/a\nPRIORITY=0",
        "HTTP_STATUS": "200",
        "REMOTE_ADDR": "10.0.0.9",
        "THREAD_NAME": "MainThread",
    }
    assert record["MESSAGE"] == "[MainThread] two\n  lines"
    assert (record["PRIORITY"], record["LOGGER"]) == ("4", "fulgate")
    assert record["CODE_FILE"] == __file__
    assert (large["PRIORITY"], len(large["MESSAGE"])) == ("2", 1_000_000 + len("[MainThread] "))


def test_a_receiver_that_comes_again_is_found(folder: Path) -> None:
    path = folder / "log"
    with listening(path):
        target = Syslog(str(path), "daemon", "fulgate")
    path.unlink()
    target.write(b"lost")
    assert target.lost == 1
    assert isinstance(target.problem, FileNotFoundError)
    with listening(path) as receiver:
        target.write(b"found")
        assert receiver.recv(999).endswith(b"found")
    assert target.problem is None
    target.close()


def test_a_receiver_that_is_stuck_stops_nobody(
    receiver: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "PATIENCE", 0.001)
    target = Syslog(receiver.getsockname(), "daemon", "fulgate")
    written = 0
    while not target.lost and written < 100_000:
        target.write(b"x" * 1000)
        written += 1
    assert isinstance(target.problem, BlockingIOError)
    for _ in range(written - 1):
        receiver.recv(2000)
    target.write(b"again")
    assert target.problem is None
    target.close()


def test_records_in_a_second_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 5.0
    monkeypatch.setattr("fulgate.logs.time.monotonic", lambda: now)
    logs = Logs(Config(error_logfile=str(tmp_path / "log"), log_rate=2, log_limit=120))
    try:
        for number in range(5):
            log.error("record %d", number)
        now = 6.0
        log.error("x" * 500)
    finally:
        logs.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line[-8:] for line in lines[:2]] == ["record 0", "record 1"]
    assert (len(lines[2]), lines[2][-4:]) == (120, "x...")
    assert lines[3] == "  (3 records before this one were left out)"


@pytest.mark.requires_root
def test_a_full_disk_under_the_logs_costs_no_request(folder: Path) -> None:
    (folder / "application.py").write_text(APP)
    disk = folder / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no tmpfs: {done.stderr}")
    try:
        with Served(
            "application:app",
            f"--bind=unix:{folder}/app.sock",
            f"--access-logfile={disk}/access",
            f"--error-logfile={disk}/error",
            "--log-level=debug",
            cwd=folder,
        ) as server:
            server.ask("/first")
            until(
                lambda: "/first" in (disk / "access").read_text(), "no line"
            )  # it follows the answer
            with contextlib.suppress(OSError), (disk / "ballast").open("wb", 0) as ballast:
                while True:
                    ballast.write(b"x" * 1024)
            # What the last page of the files has left is soon full too.
            for number in range(120):
                server.ask(f"/full/{number}")
            (disk / "ballast").unlink()
            server.ask("/after")
        lines = (disk / "access").read_text().splitlines()
        assert "/first" in lines[0]
        assert "/after" in lines[-1]
        assert len(lines) < 100
        assert all(line.count('"GET ') == 1 for line in lines if line.endswith(" ok"))
        error = (disk / "error").read_text()
        assert re.search(r"the access log is written again; \d+ lines were lost", error)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_threads_that_write_at_once(receiver: socket.socket) -> None:
    """Threads that write at once send whole lines."""
    target = Syslog(receiver.getsockname(), "daemon", "fulgate")
    threads = [threading.Thread(target=target.write, args=(b"%d" % n * 100,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    lines = {receiver.recv(999).rpartition(b": ")[2] for _ in range(8 - target.lost)}
    assert lines <= {b"%d" % n * 100 for n in range(8)}
    target.close()
