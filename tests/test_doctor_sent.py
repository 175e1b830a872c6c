"""`fulgate doctor --recording`: what real web servers send, with a mistake and without it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fulgate.client.recording import TO_APP, Recording, Writer
from fulgate.doctor.mistakes import Mistake
from fulgate.doctor.sent import findings, fronts
from fulgate.protocols.fastcgi_client import FastCGIClient
from tests.alone import free_port
from tests.command import here
from tests.doctored import applied, found, mends, said
from tests.pages import configuration
from tests.recording import recording
from tests.responder import responder, serve_params
from tests.servers import Apache, HAProxy, Lighttpd, RealServer, Running
from tests.servers.snippets import SNIPPETS

OTHERS = "other-servers.md"
PASS = "fastcgi_pass fulgate;"
SPLIT = "fastcgi_split_path_info ^(/a)(/.*)$;"
HEADERS = {"Proxy": "evil:1", "Authorization": "Basic x"}


@dataclass(frozen=True)
class Broken:
    """A configuration of the manual's, with what is made wrong in it, and what is found then."""

    web: str
    page: str
    holds: str
    finds: tuple[Mistake, ...]
    wrong: dict[str, str] = field(default_factory=dict)


MISTAKES = {
    "nginx makes connections": Broken(
        "nginx", "nginx.md", "upstream", (Mistake.NO_KEEP_ALIVE,),
        {"keepalive 16;": "", "fastcgi_keep_conn on;": ""},
    ),
    "nginx and httpoxy": Broken("nginx", "nginx.md", "upstream", (Mistake.HTTPOXY,)),
    "nginx without params": Broken(
        "nginx", "nginx.md", "upstream", (Mistake.NO_VARIABLES,),
        {"include fastcgi_params;": ""},
    ),
    "nginx without PATH_INFO": Broken(
        "nginx", "nginx.md", "upstream", (Mistake.NO_PATH_INFO,),
        {PASS: f"{SPLIT}\n        {PASS}"},
    ),
    "Apache": Broken(
        "apache", OTHERS, 'ProxyPass "/"',
        (Mistake.NO_KEEP_ALIVE, Mistake.NO_AUTHORIZATION),
    ),
    "HAProxy": Broken(
        "haproxy", OTHERS, "fcgi-app",
        (Mistake.NO_KEEP_ALIVE, Mistake.NO_AUTHORIZATION),
        {"docroot": "no option keep-conn\n    docroot"},
    ),
    "lighttpd": Broken(
        "lighttpd", OTHERS, "fix-root", (Mistake.SPLIT_PATH,),
        {',\n    "fix-root-scriptname" => "enable"': ""},
    ),
    "Caddy": Broken("caddy", OTHERS, "transport", (Mistake.HTTPOXY,)),
    "H2O": Broken("h2o", OTHERS, '"/"', (Mistake.NO_KEEP_ALIVE,)),
}  # fmt: skip


def recorded(folder: Path, running: Running, web: str, text: str, port: int) -> str:
    """Run a web server, ask it, and give what the doctor says of what it sent."""
    with responder(folder / "app", serve_params) as one:
        with recording(folder, one.endpoint):
            (folder / "tap").chmod(0o666)
            server = running(SNIPPETS[web], text, port)
            for path in ("/a/b?q", "/c/d"):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                connection.request("GET", path, headers=HEADERS)
                connection.getresponse().read()
                connection.close()
            server.stop()
    (folder / "app").unlink()
    done = here("doctor", "--recording", "file", cwd=folder)
    assert (done.returncode == 0) is done.stdout.endswith("nothing that is known to be wrong\n")
    return done.stdout


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[
                pytest.mark.requires_server(SNIPPETS[one.web].program),
                mends(*one.finds, by="--recording", web=one.web),
            ],
        )
        for name, one in MISTAKES.items()
    ],
)
def test_a_mistake_is_found_and_its_lines_put_it_right(
    name: str, folder: Path, running: Running
) -> None:
    one = MISTAKES[name]
    port = free_port()
    text = configuration(one.page, one.web, one.holds, str(folder), port)
    text = text.replace(f"{folder}/app.sock", f"{folder}/tap")
    for old, new in one.wrong.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    report = recorded(folder, running, one.web, text, port)
    assert found(report) >= set(one.finds)
    # Who was not told anything is known by what comes next.
    for _ in range(3):
        if said(report):
            text = applied(text, report)
            report = recorded(folder, running, one.web, text, port)
    # Against httpoxy H2O has no line.
    assert found(report) == ({Mistake.HTTPOXY} if one.web == "h2o" else set())
    assert said(report) == []


def apache(running: Running, backend: str) -> RealServer:
    return running(Apache, f'ProxyPass "/" "{backend}|fcgi://localhost/"')


def lighttpd(running: Running, backend: str) -> RealServer:
    return running(Lighttpd, backend)


def haproxy(running: Running, backend: str) -> RealServer:
    return running(HAProxy, backend)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(apache, marks=pytest.mark.requires_server("apache2"), id="Apache"),
        pytest.param(haproxy, marks=pytest.mark.requires_server("haproxy"), id="HAProxy"),
        pytest.param(lighttpd, marks=pytest.mark.requires_server("lighttpd"), id="lighttpd"),
    ],
)
def test_these_drop_the_header_proxy_by_themselves(
    make: Callable[[Running, str], RealServer], folder: Path, running: Running
) -> None:
    with responder(folder / "app", serve_params) as one:
        (folder / "app").chmod(0o666)
        server = make(running, one.endpoint)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("GET", "/a/b?q", headers={"Proxy": "evil:1", "Other": "x"})
        sent = json.loads(connection.getresponse().read())
        connection.close()
        server.stop()
    assert (sent.get("HTTP_OTHER"), sent.get("HTTP_PROXY")) == ("x", None)


def test_it_says_what_becomes_of_the_path(folder: Path) -> None:
    params = {
        "SERVER_SOFTWARE": "nginx/1.26.0",
        "REQUEST_METHOD": "GET",
        "REQUEST_URI": "/a%20b?q",
        "DOCUMENT_URI": "/a b",
        "SCRIPT_NAME": "/a b",
        "QUERY_STRING": "q",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
    }
    writer = Writer(str(folder / "file"), "unix:s")
    request, out = FastCGIClient().begin(params.items(), keep=True)
    for number in (1, 2):
        writer.add(number, TO_APP, b"".join([*out, *FastCGIClient().begin([], keep=True)[1]][:1]))
    writer.close()
    assert request.keep
    done = here("doctor", "--recording", "file", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "nginx/1.26.0: 2 requests, of which 2 are to keep the connection\n"
        "  GET /a%20b?q\n"
        "    sent: SCRIPT_NAME is '/a b', PATH_INFO is not there\n"
        "    for the application: SCRIPT_NAME is '', PATH_INFO is '/a b'\n"
        "Findings\n"
        "  nothing that is known to be wrong\n"
    )
    (front,) = fronts(Recording.read(str(folder / "file")))
    assert (front.kind, findings(front)) == ("nginx", [])
