"""`fulgate doctor ENDPOINT`: where an application listens, right and wrong."""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fulgate.doctor.place import _own_address
from tests.alone import free_port
from tests.command import Served, environment, here
from tests.responder import responder, serve_params
from tests.servers import Nginx, Running
from tests.servers.nginx import location

SITE = """\
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"there"]
"""
WELL = "Findings\n  nothing that is known to be wrong\n"


def examined(*arguments: str, cwd: Path) -> str:
    """Have it look; a finding and the exit status belong together."""
    done = here("doctor", *arguments, cwd=cwd)
    assert done.stderr == ""
    assert done.returncode == (0 if done.stdout.endswith(WELL) else 1), done.stdout
    return done.stdout


def status_of(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/a")
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.requires_root
@pytest.mark.requires_server("nginx")
def test_a_socket_that_the_web_server_may_not_use(folder: Path, running: Running) -> None:
    (folder / "site_here.py").write_text(SITE)
    endpoint = f"unix:{folder}/app"

    class OfNobody(Nginx):
        def configure(self) -> None:
            super().configure()
            file = self.folder / "nginx.conf"
            file.write_text(file.read_text().replace("user root root;", "user nobody nogroup;"))

    nginx = running(OfNobody, endpoint)
    with Served("site_here:app", "--bind", endpoint, cwd=folder):
        assert status_of(nginx.port) == 502
        said = examined(endpoint, "--user", "nobody", cwd=folder)
        assert f"nobody may not connect to the socket {folder}/app" in said
        assert "FCGI_MPXS_CONNS=" in said
        (bind,) = re.findall(r"--bind '(.*)'", said)
    with Served("site_here:app", "--bind", bind, cwd=folder):
        assert status_of(nginx.port) == 200
        said = examined(endpoint, "--user", "nobody", cwd=folder)
        assert "nobody may connect: yes" in said
        assert re.search(r"waiting to be accepted: 0 of \d+", said)
        assert said.endswith(WELL)


def test_a_socket_where_nobody_listens(folder: Path) -> None:
    endpoint = f"unix:{folder}/app"
    assert f"{endpoint} is dead: No such file" in examined(endpoint, cwd=folder)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{folder}/app")
    said = examined(endpoint, cwd=folder)
    assert f"{endpoint} is dead: Connection refused\n      the socket was left behind" in said


def test_what_listens_and_is_no_fastcgi(folder: Path) -> None:
    with responder(folder / "app", lambda peer: peer.socket.sendall(b"SSH-2.0-x\r\n")) as one:
        assert f"{one.endpoint} is wrong: " in examined(one.endpoint, cwd=folder)


def test_connections_that_wait(folder: Path) -> None:
    endpoint = f"unix:{folder}/app"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(f"{folder}/app")
        listener.listen(5)
        waiting.connect(f"{folder}/app")
        said = examined(endpoint, cwd=folder)
    assert f"1 connections of at most 5 wait on {endpoint} to be accepted" in said
    assert f"{endpoint} is busy: no answer within 2 s" in said


def test_a_port_that_other_machines_reach(folder: Path) -> None:
    (folder / "site_here.py").write_text(SITE)
    port = free_port()
    endpoint = f"tcp:127.0.0.1:{port}"
    everybody = ["--bind", f"tcp:0.0.0.0:{port}", "--allowed-clients"]
    with Served("site_here:app", *everybody, "0.0.0.0/0", cwd=folder):
        said = examined(endpoint, cwd=folder)
        assert f"port {port} is open to other machines" in said
        (bind,) = re.findall(r"--bind (\S+)", said)
    with Served("site_here:app", "--bind", bind, cwd=folder):
        assert examined(endpoint, cwd=folder).endswith(WELL)
    with Served("site_here:app", *everybody, "127.0.0.1", cwd=folder):
        said = examined(endpoint, cwd=folder)
        # A machine without a network has no address to ask at.
        if own := _own_address():
            assert f"  open to other machines, but not to {own}\n" + WELL in said
        else:
            assert f"port {port} is open to other machines" in said


def test_a_port_that_is_open_by_ipv6_alone(folder: Path) -> None:
    (folder / "site_here.py").write_text(SITE)
    port = free_port()
    everybody = ["--bind", f"tcp:[::]:{port}", "--allowed-clients", "::/0"]
    with Served("site_here:app", *everybody, cwd=folder):
        said = examined(f"tcp:[::1]:{port}", cwd=folder)
    assert f"port {port} is open to other machines" in said


@pytest.mark.requires_server("nginx")
def test_it_listens_for_what_a_web_server_sends(folder: Path, running: Running) -> None:
    reports: list[str] = []
    for lines in ([], ['fastcgi_param HTTP_PROXY "";']):
        with responder(folder / "app", serve_params) as one:
            tap = f"unix:{folder}/tap"
            command = ["doctor", "--listen", tap, one.endpoint, "--connections", "1"]
            with subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "fulgate", *command],
                cwd=folder, env=environment(), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            ) as process:  # fmt: skip
                assert process.stderr is not None
                said = process.stderr.readline()
                assert said == f"fulgate records {one.endpoint} on {tap}\n"
                nginx = running(Nginx, tap, location("/", *lines), keepalive=True)
                connection = http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=30)
                connection.request("GET", "/a/b?q", headers={"Proxy": "evil:1"})
                assert connection.getresponse().status == 200
                connection.close()
                nginx.stop()
                reports.append(process.communicate(timeout=30)[0])
        (folder / "app").unlink()
        assert process.returncode == (0 if lines else 1)
    wrong, right = reports
    assert "(httpoxy)" in wrong
    assert 'fastcgi_param HTTP_PROXY "";' in wrong
    assert right.startswith("nginx/")
    assert right.endswith(WELL)


@pytest.mark.requires_server("nginx")
def test_it_answers_in_the_place_of_an_application(folder: Path, running: Running) -> None:
    tap = f"unix:{folder}/tap"
    command = ["doctor", "--listen", tap, "--connections", "1"]
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "fulgate", *command],
        cwd=folder, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert process.stderr.readline().endswith(f" on {tap}\n")
        nginx = running(Nginx, tap)
        connection = http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=30)
        connection.request("GET", "/a/b?q", headers={"Proxy": "evil:1"})
        page = connection.getresponse().read().decode()
        connection.close()
        nginx.stop()
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert page == out
    assert page.startswith("nginx/")
    assert 'fastcgi_param HTTP_PROXY "";' in page
    assert "fastcgi_keep_conn on;" in page


def test_misuse_is_told(folder: Path) -> None:
    for arguments in (
        ["unix:/s", "--pid", "1"],
        ["--listen", "unix:/s", "--pid", "1"],
        ["unix:/s", "--connections", "1"],
        ["systemd"],
    ):
        assert here("doctor", *arguments, cwd=folder).returncode == 2
    (folder / "file").touch()
    done = here("doctor", f"unix:{folder}/file", "--user", "nobody-of-that-name", cwd=folder)
    assert done.returncode == 2
