"""The logs: what came from outside forges nothing, and no disk that is full stops us."""

from __future__ import annotations

import json
import logging
import os
import re
import string
import subprocess
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgate.config import Config
from fulgate.errors import ConfigError, LimitExceeded
from fulgate.exchange import Exchange, Role
from fulgate.logs import AccessLog, LogFile, Logs, escape, request_id, request_line
from tests.processes import output, python

log = logging.getLogger("fulgate")


def exchange(**params: object) -> Exchange:
    """An exchange that was answered."""
    one = Exchange(1, Role.RESPONDER, keep=True)
    one.params = {
        "REQUEST_METHOD": "GET",
        "REQUEST_URI": "/a?b",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "10.0.0.9",
        **params,
    }
    one.status, one.sent, one.received = "200 OK", 12, 3
    one.began = time.monotonic() - 0.25
    return one


def logged(one: Exchange, folder: Path, format: str = "combined") -> str:
    path = folder / "access"
    path.unlink(missing_ok=True)
    file = LogFile(str(path), 1)
    AccessLog(file, format)(one)
    file.close()
    return path.read_text("ascii")


COMBINED = re.compile(
    r'(\S+) - (\S+) \[(\d\d/[A-Z][a-z][a-z]/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\] "((?:[^"\\]|\\.)*)"'
    r' (\S+) (\d+) "((?:[^"\\]|\\.)*)" "((?:[^"\\]|\\.)*)"'
    r" (\d+\.\d{6}) id=(\S+) thread=(\S+) (ok|aborted|broken|refused)\n"
)


def test_combined(tmp_path: Path) -> None:
    one = exchange(
        REMOTE_USER="me", REQUEST_ID="5f1c", HTTP_REFERER="http://x/", HTTP_USER_AGENT="curl/8"
    )
    match = COMBINED.fullmatch(logged(one, tmp_path))
    assert match is not None
    address, user, when, line, status, size, referer, agent, seconds, ident, thread, end = (
        match.groups()
    )
    assert (address, user, line, status, size) == (
        "10.0.0.9",
        "me",
        "GET /a?b HTTP/1.1",
        "200",
        "12",
    )
    assert (referer, agent, ident, thread) == ("http://x/", "curl/8", "5f1c", "MainThread")
    assert end == "ok"
    assert 0.25 <= float(seconds) < 60
    at = time.mktime(time.strptime(when[:20], "%d/%b/%Y:%H:%M:%S"))
    assert abs(time.time() - at) < 60


def test_combined_of_nothing(tmp_path: Path) -> None:
    one = Exchange(1, Role.RESPONDER, keep=True)
    match = COMBINED.fullmatch(logged(one, tmp_path))
    assert match is not None
    assert match.group(1, 2, 4, 5, 6, 7, 8) == ("-", "-", "- -", "-", "0", "-", "-")
    assert float(match[9]) == 0


def test_json(tmp_path: Path) -> None:
    one = exchange(
        REQUEST_URI='/"\\\n\xc3\xa9', HTTP_USER_AGENT="\xff\x00", UNIQUE_ID="u1", HTTP_HOST="h"
    )
    found = json.loads(logged(one, tmp_path, "json"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert 0.25 <= found.pop("duration") < 60
    assert found == {
        "id": "u1",
        "remote_addr": "10.0.0.9",
        "remote_user": "",
        "method": "GET",
        "host": "h",
        "uri": '/"\\\n\u00e9',
        "protocol": "HTTP/1.1",
        "status": 200,
        "bytes": 12,
        "received": 3,
        "referer": "",
        "user_agent": "\xff\x00",
        "pid": os.getpid(),
        "thread": "MainThread",
        "end": "ok",
    }


@pytest.mark.parametrize("format", ["combined", "json"])
def test_how_it_ended(tmp_path: Path, format: str) -> None:
    aborted, broken, refused = exchange(), exchange(), exchange()
    aborted.aborted, aborted.status = True, ""
    broken.broken = True
    refused.refused = LimitExceeded("431 Request Header Fields Too Large", "too large")
    for one, word in ((aborted, "aborted"), (broken, "broken"), (refused, "refused")):
        assert word in logged(one, tmp_path, format)
    if format == "json":
        assert json.loads(logged(aborted, tmp_path, format))["status"] is None


def test_the_thread_is_named(tmp_path: Path) -> None:
    lines: list[str] = []
    thread = threading.Thread(
        target=lambda: lines.append(logged(exchange(), tmp_path)), name='work "er\n1'
    )
    thread.start()
    thread.join(10)
    assert 'thread=work\\x20\\"er\\n1 ok' in lines[0]


def test_the_uri_is_made_up_where_none_came() -> None:
    one = exchange(SCRIPT_NAME="/app", PATH_INFO="/x", QUERY_STRING="q=1")
    del one.params["REQUEST_URI"]
    assert request_line(one) == "GET /app/x?q=1 HTTP/1.1"
    one.params["QUERY_STRING"] = ""
    assert request_line(one) == "GET /app/x HTTP/1.1"


def test_the_id_stays_and_differs() -> None:
    one, other = exchange(), exchange()
    first = request_id(one)
    assert re.fullmatch("[0-9a-f]{24}", first)
    assert request_id(one) == first == one.params["fulgate.request_id"]
    assert request_id(other) != first
    assert request_id(exchange(REQUEST_ID="a", UNIQUE_ID="b")) == "a"
    assert request_id(exchange(REQUEST_ID="", UNIQUE_ID="b")) == "b"


def test_a_forked_child_gives_other_ids() -> None:
    code = """
        import os
        from fulgate.exchange import Exchange, Role
        from fulgate.logs import request_id
        pid = os.fork()
        if pid: os.waitpid(pid, 0)
        print(request_id(Exchange(1, Role.RESPONDER, True)), flush=True)
        """
    assert len(set(output(python(code)).split())) == 2


@given(st.text())
def test_escaped_text_is_one_printable_word_between_quotes(text: str) -> None:
    escaped = escape(text)
    assert set(escaped) <= set(string.printable) - set("\t\n\r\x0b\x0c")
    assert re.fullmatch(r'(?:[^"\\]|\\.)*', escaped)
    shown = escaped.encode().decode("unicode_escape")
    assert shown == text  # nothing is lost


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "REQUEST_METHOD",
                "REQUEST_URI",
                "SERVER_PROTOCOL",
                "REMOTE_ADDR",
                "REMOTE_USER",
                "HTTP_REFERER",
                "HTTP_USER_AGENT",
                "REQUEST_ID",
                "HTTP_HOST",
            ]
        ),
        st.text() | st.none() | st.sampled_from(['" 200 12 "-" "x', "%s%d%(name)s{0}", "a\r\nb"]),
    )
)
def test_no_request_forges_a_line(params: dict[str, object]) -> None:
    one = exchange(**params)
    read, write = os.pipe()
    with open(read, "rb") as reader, open(write, "wb") as writer:
        file = LogFile("-", writer.fileno())
        AccessLog(file, "combined")(one)
        AccessLog(file, "json")(one)
        writer.close()
        text = reader.read().decode("ascii")
    combined, json_line, nothing = text.split("\n")
    assert COMBINED.fullmatch(combined + "\n")
    assert json.loads(json_line)["bytes"] == 12
    assert nothing == ""


# The error log


@pytest.fixture
def error_log(tmp_path: Path) -> Path:
    return tmp_path / "error.log"


def test_error_log(error_log: Path) -> None:
    logs = Logs(Config(error_logfile=str(error_log), log_level="warning"))
    try:
        log.info("not this")
        log.warning("with %s", 'an "argument"')
        logging.getLogger("fulgate.child").error("from a child")
    finally:
        logs.close()
    log.error("after it was closed")
    lines = error_log.read_text().splitlines()
    assert len(lines) == 2
    assert re.fullmatch(
        r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}\] \[\d+\] \[WARNING\] \[MainThread\]"
        r' with an "argument"',
        lines[0],
    )
    assert lines[1].endswith("from a child")
    assert error_log.stat().st_mode & 0o027 == 0


def test_what_follows_a_record_cannot_pass_for_one(error_log: Path) -> None:
    logs = Logs(Config(error_logfile=str(error_log)))
    try:
        try:
            raise ValueError("x\n[2026-11-23 08:00:00 +0000] [1] [ERROR] forged\x1b[2J\x9b\x85")
        except ValueError:
            log.exception("%s", "a\r\nb\u2028c\udc80")
        log.error("%d bottles", "no number")
    finally:
        logs.close()
    text = error_log.read_text()
    lines = text.split("\n")
    starts = [line for line in lines if line and not line.startswith("  ")]
    assert len(starts) == 2, lines
    assert "Traceback" in text
    assert "[1] [ERROR] forged\\x1b[2J\\x9b\\x85" in text
    assert "\\U00002028c\\U0000dc80" in text
    assert "a record that cannot be formatted: TypeError" in starts[1]
    assert "%d bottles" in starts[1]
    assert not set(text) & {"\r", "\x1b", "\x9b", "\x85", "\u2028"}


def test_logging_is_put_back(error_log: Path) -> None:
    before = (log.level, log.propagate, list(log.handlers))
    logs = Logs(Config(error_logfile=str(error_log), log_level="debug"))
    assert log.level == logging.DEBUG
    assert logs.access is None
    logs.close()
    assert (log.level, log.propagate, list(log.handlers)) == before


def test_a_log_that_cannot_be_opened(tmp_path: Path) -> None:
    before = list(log.handlers)
    for config in (
        Config(error_logfile=str(tmp_path / "no" / "log")),
        Config(access_logfile=str(tmp_path / "no" / "log"), error_logfile=str(tmp_path / "e")),
    ):
        with pytest.raises(ConfigError, match=r"cannot open the log file .*: No such file"):
            Logs(config)
        assert log.handlers == before


# Disks and rotation


def test_a_full_disk_raises_nothing_and_is_told_once(error_log: Path, tmp_path: Path) -> None:
    access = tmp_path / "access"
    access.symlink_to("/dev/full")
    logs = Logs(Config(access_logfile=str(access), error_logfile=str(error_log)))
    try:
        assert logs.access is not None
        for _ in range(3):
            logs.access(exchange())
        assert logs.access.file.lost == 3
        access.unlink()
        logs.reopen()
        logs.access(exchange())
        logs.access(exchange())
    finally:
        logs.close()
    lines = error_log.read_text().splitlines()
    assert len(lines) == 2
    assert lines[0].endswith(f"cannot write the access log {access}: No space left on device")
    assert lines[1].endswith("the access log is written again; 3 lines were lost")
    assert len(access.read_text().splitlines()) == 2


def test_a_full_disk_under_the_error_log_raises_nothing() -> None:
    logs = Logs(Config(error_logfile="/dev/full", access_logfile="/dev/full"))
    try:
        assert logs.access is not None
        log.error("lost")
        logs.access(exchange())
    finally:
        logs.close()


def test_a_torn_line_ends_before_the_next_begins(tmp_path: Path) -> None:
    code = f"""
        import resource, signal
        from fulgate.logs import LogFile
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (25, resource.RLIM_INFINITY))
        file = LogFile("{tmp_path}/log", 1)
        file.write(b"the first line\\n")
        file.write(b"the second line\\n")
        assert file.lost == 1 and file.problem is not None
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        file.write(b"the third line\\n")
        assert file.lost == 1 and file.problem is None
        """
    output(python(code))
    assert (tmp_path / "log").read_text() == "the first line\nthe second\nthe third line\n"


def test_reopen_after_rotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    logs = Logs(Config(access_logfile="access", error_logfile="error"))
    monkeypatch.chdir("/")
    try:
        assert logs.access is not None
        logs.access(exchange(REQUEST_URI="/one"))
        for name in ("access", "error"):
            (tmp_path / name).rename(tmp_path / (name + ".1"))
        logs.access(exchange(REQUEST_URI="/two"))
        logs.reopen()
        logs.access(exchange(REQUEST_URI="/three"))
        log.error("new")
        (tmp_path / "access").unlink()
        (tmp_path / "access").mkdir()
        logs.reopen()  # cannot: goes on as before, and says so
    finally:
        logs.close()
    old = (tmp_path / "access.1").read_text()
    assert "/one" in old
    assert "/two" in old
    assert "/three" not in old
    assert "cannot reopen the log file access: Is a directory" in (tmp_path / "error").read_text()
    assert (tmp_path / "error.1").read_text() == ""


def test_many_threads_and_rotation_lose_no_line(tmp_path: Path) -> None:
    path = tmp_path / "access"
    file = LogFile(str(path), 1)

    def work() -> None:
        for n in range(500):
            file.write(b"%05d" % n + b"x" * 200 + b"\n")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in range(20):
        path.rename(tmp_path / f"access.{n}")
        file.reopen()
    for thread in threads:
        thread.join(30)
    file.close()
    lines = b"".join(p.read_bytes() for p in tmp_path.iterdir()).split(b"\n")
    assert len(lines) == 2001
    assert all(len(line) == 205 for line in lines[:-1])


def test_standard_streams_are_written_and_stay_open() -> None:
    code = """
        import logging, os
        from fulgate.config import Config
        from fulgate.exchange import Exchange, Role
        from fulgate.logs import Logs
        logs = Logs(Config(access_logfile="-"))
        logs.access(Exchange(1, Role.RESPONDER, True))
        logging.getLogger("fulgate").error("to stderr")
        logs.reopen()
        logs.close()
        os.write(1, b"open\\n")
        os.write(2, b"open\\n")
        """
    process = python(code)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert COMBINED.match(out)
    assert out.endswith("ok\nopen\n")
    assert err.endswith("to stderr\nopen\n")


def test_a_reader_that_went_away_raises_nothing() -> None:
    code = """
        import sys
        from fulgate.logs import LogFile
        sys.stdin.readline()
        file = LogFile("-", 1)
        file.write(b"x\\n")
        print(file.lost, file=sys.stderr)
        """
    process = python(code, stdin=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read().strip() == "1"
    assert process.wait(10) == 0
