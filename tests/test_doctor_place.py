"""`fulgate doctor ENDPOINT`: where an application listens, right and wrong."""

from __future__ import annotations

import http.client
import re
import socket
from pathlib import Path

import pytest

from fulgate.doctor.mistakes import Mistake
from fulgate.doctor.place import _own_address
from tests.alone import free_port
from tests.command import Served, here
from tests.doctored import SITE, WELL, bind_of, examined, finds, found, listening, status_of
from tests.responder import responder, serve_params
from tests.servers import Nginx, Running
from tests.servers.nginx import location


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
        assert found(said) == {Mistake.SOCKET}
        assert f"nobody may not connect to the socket {folder}/app" in said
        assert "FCGI_MPXS_CONNS=" in said
    with Served("site_here:app", "--bind", bind_of(said), cwd=folder):
        assert status_of(nginx.port) == 200
        said = examined(endpoint, "--user", "nobody", cwd=folder)
        assert "nobody may connect: yes" in said
        assert re.search(r"waiting to be accepted: 0 of \d+", said)
        assert said.endswith(WELL)


@finds(Mistake.DEAD, Mistake.LEFT_BEHIND, by="ENDPOINT")
def test_a_socket_where_nobody_listens(folder: Path) -> None:
    endpoint = f"unix:{folder}/app"
    said = examined(endpoint, cwd=folder)
    assert f"{endpoint} is dead: No such file" in said
    assert found(said) == {Mistake.DEAD}
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{folder}/app")
    said = examined(endpoint, cwd=folder)
    assert f"{endpoint} is dead: Connection refused [left-behind]\n" in said
    assert "\n      the socket was left behind: start the application" in said


@finds(Mistake.WRONG, by="ENDPOINT")
def test_what_listens_and_is_no_fastcgi(folder: Path) -> None:
    with responder(folder / "app", lambda peer: peer.socket.sendall(b"SSH-2.0-x\r\n")) as one:
        said = examined(one.endpoint, cwd=folder)
    assert f"{one.endpoint} is wrong: " in said
    assert Mistake.WRONG in found(said)


@finds(Mistake.WAITING, Mistake.BUSY, by="ENDPOINT")
def test_connections_that_wait(folder: Path) -> None:
    endpoint = f"unix:{folder}/app"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(f"{folder}/app")
        listener.listen(5)
        waiting.connect(f"{folder}/app")
        said = examined(endpoint, cwd=folder)
    assert f"1 connections of at most 5 wait on {endpoint} to be accepted" in said
    assert f"{endpoint} is busy: no answer within 2 s" in said
    assert found(said) >= {Mistake.WAITING, Mistake.BUSY}


def test_a_port_that_other_machines_reach(folder: Path) -> None:
    (folder / "site_here.py").write_text(SITE)
    port = free_port()
    endpoint = f"tcp:127.0.0.1:{port}"
    everybody = ["--bind", f"tcp:0.0.0.0:{port}", "--allowed-clients"]
    with Served("site_here:app", *everybody, "0.0.0.0/0", cwd=folder):
        said = examined(endpoint, cwd=folder)
        assert f"port {port} is open to other machines" in said
    with Served("site_here:app", "--bind", bind_of(said), cwd=folder):
        assert examined(endpoint, cwd=folder).endswith(WELL)
    with Served("site_here:app", *everybody, "127.0.0.1", cwd=folder):
        said = examined(endpoint, cwd=folder)
        # A machine without a network has no address to ask at.
        if own := _own_address():
            assert f"  open to other machines, but not to {own}\n" + WELL in said
        else:
            assert f"port {port} is open to other machines" in said


@pytest.mark.parametrize("protocol", ["", "scgi+", "ajp+"])
def test_a_port_that_is_open_by_ipv6_alone(folder: Path, protocol: str) -> None:
    (folder / "site_here.py").write_text(SITE)
    port = free_port()
    everybody = ["--bind", f"{protocol}tcp:[::]:{port}", "--allowed-clients", "::/0"]
    endpoint = f"{protocol}tcp:[::1]:{port}"
    with Served("site_here:app", *everybody, cwd=folder):
        said = examined(endpoint, cwd=folder)
    assert f"port {port} is open to other machines" in said
    assert bind_of(said) == endpoint  # which the web server goes on to connect to
    with Served("site_here:app", "--bind", bind_of(said), cwd=folder):
        assert examined(endpoint, cwd=folder).endswith(WELL)


@pytest.mark.requires_root
@pytest.mark.parametrize("protocol", ["scgi+", "ajp+"])
def test_a_socket_of_another_protocol_stays_one(folder: Path, protocol: str) -> None:
    (folder / "site_here.py").write_text(SITE)
    endpoint = f"{protocol}unix:{folder}/app"
    with Served("site_here:app", "--bind", endpoint, cwd=folder):
        said = examined(endpoint, "--user", "nobody", cwd=folder)
        assert found(said) == {Mistake.SOCKET}
    with Served("site_here:app", "--bind", bind_of(said), cwd=folder):
        assert examined(endpoint, "--user", "nobody", cwd=folder).endswith(WELL)


@pytest.mark.requires_server("nginx")
def test_it_listens_for_what_a_web_server_sends(folder: Path, running: Running) -> None:
    reports: list[str] = []
    tap = f"unix:{folder}/tap"
    for lines in ([], ['fastcgi_param HTTP_PROXY "";']):
        with (
            responder(folder / "app", serve_params) as one,
            listening(folder, tap, one.endpoint) as doctor,
        ):
            assert doctor.began == f"fulgate records {one.endpoint} on {tap}\n"
            nginx = running(Nginx, tap, location("/", *lines), keepalive=True)
            assert status_of(nginx.port, "/a/b?q", Proxy="evil:1") == 200
            nginx.stop()
            reports.append(doctor.report())
        (folder / "app").unlink()
    wrong, right = reports
    assert found(wrong) == {Mistake.HTTPOXY}
    assert 'fastcgi_param HTTP_PROXY "";' in wrong
    assert right.startswith("nginx/")
    assert right.endswith(WELL)


@pytest.mark.requires_server("nginx")
def test_it_answers_in_the_place_of_an_application(folder: Path, running: Running) -> None:
    tap = f"unix:{folder}/tap"
    with listening(folder, tap) as doctor:
        assert doctor.began.endswith(f" on {tap}\n")
        nginx = running(Nginx, tap)
        connection = http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=30)
        connection.request("GET", "/a/b?q", headers={"Proxy": "evil:1"})
        page = connection.getresponse().read().decode()
        connection.close()
        nginx.stop()
        out = doctor.report()
    assert page == out
    assert page.startswith("nginx/")
    assert found(page) == {Mistake.HTTPOXY, Mistake.NO_KEEP_ALIVE}


@pytest.mark.parametrize(("options", "hint"), [("", True), ("?mode=666", False)])
def test_that_no_web_server_came_is_told(folder: Path, options: str, hint: bool) -> None:
    with listening(folder, f"unix:{folder}/tap{options}") as doctor:
        assert doctor.began.startswith("fulgate records ")
        assert ("?group=www-data" in doctor.interrupted()) is hint


def test_misuse_is_told(folder: Path) -> None:
    for arguments in (
        ["unix:/s", "--pid", "1"],
        ["--listen", "unix:/s", "--pid", "1"],
        ["unix:/s", "--connections", "1"],
        ["--listen", "unix:/s", "--user", "nobody"],
        ["--pid", "1", "--user", "nobody"],
        ["systemd"],
    ):
        assert here("doctor", *arguments, cwd=folder).returncode == 2
    (folder / "file").touch()
    done = here("doctor", f"unix:{folder}/file", "--user", "nobody-of-that-name", cwd=folder)
    assert done.returncode == 2
