"""Formats of the access log, as gunicorn and PHP-FPM have them."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgate.access import AccessLog
from fulgate.config import Config
from fulgate.errors import ConfigError
from fulgate.exchange import Exchange, Role
from fulgate.logformat import parse
from fulgate.targets import LogFile
from tests.command import APP, Served

GUNICORN = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'  # its default
PHP = '%R - %u %t "%m %r%Q%q" %s %f %{milli}d %{kilo}M %C%%'  # PHP-FPM's example


class Kept(LogFile):
    """Keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__("-", -1)
        self.text = ""

    def write(self, line: bytes, priority: int = 6, fields: object = ()) -> None:
        self.text += line.decode("utf-8")


def exchange(**params: str) -> Exchange:
    one = Exchange(1, Role.RESPONDER, keep=True)
    one.params = {
        "REQUEST_METHOD": "GET",
        "REQUEST_URI": "/a/b?c=d",
        "QUERY_STRING": "c=d",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "10.0.0.9",
        "REMOTE_USER": "me",
        "REQUEST_ID": "5f1c",
        "SCRIPT_FILENAME": "/srv/app",
        "HTTP_USER_AGENT": "curl/8",
        "HTTP_X_TRACE": "t 1",
        "CONTENT_LENGTH": "3",
        **params,
    }
    one.status, one.sent, one.received = "200 OK", 12, 3
    one.headers = [("Content-Type", "text/html"), ("Set-Cookie", "a"), ("set-cookie", "b")]
    one.began = time.monotonic() - 0.25
    return one


def line_of(format: str, one: Exchange | None = None, limit: int = 0) -> str:
    file = Kept()
    AccessLog(file, format, limit, pool="www")(one or exchange())
    assert file.text.endswith("\n")
    return file.text[:-1]


@pytest.mark.parametrize(
    ("format", "line"),
    [
        ("%(h)s %(l)s %(u)s", "10.0.0.9 - me"),
        ('"%(r)s" %(s)s %(B)s %(b)s', '"GET /a/b?c=d HTTP/1.1" 200 12 12'),
        ("%(m)s %(U)s %(q)s %(H)s", "GET /a/b c=d HTTP/1.1"),
        ('"%(f)s" "%(a)s"', '"-" "curl/8"'),
        ("%({X-Trace}i)s|%({x-trace}i)s", "t\\x201|t\\x201"),
        ('"%({X-Trace}i)s"', '"t 1"'),
        ("%({content-type}o)s %({Set-Cookie}o)s %({no}o)s", "text/html a,\\x20b -"),
        ("%({REQUEST_ID}e)s %({none}e)s %({Content-Length}i)s", "5f1c - 3"),
        ("%(id)s %(end)s %(received)s %(thread)s %(uri)s", "5f1c ok 3 MainThread /a/b?c=d"),
        ("%(p)s", "<PID>"),
        ("%(T)s", "0"),
        ("%R %u %m %r %Q%q", "10.0.0.9 me GET /a/b ?c=d"),
        ("%s %f %l %n %p %P", "200 /srv/app 3 www PID PARENT"),
        ("%{REQUEST_ID}e %{Content-Type}o %%", "5f1c text/html %"),
        ("%{%Y}t", time.strftime("%Y")),
        ("%h", None),
        ("%(nothing)s", None),
        ("%(h)d", None),
        ("%e", None),
        ("%{weeks}d", None),
        ("100%", None),
        ("nothing at all", None),
        ("%s\n", None),
    ],
)
def test_fields(format: str, line: str | None) -> None:
    if line is None:
        with pytest.raises(ConfigError, match="access_log_format"):
            Config(access_log_format=format)
    else:
        Config(access_log_format=format)
        for name, number in {"PID": os.getpid(), "PARENT": os.getppid()}.items():
            line = line.replace(name, str(number))
        assert line_of(format) == line


@pytest.mark.parametrize(
    ("format", "low", "high"),
    [
        ("%(L)s", 0.25, 60),
        ("%d", 0.25, 60),
        ("%(M)s", 250, 60e3),
        ("%{mili}d", 250, 60e3),
        ("%(D)s", 250e3, 60e6),
        ("%{micro}d", 250e3, 60e6),
        ("%M", 1e6, 1e11),
        ("%{mega}M", 1, 1e5),
        ("%(rss)s", 1e6, 1e11),
    ],
)
def test_numbers(format: str, low: float, high: float) -> None:
    assert low <= float(line_of(format)) <= high


def test_defaults_of_others() -> None:
    stamp = r"\[?\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]?"
    assert re.fullmatch(
        rf'10.0.0.9 - me {stamp} "GET /a/b\?c=d HTTP/1.1" 200 12 "-" "curl/8"', line_of(GUNICORN)
    )
    assert re.fullmatch(
        rf'10.0.0.9 - me {stamp} "GET /a/b\?c=d" 200 /srv/app [\d.]+ \d+ 0.00%', line_of(PHP)
    )


def test_cpu_is_that_of_the_request() -> None:
    file = Kept()
    log = AccessLog(file, "%(cpu)s %C")
    assert log.wants_cpu
    assert not AccessLog(file, "%(h)s").wants_cpu
    before = time.thread_time()

    def gateway(one: object, carrier: object) -> None:
        end = time.thread_time() + 0.03
        while time.thread_time() < end:
            pass

    one = exchange()
    log.timed(gateway)(one, None)  # type: ignore[arg-type]
    used = time.thread_time() - before
    log(one)
    log(exchange())  # another one, of which nothing is known
    first, second = file.text.splitlines()
    assert 0.01 <= float(first.split()[0]) <= used + 0.01
    assert 0 < float(first.split()[1]) <= 100
    assert second == "0.000000 0.00"


@given(st.text(), st.sampled_from(["%(uri)s", '"%(uri)s"', "%r", '{"uri":"%(uri)s","m":"%m"}']))
def test_no_value_leaves_its_field(text: str, format: str) -> None:
    line = line_of(format, exchange(REQUEST_URI=text or "/"))
    assert line.isascii()
    assert line.isprintable()
    if format.startswith("{"):
        assert set(json.loads(line)) == {"uri", "m"}
    elif format.startswith('"'):
        assert re.fullmatch(r'"(?:[^"\\]|\\.)*"', line)
    else:
        assert " " not in line


def test_a_long_line_is_cut() -> None:
    long = exchange(REQUEST_URI="/" + "\xe9" * 3000, HTTP_REFERER="r" * 3000)
    for format in ("combined", "%r %s"):
        line = line_of(format, long, 200)
        assert len(line) == 199
        assert line.endswith("...")
    found = json.loads(line_of("json", long, 600))
    assert found["uri"].endswith("...")
    assert found["status"] == 200
    assert len(line_of("json", long, 600)) < 600
    assert len(line_of("combined", long)) > 6000


def test_parts() -> None:
    assert [getattr(part, "quoted", part) for part in parse('a"%r"b%s')] == [
        'a"', True, '"b', False,
    ]  # fmt: skip


def test_a_server_writes_it(folder: Path) -> None:
    (folder / "application.py").write_text(APP)
    with Served(
        "application:app",
        f"--bind=unix:{folder}/app.sock",
        f"--access-logfile={folder}/access",
        "--access-log-format=%(id)s %(s)s %({content-type}o)s %(thread)s %(cpu)s",
        cwd=folder,
    ) as server:
        server.ask("/x")
    line = (folder / "access").read_text()
    match = re.fullmatch(r"the-id 200 application/json fulgate-\d+ (\d\.\d{6})\n", line)
    assert match is not None, line
    assert float(match[1]) < 20
