"""`fulgate doctor ENDPOINT` where a real web server is in front: what it says is done, and works.

The web servers are run with what the manual shows for them.
"""

from __future__ import annotations

import re
import socket
import subprocess
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from fulgate.doctor.mistakes import Mistake
from fulgate.doctor.place import _own_address
from tests.alone import free_port
from tests.command import Served, here
from tests.doctored import (
    SITE,
    WELL,
    bind_of,
    examined,
    found,
    listening,
    mends,
    status_of,
)
from tests.pages import configuration
from tests.recording import recording
from tests.servers import RealServer, Running
from tests.servers.snippets import SNIPPETS, Snippet

OTHERS = "other-servers.md"

# The page, what its configuration holds, and what makes the web server be www-data.
SHOWN = {
    "nginx": ("nginx.md", "upstream", ""),
    "apache": (OTHERS, 'ProxyPass "/"', ""),
    "lighttpd": (OTHERS, "fix-root", 'server.username = "www-data"\n'),
    "haproxy": (OTHERS, "fcgi-app", "global\n    user www-data\n    group www-data\n"),
    "caddy": (OTHERS, "transport", ""),
    "h2o": (OTHERS, '"/"', ""),
}
# The socket of the page, as each writes a port in its place.
OVER_TCP = {
    "nginx": ("unix:{socket}", "{host}:{port}"),
    "apache": ('"unix:{socket}|fcgi://localhost/"', '"fcgi://{host}:{port}/"'),
    "lighttpd": ('"socket" => "{socket}"', '"host" => "{host}", "port" => {port}'),
    "haproxy": ("unix@{socket}", "{host}:{port}"),
    "caddy": ("unix/{socket}", "{host}:{port}"),
    "h2o": ("port: {socket}\n          type: unix", "host: {host}\n          port: {port}"),
}


def cases(*mistakes: Mistake, nginx: bool) -> list[ParameterSet]:
    """Give the web servers; `nginx`: its configuration is looked at, too."""
    return [
        pytest.param(
            web,
            marks=[
                pytest.mark.requires_server(kind.program),
                mends(*mistakes, by="ENDPOINT", web=web),
                *([mends(*mistakes, by="--nginx", web=web)] if nginx and web == "nginx" else []),
            ],
        )
        for web, kind in SNIPPETS.items()
    ]


def of_www_data(web: str, own: Path, text: str, port: int) -> RealServer:
    """Give a web server that serves as www-data: whom it becomes by itself, or is started as."""
    own.chmod(0o777)  # for its log
    server = SNIPPETS[web](own, text, port)
    if web == "caddy":
        server.as_user = "www-data"
    return server


@pytest.mark.requires_root
@pytest.mark.parametrize("web", cases(Mistake.SOCKET, Mistake.FOLDER, nginx=False))
def test_a_socket_that_the_web_server_may_not_use(
    web: str, folder: Path, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "site_here.py").write_text(SITE)
    page, holds, user = SHOWN[web]
    port = free_port()
    endpoint = f"unix:{folder}/app.sock"
    text = user + configuration(page, web, holds, str(folder), port)
    as_user = {"nginx": "user www-data www-data;", "h2o": "user: www-data"}
    monkeypatch.setattr(SNIPPETS[web], "as_root", as_user.get(web, ""), raising=False)
    with Served("site_here:app", "--bind", endpoint, cwd=folder):
        server = running(lambda own: of_www_data(web, own, text, port))
        assert status_of(port) in (500, 502, 503)
        report = examined(endpoint, cwd=folder)
        assert found(report) == {Mistake.SOCKET}
        assert f"www-data may not connect to the socket {folder}/app.sock" in report
        server.stop()  # which remembers, some of them, that nobody was there
    with Served("site_here:app", "--bind", bind_of(report), cwd=folder):
        server.start()
        assert status_of(port) == 200
        assert examined(endpoint, cwd=folder).endswith(WELL)
        server.stop()
        (folder / "in").mkdir(mode=0o700)
        inner = text.replace(f"{folder}/app.sock", f"{folder}/in/app.sock")
        assert inner != text
    inside = bind_of(report).replace("/app.sock", "/in/app.sock")
    with Served("site_here:app", "--bind", inside, cwd=folder):
        server = running(lambda own: of_www_data(web, own, inner, port))
        assert status_of(port) in (500, 502, 503)
        report = examined(inside, cwd=folder)
        assert found(report) == {Mistake.FOLDER}
        (command,) = re.findall(r"let them pass: (.*)", report)
        server.stop()
        subprocess.run(command, shell=True, check=True, timeout=30)
        server.start()
        assert status_of(port) == 200
        assert examined(inside, cwd=folder).endswith(WELL)


@pytest.mark.requires_root
@pytest.mark.requires_server("haproxy")
def test_haproxy_looks_for_the_socket_in_its_chroot(folder: Path, running: Running) -> None:
    (folder / "site_here.py").write_text(SITE)
    port = free_port()
    text = configuration(OTHERS, "haproxy", "fcgi-app", str(folder), port)
    text = f"global\n    user www-data\n    group www-data\n    chroot {folder}\n{text}"
    inside = text.replace(f"unix@{folder}/app.sock", "unix@/app.sock")
    assert inside != text
    with Served("site_here:app", "--bind", f"unix:{folder}/app.sock?mode=666", cwd=folder):
        server = running(SNIPPETS["haproxy"], text, port)
        assert status_of(port) == 503
        server.stop()
        running(SNIPPETS["haproxy"], inside, port)
        assert status_of(port) == 200


def reachable(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 5.0).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("web", cases(Mistake.OPEN_PORT, nginx=True))
def test_a_port_that_other_machines_reach(web: str, folder: Path, running: Running) -> None:
    (folder / "site_here.py").write_text(SITE)
    page, holds, _ = SHOWN[web]
    port, backend = free_port(), free_port()
    text = configuration(page, web, holds, str(folder), port)
    old, new = (
        one.format(socket=f"{folder}/app.sock", host="127.0.0.1", port=backend)
        for one in OVER_TCP[web]
    )
    assert text.count(old) == 1
    text = text.replace(old, new)
    everybody = ["--bind", f"tcp:0.0.0.0:{backend}", "--allowed-clients", "0.0.0.0/0"]
    endpoint = f"tcp:127.0.0.1:{backend}"
    others = _own_address() or "127.0.0.2"  # a machine without a network has no other address
    with Served("site_here:app", *everybody, cwd=folder):
        server = running(SNIPPETS[web], text, port)
        assert status_of(port) == 200
        assert reachable(others, backend)
        report = examined(endpoint, cwd=folder)
        assert Mistake.OPEN_PORT in found(report)
        assert f"port {backend} is open to other machines" in report
        if web == "nginx":
            said = here("doctor", "--nginx", f"{server.folder}/nginx.conf", cwd=folder).stdout
            assert Mistake.OPEN_PORT in found(said)
            assert f"whoever listens on port {backend} does so for other machines, too" in said
            assert bind_of(said) == bind_of(report)
        server.stop()
    with Served("site_here:app", "--bind", bind_of(report), cwd=folder):
        server.start()
        assert status_of(port) == 200
        assert not reachable(others, backend)
        assert examined(endpoint, cwd=folder).endswith(WELL)


class Nginx:
    """nginx with what the manual shows for it, connecting to a tap; `file` is its configuration."""

    def __init__(self, folder: Path, running: Running, tap: str = "app.sock") -> None:
        self.tap = f"unix:{folder}/{tap}"
        self.port = free_port()
        text = configuration("nginx.md", "nginx", "upstream", str(folder), self.port)
        text = text.replace(f"unix:{folder}/app.sock", self.tap)
        self.server = running(SNIPPETS["nginx"], text, self.port)
        self.file = f"{self.server.folder}/nginx.conf"

    def ask(self) -> None:
        assert status_of(self.port, "/a/b?q", Proxy="evil:1") == 200

    def put_right(self, report: str) -> None:
        """Do what is said of the configuration, and nothing else."""
        self.server.stop()
        place = f"    behind line {line_of(self.file, 'REQUEST_ID')} of {self.file}:\n        "
        assert report.count("of " + self.file) == 1
        line = report.partition(place)[2].partition("\n")[0]
        assert isinstance(self.server, Snippet)
        self.server.text = self.server.text.replace("fastcgi_pass ", f"{line}\nfastcgi_pass ", 1)
        self.server.start()


def both(report: str) -> tuple[str, str]:
    """Part what is said of nginx's configuration from what is said of what it sent."""
    configured, name, sent = report.partition("\nnginx/")
    assert configured.startswith("nginx, location / (")
    return configured, name + sent


def check_both(wrong: str, right: str) -> None:
    """The configuration and what was sent have the same mistake, and both are put right."""
    for part in both(wrong):
        assert found(part) == {Mistake.HTTPOXY}
    assert 'beside fastcgi_pass: fastcgi_param HTTP_PROXY "";' in both(wrong)[1]
    for part in both(right):
        assert f"{part}\n".replace("\n\n", "\n").endswith(WELL)


@pytest.mark.requires_server("nginx")
def test_it_listens_and_reads_nginx_s_configuration(folder: Path, running: Running) -> None:
    nginx = Nginx(folder, running)
    reports: list[str] = []
    for _ in range(2):
        with listening(folder, nginx.tap, "--nginx", nginx.file) as doctor:
            assert doctor.began.endswith(f" on {nginx.tap}\n")
            nginx.ask()
            nginx.server.stop()
            reports.append(doctor.report())
        nginx.put_right(reports[0])
    check_both(*reports)


@pytest.mark.requires_server("nginx")
def test_it_listens_before_an_application_and_reads_nginx_s_configuration(
    folder: Path, running: Running
) -> None:
    (folder / "site_here.py").write_text(SITE)
    endpoint = f"unix:{folder}/real.sock"
    nginx = Nginx(folder, running)
    reports: list[str] = []
    with Served("site_here:app", "--bind", endpoint, cwd=folder):
        for _ in range(2):
            with listening(folder, nginx.tap, endpoint, "--nginx", nginx.file) as doctor:
                assert doctor.began == f"fulgate records {endpoint} on {nginx.tap}\n"
                nginx.ask()
                nginx.server.stop()
                reports.append(doctor.report())
            nginx.put_right(reports[0])
    check_both(*reports)


@pytest.mark.requires_server("nginx")
def test_a_recording_and_nginx_s_configuration(folder: Path, running: Running) -> None:
    (folder / "site_here.py").write_text(SITE)
    endpoint = f"unix:{folder}/app.sock"
    nginx = Nginx(folder, running, "tap")
    reports: list[str] = []
    with Served("site_here:app", "--bind", endpoint, cwd=folder):
        for _ in range(2):
            with recording(folder, endpoint) as tap:
                assert tap == nginx.tap
                nginx.ask()
                nginx.server.stop()
            reports.append(examined("--recording", "file", "--nginx", nginx.file, cwd=folder))
            (folder / "file").unlink()
            nginx.put_right(reports[0])
    check_both(*reports)


def line_of(file: str, words: str) -> int:
    lines = Path(file).read_text().splitlines()
    (found,) = (number for number, line in enumerate(lines, 1) if words in line)
    return found
