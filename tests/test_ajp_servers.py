"""Fulgate over AJP behind a real Apache, with mod_proxy_ajp and with mod_jk."""

# ruff: noqa: F403

from __future__ import annotations

import hashlib
import http.client
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests import flup
from tests.alone import free_port
from tests.command import Served
from tests.http_suite import *
from tests.http_suite import APP, MakeSite, Site
from tests.pages import Shown
from tests.sequence import APP as COUNTED
from tests.sequence import Sequence
from tests.servers import Apache, Fulgate, Running, connect
from tests.servers.snippets import SNIPPETS
from tests.servers.web import request
from tests.test_zero_loss import wait_for_ready

pytestmark = pytest.mark.requires_server("apache2", "mod_proxy_ajp")

PAGE = "ajp.md"
SECRET = "change-me"  # as on the page
SHOWN = {
    "proxy-tcp": Shown(PAGE, "apache", '"ajp://127.0.0.1:8009/"', ()),
    "proxy-unix": Shown(PAGE, "apache", "|ajp://localhost/", ()),
    # mod_jk ends an answer that broke as if it were whole.
    "jk": Shown(PAGE, "apache", "JkMount", ("mod_jk",), facts={"sees_breaks": False}),
}
WORKERS = Shown(PAGE, "properties", "worker.list", ())


def serve(running: Running, *options: str) -> tuple[Fulgate, int]:
    port = free_port()
    env = {"FULGATE_AJP_SECRET": SECRET}
    bind = ("--bind", f"ajp+tcp:127.0.0.1:{port}")
    return running(Fulgate, APP, *bind, *options, env=env, protocol="ajp"), port


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.requires_server(*one.needs))
        for name, one in SHOWN.items()
    ]
)
def site(running: Running, request: pytest.FixtureRequest) -> MakeSite:
    """mod_proxy_ajp and mod_jk, run with the lines that the manual shows for them."""
    one = SHOWN[request.param]

    def make(*options: str) -> Site:
        fulgate, backend = serve(running, *options)
        folder, port = str(fulgate.folder), free_port()
        workers = WORKERS.text(folder, port, backend)
        (fulgate.folder / "workers.properties").write_text(workers)
        apache = running(SNIPPETS["apache"], one.text(folder, port, backend), port)
        return Site(apache, fulgate, **one.facts)

    return make


def connections(port: int) -> int:
    """How many have been accepted on a port, and are open."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    wanted = f"0100007F:{port:04X}"
    return sum(line.split()[1] == wanted and line.split()[3] == "01" for line in lines)


def test_one_connection_is_kept_with_pings_in_between(running: Running) -> None:
    _, port = serve(running)
    line = f'ProxyPass "/" "ajp://127.0.0.1:{port}/" secret={SECRET} ping=5'
    apache = running(Apache, line)
    client = http.client.HTTPConnection("127.0.0.1", apache.port, timeout=30)
    for number in range(50):
        body = b"x" * (number * 500)
        client.request("POST", "/digest", body)
        answer = client.getresponse().read()
        assert hashlib.sha256(body).hexdigest().encode() in answer
    client.close()
    # One at a time, and Apache has one process here, whose threads share what is kept.
    assert connections(port) == 1


@pytest.mark.parametrize("secret", ["", "secret=wrong"])
def test_secret_is_required(running: Running, secret: str) -> None:
    fulgate, port = serve(running)
    apache = running(Apache, f'ProxyPass "/" "ajp://127.0.0.1:{port}/" {secret}')
    for _ in range(3):
        assert request(apache.port, "/hello").status == 403
        assert request(apache.port, "/digest", "POST", bytes(100_000)).status == 403
    assert fulgate.log().count("the secret is wrong, or missing") == 6
    assert SECRET not in fulgate.log()


def test_body_over_http2_without_a_length(running: Running, tmp_path: Path) -> None:
    """Nor is its content ever taken for a request, whatever it looks like."""
    _, port = serve(running)
    apache = running(
        Apache,
        "Protocols h2c http/1.1",
        f'ProxyPass "/" "ajp://127.0.0.1:{port}/" secret={SECRET}',
        modules=("http2",),
    )

    def curl(path: str, *options: str) -> bytes:
        url = f"http://127.0.0.1:{apache.port}{path}"
        command = ["curl", "-sS", "--http2-prior-knowledge", "--max-time", "30", *options, url]
        return subprocess.run(command, capture_output=True, timeout=60, check=True).stdout

    for size in (0, 1, 512, 600, 767, 8186, 8187, 300_000):
        (tmp_path / "body").write_bytes(b"\x02" * size)
        sent = ("-X", "POST", "-T", str(tmp_path / "body"), "-H", "Content-Length:")
        digest = hashlib.sha256(b"\x02" * size).hexdigest().encode()
        assert digest in curl("/digest", *sent)
        assert curl("/hello") == b"Hello, world!\n"
    assert connections(port) <= 2


@pytest.mark.parametrize("kind", ["ajp", "ajp_fork"])
def test_flup_s_servers(running: Running, folder: Path, kind: str) -> None:
    address = ("127.0.0.1", free_port())
    with flup.server(folder, kind, address) as program:
        apache = running(Apache, f'ProxyPass "/" "ajp://127.0.0.1:{address[1]}/" ping=5')
        for size in (0, 100, 100_000):
            body = bytes(size)
            assert request(apache.port, "/hello").body == b"Hello, world!\n"
            got = request(apache.port, "/digest", "POST", body)
            assert hashlib.sha256(body).hexdigest().encode() in got.body
        assert program.ends(signal.SIGTERM) == 0


def test_methods(running: Running) -> None:
    _, port = serve(running)
    apache = running(Apache, f'ProxyPass "/" "ajp://127.0.0.1:{port}/" secret={SECRET}')
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "PROPFIND", "OWN"):
        answer = request(apache.port, "/some/path", method, b"" if method == "POST" else None)
        assert f'"REQUEST_METHOD": "{method}"'.encode() in answer.body, answer


def test_variables_of_apache(running: Running) -> None:
    """What the configuration says; a header cannot say it."""
    _, port = serve(running)
    apache = running(
        Apache,
        "SetEnv AJP_ROLE admin",
        f'ProxyPass "/" "ajp://127.0.0.1:{port}/" secret={SECRET}',
    )
    headers = {"AJP-Role": "client", "AJP_ROLE": "client", "Remote-User": "root", "X_Y": "z"}
    body = request(apache.port, "/some/path", headers=headers).body
    assert b'"AJP_ROLE": "admin"' in body
    assert b'"HTTP_AJP_ROLE": "client"' in body
    assert b'"REMOTE_USER"' not in body
    assert b"X_Y" not in body
    assert re.search(rb'"REMOTE_PORT": "\d+"', body)
    assert b'"SERVER_ADDR": "127.0.0.1"' in body


def test_packets_of_another_size(running: Running) -> None:
    large = {"Cookie": "c=" + "x" * 7000, "X-More": "y" * 7000}
    _, port = serve(running)
    pass_on = f'ProxyPass "/" "ajp://127.0.0.1:{port}/" secret={SECRET}'
    assert request(running(Apache, pass_on).port, "/hello", headers=large).status == 400
    fulgate, port = serve(running, "--ajp-packet-size", "32768")
    pass_on = f'ProxyPass "/" "ajp://127.0.0.1:{port}/" secret={SECRET}'
    apache = running(Apache, "ProxyIOBufferSize 32768", pass_on)
    assert request(apache.port, "/hello", headers=large).status == 200
    pattern = bytes(range(256)) * 4000
    assert request(apache.port, f"/sized?size={len(pattern)}").body == pattern
    got = request(apache.port, "/digest", "POST", pattern)
    assert hashlib.sha256(pattern).hexdigest().encode() in got.body
    assert "closed a connection" not in fulgate.log()


@pytest.mark.parametrize("chunked", [True, False])
def test_client_that_goes_in_the_middle_of_an_upload(
    running: Running, tmp_path: Path, chunked: bool
) -> None:
    fulgate, port = serve(running, "--body-wait", "0")
    apache = running(Apache, f'ProxyPass "/" "ajp://127.0.0.1:{port}/" secret={SECRET}')
    length = "Transfer-Encoding: chunked" if chunked else "Content-Length: 1000000"
    with connect(apache.port) as client:
        client.sendall(f"POST /digest HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode())
        data = b"x" * 50_000
        client.sendall(b"c350\r\n%s\r\n" % data if chunked else data)
        time.sleep(0.2)  # for the application to read
        client.shutdown(socket.SHUT_RDWR)
    assert request(apache.port, "/hello").status == 200
    assert "Traceback" not in fulgate.log()


@pytest.mark.slow
def test_ten_reloads_lose_no_request(folder: Path, running: Running) -> None:
    """Connections that Apache keeps are handed from worker to worker."""
    (folder / "counted.py").write_text(COUNTED)
    port = free_port()
    options = ("--bind", f"ajp+tcp:127.0.0.1:{port}", "--threads", "3", "--workers", "2")
    with Served("counted:app", *options, "--log-level", "debug", cwd=folder) as server:
        wait_for_ready(server, 2)
        apache = running(Apache, f'ProxyPass "/" "ajp://127.0.0.1:{port}/"')
        with Sequence(apache.port, clients=4) as load:
            load.some_more()
            for version in range(2, 12):
                source = (folder / "counted.py").read_text()
                text = re.sub(r"VERSION = \d+", f"VERSION = {version}", source)
                (folder / "counted.py").write_text(text)
                server.process.send_signal(signal.SIGHUP)
                wait_for_ready(server, 2 * version)
                load.some_more(60)
        load.check(folder / "notes")
        assert {"1", "11"} <= load.versions
