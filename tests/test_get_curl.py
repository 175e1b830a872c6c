"""`fulgate get` beside curl: the same request, over HTTP through a real nginx, and over FastCGI."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import subprocess
import sys
import unittest.mock
from collections.abc import Callable
from pathlib import Path

import pytest

from fulgate.cli import main
from tests.alone import free_port
from tests.command import environment
from tests.responder import responder, serve_params
from tests.servers import Fulgate, Nginx, Running
from tests.servers.nginx import location
from tests.servers.php import PHP_FPM, PhpFpm
from tests.test_get import get

pytestmark = [
    pytest.mark.requires_server("nginx"),
    pytest.mark.requires_program("curl"),
]

BOUND = 60.0  # seconds for a command
# Without them nginx tells a client that an answer was cut only where it has its length.
PASSED = ("fastcgi_buffering off;", "fastcgi_read_timeout 20s;")

Run = Callable[..., tuple[int, bytes]]


@pytest.fixture
def site(running: Running, folder: Path) -> tuple[Run, Run]:
    """Give curl and `fulgate get`, as functions of a path and options: exit status and output."""
    fulgate = running(Fulgate, "tests.curl_site:app")
    nginx = running(Nginx, fulgate.backend, location("/", *PASSED))
    for name in ("curl", "get"):
        cwd = folder / name
        cwd.mkdir()
        (cwd / "lines").write_bytes(b"one\r\ntwo=2 & 3\n")
        (cwd / "page.html").write_bytes(b"<p>\r\n\0</p>\n")
        (cwd / "headers").write_text("X-One: 1\nX-Two: 2\n")

    def curl(path: str, *options: str, given: bytes = b"") -> tuple[int, bytes]:
        command = ["curl", "-q", "-s", nginx.url + path, *options]
        done = subprocess.run(
            command, cwd=folder / "curl", input=given, stdout=subprocess.PIPE, timeout=BOUND
        )
        return done.returncode, done.stdout

    def own(path: str, *options: str, given: bytes = b"") -> tuple[int, bytes]:
        """In this process, which takes a tenth of the time."""
        out = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n")
        stdin = io.TextIOWrapper(io.BytesIO(given))
        with (
            contextlib.chdir(folder / "get"),
            contextlib.redirect_stdout(out),
            unittest.mock.patch("sys.stdin", stdin),
        ):
            status = main(["get", f"unix:{fulgate.socket}", path, "-s", *options])
        out.flush()
        return status, out.buffer.getvalue()

    return curl, own


SAME: list[list[str]] = [
    ["/"],
    ["/a%20b/c?d=e%26f&g"],
    ["/", "-d", "a=1", "-d", "b=2"],
    ["/", "-d", "@lines", "--data-binary", "@lines", "-d", "last"],
    ["/", "-d", "one", "--data-raw", "@lines", "--data-ascii", "three"],
    ["/", "-d", ""],
    ["/", "-d", "@-"],
    ["/", "--data-binary", "@-"],
    ["/", "--data-urlencode", "name=a b&c=d/ü+", "--data-urlencode", "=x&"],
    ["/", "--data-urlencode", "y z", "-d", "plain"],
    ["/", "--data-urlencode", "@lines", "--data-urlencode", "file@lines"],
    ["/", "-G", "-d", "a=1", "--data-urlencode", "b=c d"],
    ["/?z", "-G", "-d", "a=1"],
    ["/", "-G", "-I", "-o", "head", "-d", "a=1", "-w", "%{http_code} %{size_download}"],
    ["/", "--json", '{"a":', "--json", "1}"],
    ["/", "--json", "@lines", "-H", "Accept: text/plain"],
    ["/", "-X", "DELETE"],
    ["/", "-X", "PUT", "-d", "a"],
    ["/", "-d", "a", "-H", "Content-Type: text/x"],
    ["/", "-H", "Accept:", "-H", "X-One: 1", "-H", "X-Two;"],
    ["/", "-H", "@headers"],
    ["/", "-u", "me:pass:word"],
    ["/", "-u", "me:word", "-H", "Authorization: Bearer x"],
    ["/", "-A", "agent/1", "-e", "http://localhost/before", "-r", "0-9"],
    ["/", "-A", ""],
    ["/", "-b", "a=1; b=2"],
    ["/", "-b", "a=1", "-b", "b=2"],
    ["/", "-T", "page.html"],
    ["/folder/", "-T", "page.html"],
    ["/x", "-T", "lines", "-X", "POST"],
    ["/", "-F", "a=1", "-F", "b=two words", "--form-string", "c=@lines;type=x"],
    ["/", "-F", "f=@page.html", "-F", "g=@lines;type=text/x;filename=na\"me", "-F", "h=<lines"],
    ["/missing"],
    ["/missing", "-f"],
    ["/missing", "--fail-with-body"],
    ["/broken", "-f"],
    ["/redirect", "-w", "%{http_code} %{redirect_url}\\n"],
    ["/redirect", "-f"],
    ["/none", "-f"],
    ["/empty", "-o", "file"],
    ["/missing", "-f", "-o", "no-file"],
    ["/binary"],
    ["/large"],
    ["/large", "-o", "large"],
    ["/large", "-o", "none/large"],
    ["/large", "-O"],
    ["/", "-O"],
    ["/folder/name.json?x", "-O"],
    ["/", "-T", "no-such-file"],
    ["/", "-F", "a=@no-such-file"],
    ["/", "-d", "a", "-I"],
    ["/", "-d", "a", "-T", "lines"],
    ["/", "--no-such-option"],
    ["/", "-m", "0", "-N"],
    ["/", "-o", "-"],
    ["/large", "-o", "large", "-w", "%{http_code} %{size_download} %{size_upload}"],
    ["/empty", "-w", "%{content_type} %{response_code}%%\\t%{method}"],
    ["/", "-d", "abc", "-o", "x", "-w", "%{size_upload}\\q%header{x-length}"],
    ["/missing", "-f", "-w", "%{exitcode} %{onerror}%{http_code}"],
    ["/empty", "-w", "%{exitcode} %{onerror}%{http_code}"],
    ["/empty", "-w", "%{stderr}not here%{stdout}here"],
    ["/empty", "-w", "@lines"],
    ["/empty", "-w", "%{num_connects} %{nothing}"],
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_same_request_gives_the_same(site: tuple[Run, Run], folder: Path) -> None:
    wrong = {}
    for path, *options in SAME:
        one, other = (run(path, *options, given=b"from\nstdin\n") for run in site)
        if one != other:
            wrong[" ".join([path, *options])] = (one, other)
    assert not wrong
    files = {
        name: {
            file.relative_to(folder / name): file.read_bytes()
            for file in (folder / name).rglob("*")
            if file.name != "head"  # of HTTP
        }
        for name in ("curl", "get")
    }
    assert files["curl"] == files["get"]
    # How much of it comes is a matter of time.
    assert [run("/cut")[0] for run in site] == [18, 18]


def test_what_has_no_length_is_uploaded(site: tuple[Run, Run]) -> None:
    """nginx waits for its end and tells the length, which `fulgate get` cannot know before."""
    given = os.urandom(300_000).replace(b"\0", b"")
    found = [run("/up", "-T", "-", given=given) for run in site]
    first, second = (text.split(b"\n") for _, text in found)
    told = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    assert told == [(b' "CONTENT_LENGTH": "300000",'.replace(b"300000", str(len(given)).encode()),
                     b' "CONTENT_LENGTH": "",')]  # fmt: skip
    assert [status for status, _ in found] == [0, 0]


def test_no_connection_and_no_time_are_as_in_curl(folder: Path) -> None:
    port = free_port()
    done = subprocess.run(["curl", "-q", "-s", f"http://127.0.0.1:{port}/"], timeout=BOUND)
    status, out, errors = get(f"tcp:127.0.0.1:{port}", "-s", cwd=folder)
    assert (status, out, errors) == (done.returncode, "", "")
    assert status == 7
    # -S says it all the same.
    assert "cannot connect" in get(f"tcp:127.0.0.1:{port}", "-sS", cwd=folder)[2]
    out = get(
        f"tcp:127.0.0.1:{port}", "-s", "-w", "%{exitcode} %{http_code}|%{errormsg}", cwd=folder
    )[1]
    assert out.startswith("7 000|cannot connect")


def test_the_head_goes_into_a_file(folder: Path) -> None:
    with responder(folder / "s", serve_params) as one:
        status, out, _ = get(one.endpoint, "-D", "head", "-o", "body", cwd=folder)
        assert (status, out) == (0, "")
        assert (folder / "head").read_text().startswith("Status: 200 OK\n")
        assert '"REQUEST_METHOD"' in (folder / "body").read_text()
        out = get(one.endpoint, "-D", "-", cwd=folder)[1]
        assert out.startswith("Status: 200 OK\n")
        assert get(one.endpoint, "-s", "-D", "none/head", cwd=folder)[0] == 23


def on_a_terminal(command: list[str], cwd: Path) -> tuple[int, bytes]:
    """Run a command whose standard output is a terminal."""
    here, there = pty.openpty()
    try:
        with subprocess.Popen(
            command, cwd=cwd, env=environment(), stdin=subprocess.DEVNULL, stdout=there,
            stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            status = process.wait(BOUND)
        os.set_blocking(here, False)
        try:
            return status, os.read(here, 1000)
        except BlockingIOError:
            return status, b""
    finally:
        os.close(here)
        os.close(there)


def test_a_terminal_is_given_no_binary_answer(running: Running, folder: Path) -> None:
    fulgate = running(Fulgate, "tests.curl_site:app")
    nginx = running(Nginx, fulgate.backend)
    own = [sys.executable, "-m", "fulgate", "get", f"unix:{fulgate.socket}"]
    for path, options in (("/binary", []), ("/binary", ["-o", "-"]), ("/empty", []), ("/", [])):
        one = on_a_terminal(["curl", "-q", "-s", nginx.url + path, *options], folder)
        assert on_a_terminal([*own, path, *options], folder) == one, path
    assert on_a_terminal([*own, "/binary"], folder) == (23, b"")


PHP = """<?php
$files = array_map(
    fn($file) => [$file["name"], $file["type"], file_get_contents($file["tmp_name"])], $_FILES
);
$user = [$_SERVER["PHP_AUTH_USER"] ?? "", $_SERVER["PHP_AUTH_PW"] ?? ""];
echo json_encode([$_GET, $_POST, $files, $_COOKIE, $user, file_get_contents("php://input")]);
"""


@pytest.mark.requires_server(PHP_FPM)
def test_php_understands_what_is_sent(running: Running, folder: Path) -> None:
    php = running(PhpFpm)
    (folder / "shown.php").write_text(PHP)
    (folder / "page.txt").write_text("a page\n")

    def ask(path: str, *options: str) -> list[object]:
        script = ("--script-filename", str(folder / "shown.php"))
        status, out, errors = get(php.endpoint, path, *script, *options, cwd=folder)
        assert (status, errors) == (0, "")
        found: list[object] = json.loads(out)
        return found

    assert ask("/?a=1", "-d", "b=2", "--data-urlencode", "c=x &y") == [
        {"a": "1"}, {"b": "2", "c": "x &y"}, [], [], ["", ""], "b=2&c=x+%26y",
    ]  # fmt: skip
    assert ask("/", "-G", "--data-urlencode", "c=x &y", "-b", "k=v", "-u", "me:word")[:1] == [
        {"c": "x &y"}
    ]
    assert ask("/", "-b", "k=v; l=w", "-u", "me:wo:rd")[3:5] == [
        {"k": "v", "l": "w"}, ["me", "wo:rd"],
    ]  # fmt: skip
    assert ask("/", "-F", "f=@page.txt", "-F", "g=<page.txt", "-F", "h=1", "--form-string", "i=@x")[
        1:3
    ] == [
        {"g": "a page\n", "h": "1", "i": "@x"},
        {"f": ["page.txt", "text/plain", "a page\n"]},
    ]
    assert ask("/", "-T", "page.txt")[5] == "a page\n"
