"""What a client sees behind each web server of a request for which there is no room, by 503 and by
OVERLOADED; docs/limits.md has it as a table.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.alone import free_port
from tests.model import STDIN
from tests.pages import configuration
from tests.raw import Raw, head, record
from tests.servers import Fulgate, RealServer, Running
from tests.servers.fulgate import ROOT
from tests.servers.snippets import SNIPPETS
from tests.servers.web import Answer, request
from tests.statements import APP, eventually, query
from tests.test_fastcgi_servers import SHOWN

# What is made of OVERLOADED. HAProxy 2.6 takes no note of it, and waits until `timeout server`.
OVERLOADED = {
    "nginx": 502,
    "nginx, uploads": 502,
    "mod_proxy_fcgi": 200,
    "lighttpd": 500,
    "Caddy": 502,
    "HAProxy": 504,
    "HAProxy, several at once": 504,
    "H2O": 503,
}
NAMES = {
    "nginx": "nginx",
    "mod_proxy_fcgi": "Apache, mod_proxy_fcgi",
    "lighttpd": "lighttpd",
    "Caddy": "Caddy",
    "H2O": "H2O",
    "HAProxy": "HAProxy",
}
BACKEND = "\nbackend applications\n"


def served_by(name: str, running: Running, overload: str) -> tuple[Fulgate, RealServer]:
    one = SHOWN[name]
    fulgate = running(Fulgate, APP, "--threads", "1", "--queue", "0", "--overload", overload)
    port = free_port()
    text = configuration(one.page, one.web, one.holds, str(fulgate.folder), port)
    if one.web == "haproxy":
        assert text.count(BACKEND) == 1
        text = text.replace(BACKEND, f"{BACKEND}    timeout server 1s\n")
    return fulgate, running(SNIPPETS[one.web], text, port)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.requires_server(*one.needs))
        for name, one in SHOWN.items()
    ],
)
@pytest.mark.parametrize("overload", ["503", "overloaded"])
def test_what_a_client_sees(running: Running, tmp_path: Path, name: str, overload: str) -> None:
    fulgate, front = served_by(name, running, overload)
    go = tmp_path / "go"

    def refusals() -> int:
        return fulgate.log().count("there is no room for another request")

    with Raw(fulgate.socket) as busy:
        busy.expect()
        busy.send(head("/stream", query(go=go)), record(STDIN, 1))
        busy.until(1, b"first\n")
        for number, body in enumerate((None, bytes(100_000)), 1):
            answer = request(front.port, "/hello", "POST" if body else "GET", body)
            if overload == "503":
                is_ours(answer)
            else:
                assert answer.status == OVERLOADED[name]
                assert answer.headers["Retry-After"] is None
            assert refusals() == number  # nobody has tried it again
        go.touch()
        busy.answer()
    # And the web server asks again as soon as it is asked.
    eventually(lambda: request(front.port, "/hello").body == b"Hello, world!\n", "a free thread")


def is_ours(answer: Answer) -> None:
    assert answer.status == 503
    assert answer.headers["Retry-After"] == "1"
    assert answer.body == b"503 Service Unavailable\n"


def test_the_manual_says_so() -> None:
    text = (ROOT / "docs" / "limits.md").read_text()
    for name, title in NAMES.items():
        (row,) = (line for line in text.splitlines() if line.startswith(f"| {title} "))
        assert str(OVERLOADED[name]) in row.split("|")[3], row
