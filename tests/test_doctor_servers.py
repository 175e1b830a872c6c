"""`fulgate doctor ENDPOINT` where a real web server is in front: what it says is done, and works.

The web servers are run with what the manual shows for them.
"""

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
from tests.doctored import bind_of
from tests.pages import configuration
from tests.servers import RealServer, Running
from tests.servers.snippets import SNIPPETS

SITE = """\
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"there"]
"""
WELL = "Findings\n  nothing that is known to be wrong\n"
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
SERVERS = [
    pytest.param(web, marks=pytest.mark.requires_server(kind.program))
    for web, kind in SNIPPETS.items()
]


def status_of(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/a")
    status = connection.getresponse().status
    connection.close()
    return status


def examined(*arguments: str, cwd: Path) -> str:
    """Have it look; a finding and the exit status belong together."""
    done = here("doctor", *arguments, cwd=cwd)
    assert done.stderr == ""
    assert done.returncode == (0 if done.stdout.endswith(WELL) else 1), done.stdout
    return done.stdout


@pytest.mark.requires_root
@pytest.mark.parametrize("web", [one for one in SERVERS if one.values[0] not in ("caddy", "h2o")])
def test_a_socket_that_the_web_server_may_not_use(
    web: str, folder: Path, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caddy and H2O give up no privileges where the tests start them."""
    (folder / "site_here.py").write_text(SITE)
    page, holds, user = SHOWN[web]
    port = free_port()
    endpoint = f"unix:{folder}/app.sock"
    text = user + configuration(page, web, holds, str(folder), port)
    monkeypatch.setattr(SNIPPETS[web], "as_root", "user www-data www-data;", raising=False)

    def of_www_data(own: Path) -> RealServer:
        own.chmod(0o777)  # for its log
        return SNIPPETS[web](own, text, port)

    with Served("site_here:app", "--bind", endpoint, cwd=folder):
        server = running(of_www_data)
        assert status_of(port) in (500, 502, 503)
        report = examined(endpoint, cwd=folder)
        assert f"www-data may not connect to the socket {folder}/app.sock" in report
        server.stop()  # which remembers, some of them, that nobody was there
    with Served("site_here:app", "--bind", bind_of(report), cwd=folder):
        server.start()
        assert status_of(port) == 200
        assert examined(endpoint, cwd=folder).endswith(WELL)
        server.stop()
        folder.chmod(0o700)
        report = examined(endpoint, cwd=folder)
        (command,) = re.findall(r"let them pass: (.*)", report)
        subprocess.run(command, shell=True, check=True, timeout=30)
        server.start()
        assert status_of(port) == 200
        assert examined(endpoint, cwd=folder).endswith(WELL)


def reachable(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 5.0).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("web", SERVERS)
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
        assert f"port {backend} is open to other machines" in report
        if web == "nginx":
            found = here("doctor", "--nginx", f"{server.folder}/nginx.conf", cwd=folder).stdout
            assert f"whoever listens on port {backend} does so for other machines, too" in found
            assert bind_of(found) == bind_of(report)
        server.stop()
    with Served("site_here:app", "--bind", bind_of(report), cwd=folder):
        server.start()
        assert status_of(port) == 200
        assert not reachable(others, backend)
        assert examined(endpoint, cwd=folder).endswith(WELL)


@pytest.mark.requires_server("nginx")
def test_it_listens_and_reads_nginx_s_configuration(folder: Path, running: Running) -> None:
    port = free_port()
    text = configuration("nginx.md", "nginx", "upstream", str(folder), port)
    nginx = running(SNIPPETS["nginx"], text, port)
    file = f"{nginx.folder}/nginx.conf"
    tap = f"unix:{folder}/app.sock"
    command = ["doctor", "--listen", tap, "--connections", "1", "--nginx", file]
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "fulgate", *command],
        cwd=folder, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert process.stderr.readline().endswith(f" on {tap}\n")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/a/b?q", headers={"Proxy": "evil:1"})
        assert connection.getresponse().status == 200
        connection.close()
        nginx.stop()
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    configured, _, sent = out.partition("\nnginx/")
    assert configured.startswith("nginx, location / (")
    assert f"behind line {line_of(file, 'REQUEST_ID')} of {file}:" in configured
    assert 'beside fastcgi_pass: fastcgi_param HTTP_PROXY "";' in sent


def line_of(file: str, words: str) -> int:
    lines = Path(file).read_text().splitlines()
    (found,) = (number for number, line in enumerate(lines, 1) if words in line)
    return found
