"""A script that a web server starts: by FastCGI on descriptor 0, or as plain CGI."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fulgate.client.connection import call
from tests.alone import alone_with, unused_user
from tests.servers import PATH, Running
from tests.servers.web import PATIENCE, appears, eventually, logs, request
from tests.spawned import Account, page
from tests.spawned.servers import HTACCESS, SpawnFCGI, cgi, fcgid, lighttpd

BODY = bytes(range(256)) * 1000
PARAMS = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/x",
    "REQUEST_URI": "/x",
    "SERVER_PROTOCOL": "HTTP/1.1",
}


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    with tempfile.TemporaryDirectory(prefix="fulgate-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        yield Account(Path(path) / "home")


@pytest.fixture
def script(account: Account) -> Iterator[Path]:
    yield account.script()
    for path in account.www.iterdir():
        path.unlink()


def said(body: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(body)
    return facts


def gone(pid: int) -> bool:
    """Wait until a process, which is not a child of ours, is gone."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.01)
    return False


# spawn-fcgi


@pytest.mark.statement("1")
@pytest.mark.requires_server("spawn-fcgi")
@pytest.mark.parametrize("unix", [False, True])
def test_spawn_fcgi(account: Account, script: Path, running: Running, unix: bool) -> None:
    server = running(SpawnFCGI, script, unix=unix)
    answer = call(server.endpoint, PARAMS)
    facts = said(answer.body)
    assert answer.status == 200
    assert facts["pid"] == server.pid
    assert facts["prefix"] == str(account.home / "venv")
    assert facts["environ"]["PATH_INFO"] == "/x"
    assert facts["environ"]["wsgi.run_once"] is False
    assert facts["environ"]["wsgi.multiprocess"] is True  # there may be more of them
    assert server.stop(signal.SIGTERM) == 0
    assert appears(account.ended / str(facts["pid"])) == "by itself"


@pytest.mark.requires_server("spawn-fcgi")
def test_spawn_fcgi_in_the_background(account: Account, script: Path, folder: Path) -> None:
    pid_file = folder / "pid"
    where = ["-s", f"{folder}/s", "-P", str(pid_file)]
    program = shutil.which("spawn-fcgi", path=PATH)
    assert program is not None
    subprocess.run(
        [program, *where, "--", str(script)], check=True, timeout=PATIENCE, capture_output=True
    )
    pid = int(appears(pid_file))
    try:
        assert said(call(f"unix:{folder}/s", PARAMS).body)["pid"] == pid
    finally:
        os.kill(pid, signal.SIGTERM)
    assert gone(pid)
    assert appears(account.ended / str(pid)) == "by itself"


# mod_fcgid


@pytest.mark.requires_server("apache2", "mod_fcgid")
def test_mod_fcgid(account: Account, script: Path, running: Running) -> None:
    (account.www / ".htaccess").write_text(HTACCESS)
    apache = running(fcgid, account)
    facts = said(request(apache.port, "/app.fcgi/a%20b?y=1").body)
    environ = facts["environ"]
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/app.fcgi", "/a b")
    assert environ["QUERY_STRING"] == "y=1"
    assert "mod_fcgid" in environ["SERVER_SOFTWARE"]
    assert environ["wsgi.run_once"] is False
    assert facts["uid"] == _user_of(apache.pid)

    again = said(request(apache.port, "/app.fcgi", "POST", BODY).body)
    assert again["pid"] == facts["pid"]  # the process stays
    assert again["length"] == len(BODY)
    chunked = said(request(apache.port, "/app.fcgi", "POST", [BODY, BODY], chunked=True).body)
    assert chunked["pid"] == facts["pid"]
    assert chunked["length"] == 2 * len(BODY)

    assert request(apache.port, "/app.fcgi/raise").status == 500
    logs(apache, "ValueError: a fault of the application")
    assert said(request(apache.port, "/app.fcgi").body)["pid"] == facts["pid"]

    apache.stop()
    assert gone(facts["pid"])
    # It ended by SIGTERM and in order, before Apache would have sent SIGKILL.
    assert appears(account.ended / str(facts["pid"])) == "by itself"


def _user_of(pid: int) -> int:
    """Give the user whom Apache's workers run as, by their parent."""
    uids: set[int] = set()

    def workers() -> bool:  # they come after the process manager, which stays root
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                text = status.read_text()
            except OSError:
                continue
            if f"\nPPid:\t{pid}\n" in text:
                uids.add(int(text.split("\nUid:\t")[1].split()[1]))
        return bool(uids - {0})

    deadline = time.monotonic() + PATIENCE
    while not workers() and time.monotonic() < deadline:
        time.sleep(0.02)
    (uid,) = uids - {0} or {0}
    return uid


@pytest.mark.requires_server("apache2", "mod_fcgid")
def test_a_script_that_is_ended_is_started_again(
    account: Account, script: Path, running: Running
) -> None:
    (account.www / ".htaccess").write_text(HTACCESS)
    apache = running(fcgid, account)
    first = said(request(apache.port, "/app.fcgi").body)["pid"]
    os.kill(first, signal.SIGTERM)
    assert gone(first)
    assert appears(account.ended / str(first)) == "by itself"
    # Until mod_fcgid has seen it, it answers 500 or 503.
    deadline = time.monotonic() + PATIENCE
    while (answer := request(apache.port, "/app.fcgi")).status != 200:
        assert time.monotonic() < deadline, answer.body
        time.sleep(0.05)
    assert said(answer.body)["pid"] != first


# The recipe of docs/shared-hosting.md


def recipe(account: Account) -> tuple[str, str]:
    """Give the .htaccess and the script of the page."""
    blocks = page("shared-hosting.md", account.home)
    (htaccess,) = [block for block in blocks if block.startswith("# .htaccess")]
    (script,) = [block for block in blocks if block.startswith("#!")]
    return htaccess, script


@pytest.mark.requires_server("apache2", "mod_fcgid")
def test_the_recipe(account: Account, script: Path, running: Running) -> None:
    htaccess, text = recipe(account)
    account.script(text)
    (account.www / ".htaccess").write_text(htaccess)
    (account.www / "style.css").write_text("body {}\n")
    apache = running(fcgid, account)
    for path in ("/", "/caf%C3%A9/a%20b", "/app/"):
        facts = said(request(apache.port, path).body)
        environ = facts["environ"]
        assert environ["SCRIPT_NAME"] == ""
        assert environ["REQUEST_URI"] == path
    assert environ["PATH_INFO"] == "/app/"
    assert facts["prefix"] == str(account.home / "venv")
    assert [name for name in facts["threads"] if name.startswith("fulgate-")] == [
        "fulgate-1",
        "fulgate-control",
    ]
    assert request(apache.port, "/style.css").body == b"body {}\n"  # Apache's own
    assert request(apache.port, "/raise").status == 500
    log = account.home / "app.log"
    eventually(lambda: "ValueError: a fault of the application" in log.read_text(), "it is logged")
    assert "ValueError" not in (apache.folder / "error.log").read_text()


@pytest.mark.requires_server("apache2", "mod_fcgid")
def test_the_recipe_in_a_folder(account: Account, folder: Path, running: Running) -> None:
    htaccess, text = recipe(account)
    shop = account.www / "shop"
    shop.mkdir()
    try:
        account.script(text, "shop/app.fcgi")
        (shop / ".htaccess").write_text(htaccess)
        apache = running(fcgid, account)
        for path, info in (("/shop/", "/"), ("/shop/caf%C3%A9/b", "/caf\xc3\xa9/b")):
            environ = said(request(apache.port, path).body)["environ"]
            assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/shop", info)
    finally:
        shutil.rmtree(shop)


@pytest.mark.requires_server("apache2", "mod_fcgid")
def test_the_recipes_script_answers_as_cgi_too(
    account: Account, script: Path, running: Running
) -> None:
    htaccess, text = recipe(account)
    assert "AddHandler fcgid-script .fcgi" in htaccess
    account.script(text)
    (account.www / ".htaccess").write_text(htaccess.replace("fcgid-script", "cgi-script"))
    apache = running(fcgid, account)
    first = said(request(apache.port, "/a%20b?y=1", "POST", BODY).body)
    second = said(request(apache.port, "/a%20b", "POST", [BODY, BODY], chunked=True).body)
    assert first["pid"] != second["pid"]  # a process for each request
    assert (first["length"], second["length"]) == (len(BODY), 2 * len(BODY))
    assert first["environ"]["SCRIPT_NAME"] == ""
    assert first["environ"]["PATH_INFO"] == "/a b"
    assert first["environ"]["wsgi.run_once"] is True
    head = request(apache.port, "/x", "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert request(apache.port, "/raise").status == 500


# lighttpd


@pytest.mark.requires_server("lighttpd")
def test_lighttpd_starts_it_by_bin_path(account: Account, script: Path, running: Running) -> None:
    server = running(lighttpd, account, script)
    facts = said(request(server.port, "/a/b?y=1", "POST", BODY).body)
    assert facts["length"] == len(BODY)
    environ = facts["environ"]
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("", "/a/b")
    assert said(request(server.port, "/").body)["pid"] == facts["pid"]
    assert request(server.port, "/raise").status == 500
    server.stop()
    assert gone(facts["pid"])
    assert appears(account.ended / str(facts["pid"])) == "by itself"


# CGI


@pytest.mark.statement("1")
def test_the_same_script_answers_as_cgi(account: Account, script: Path) -> None:
    done = cgi(script, BODY)
    assert done.returncode == 0
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == b"Status: 200 OK"
    assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
    assert done.stderr == b"printed\ntold\n"  # and nothing of it in the answer
    facts = said(body)
    assert facts["length"] == len(BODY)
    assert facts["threads"] == ["MainThread"]
    environ = facts["environ"]
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/cgi-bin/app.fcgi", "/x")
    flags = ("wsgi.multithread", "wsgi.multiprocess", "wsgi.run_once")
    assert [environ[name] for name in flags] == [False, True, True]
    assert (account.ended / str(facts["pid"])).exists()


@pytest.mark.statement("1")
def test_a_connected_socket_on_descriptor_0_is_cgi(account: Account, script: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"abcd")
        done = cgi(script, env={"CONTENT_LENGTH": "3"}, stdin=theirs.fileno())
    assert said(done.stdout.partition(b"\r\n\r\n")[2])["length"] == 3


@pytest.mark.statement("1")
def test_a_listening_socket_on_descriptor_0_is_fastcgi_whatever_the_environment(
    script: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = subprocess.Popen(
            [str(script)],
            stdin=server.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"GATEWAY_INTERFACE": "CGI/1.1", "REQUEST_METHOD": "GET", "PATH": os.defpath},
        )
        try:
            answer = call(f"tcp:127.0.0.1:{server.getsockname()[1]}", PARAMS)
            assert said(answer.body)["pid"] == process.pid
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            process.wait(PATIENCE)


@pytest.mark.parametrize("value", ["Y", "y"])
def test_cgi_can_be_forced(script: Path, value: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = cgi(script, env={"FCGI_FORCE_CGI": value}, stdin=server.fileno())
    assert done.stdout.startswith(b"Status: 200 OK\r\n")


@pytest.mark.parametrize("unset", ["GATEWAY_INTERFACE", "REQUEST_METHOD"])
def test_it_is_no_cgi_without_its_variables(script: Path, unset: str) -> None:
    # Then it listens where a server does that is told nothing; here that is in use already.
    with alone_with(9000), socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 9000))
            taken.listen()
        except OSError:
            pass  # by somebody else
        done = cgi(script, env={unset: ""}, stdin=subprocess.DEVNULL)
    assert done.returncode != 0
    assert b"BindError" in done.stderr
    assert done.stdout == b""


def test_the_exit_status_tells_of_a_failure(account: Account) -> None:
    script = account.script("import sys, fulgate, myapp\nsys.exit(fulgate.serve(myapp.app))\n")
    assert cgi(script).returncode == 0
    done = cgi(script, env={"PATH_INFO": "/raise"})
    assert done.returncode == 1
    assert done.stdout.startswith(b"Status: 500 Internal Server Error\r\n")
    assert done.stderr.count(b"ValueError: a fault of the application") == 1


# Closed standard streams

CLOSED = """\
import os, socket
from pathlib import Path

# Opened while the script is imported, so before Fulgate can see to the descriptors.
other = socket.create_connection(("127.0.0.1", {port}))
Path({noted!r}).write_text(str(other.fileno()))

def app(environ, start_response):
    print("printed")
    environ["wsgi.errors"].write("told\\n")
    if environ["PATH_INFO"] == "/raise":
        raise ValueError("a fault of the application")
    start_response("200 OK", [])
    return [b"answered"]

import fulgate
fulgate.serve(app, access_logfile="-", stderr=True)
"""


@pytest.mark.parametrize("closed", [(1, 2), (1,), (2,)])
def test_nothing_goes_to_a_socket_that_got_the_number_of_a_standard_stream(
    account: Account, folder: Path, closed: tuple[int, ...]
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        text = CLOSED.format(port=other.getsockname()[1], noted=str(folder / "noted"))
        closing = " ".join(f"{fd}>&-" for fd in closed)
        process = subprocess.Popen(
            ["/bin/sh", "-c", f'exec "$0" {closing}', str(account.script(text))],
            stdin=server.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            connected, _ = other.accept()
            with connected:
                endpoint = f"tcp:127.0.0.1:{server.getsockname()[1]}"
                assert call(endpoint, PARAMS).body == b"answered"
                assert call(endpoint, {**PARAMS, "PATH_INFO": "/raise"}).status == 500
                assert int((folder / "noted").read_text()) == closed[0]
                process.terminate()
                assert process.wait(PATIENCE) == 0
                connected.settimeout(PATIENCE)
                assert connected.recv(100) == b""
        finally:
            process.kill()
            process.wait(PATIENCE)


def test_cgi_without_standard_error(account: Account, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        text = CLOSED.format(port=other.getsockname()[1], noted=str(folder / "noted"))
        script = account.script(text)
        shell = folder / "shell"
        shell.write_text(f'#!/bin/sh\nexec "{script}" 2>&-\n')
        shell.chmod(0o755)
        assert cgi(shell).stdout.endswith(b"\r\n\r\nanswered")
        assert cgi(shell, env={"PATH_INFO": "/raise"}).stdout.startswith(b"Status: 500 ")
        assert (folder / "noted").read_text() == "2"
        for _ in range(2):
            connected, _ = other.accept()
            with connected:
                connected.settimeout(PATIENCE)
                assert connected.recv(100) == b""


# No thread to be had

LIMITED = """\
import resource, sys
from fulgate import serve
from myapp import app

resource.setrlimit(resource.RLIMIT_NPROC, ({limit}, {limit}))
sys.exit(serve(app))
"""


@pytest.mark.requires_root
@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_it_serves_with_the_threads_that_it_gets(
    account: Account, folder: Path, limit: int
) -> None:
    script = account.script(LIMITED.format(limit=limit))
    user = unused_user()  # each thread of another process would count
    log = folder / "log"
    with socket.create_server(("127.0.0.1", 0)) as server, log.open("wb") as out:
        process = subprocess.Popen(
            [str(script)],
            stdin=server.fileno(),
            stdout=out,
            stderr=out,
            user=user,
            group=user,
            extra_groups=[],
        )
        try:
            endpoint = f"tcp:127.0.0.1:{server.getsockname()[1]}"
            assert said(call(endpoint, PARAMS, BODY).body)["length"] == len(BODY)
            facts = said(call(endpoint, PARAMS).body)
            assert call(endpoint, {**PARAMS, "PATH_INFO": "/raise"}).status == 500
            idle = [socket.create_connection(server.getsockname()) for _ in range(20)]
            process.terminate()
            assert process.wait(PATIENCE) == 0
            for one in idle:
                one.close()
        finally:
            process.kill()
            process.wait(PATIENCE)
    ours = {name for name in facts["threads"] if name.startswith("fulgate-")}
    if limit < 3:  # the process itself is one
        assert not ours
        assert facts["environ"]["wsgi.multithread"] is False
        assert "serving in the main thread" in log.read_text()
    else:
        assert ours == {"fulgate-control", *[f"fulgate-{n + 1}" for n in range(limit - 2)]}
        assert f"serving with {limit - 2} of 8 threads" in log.read_text()


@pytest.mark.requires_server("apache2", "mod_fcgid")
def test_mod_fcgid_where_no_thread_can_be_started(
    account: Account, script: Path, running: Running
) -> None:
    account.script(LIMITED.format(limit=1))
    (account.www / ".htaccess").write_text(HTACCESS)
    apache = running(fcgid, account)
    if _user_of(apache.pid) == 0:
        pytest.fail("limits on processes do not hold for root")
    for _ in range(3):
        facts = said(request(apache.port, "/app.fcgi/x", "POST", BODY).body)
        assert facts["length"] == len(BODY)
        assert facts["threads"] == ["MainThread"]
    apache.stop()
    assert appears(account.ended / str(facts["pid"])) == "by itself"
