"""`fulgate ping`: well, dead, busy and wrong are told apart."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fulgate.protocols.fastcgi_records import END_REQUEST, STDOUT, record
from tests.command import Served, here, refused_here
from tests.echo import PEERS, peer
from tests.responder import Peer, responder, serve_params
from tests.servers import Running
from tests.servers.php import CONFIG, PHP_FPM, PhpFpm

END = record(END_REQUEST, 1, bytes(8))


def ping(*arguments: str, cwd: Path) -> str:
    done = here("ping", *arguments, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", PEERS)
def test_servers_answer(name: str, folder: Path, running: Running) -> None:
    with peer(name, folder, running) as server:
        said = ping(server.endpoint, cwd=folder)
        assert said.startswith(f"{server.endpoint} answers in ")
        assert "FCGI_MPXS_CONNS=" in said or "status " in said
        assert ping(server.endpoint, "-q", cwd=folder) == ""
        script = ["--script-filename", server.script_filename] if server.script_filename else []
        assert "status 200" in ping(server.endpoint, "/there", *script, cwd=folder)
        text = refused_here(4, "ping", server.endpoint, "/missing", *script, cwd=folder)
        assert text == f"{server.endpoint} is wrong: status 404"


class Pinged(PhpFpm):
    def configure(self) -> None:
        super().configure()
        path = self.folder / "php-fpm.conf"
        path.write_text(path.read_text() + "ping.path = /ping\nping.response = pong\n")
        assert CONFIG.count("pm.max_children") == 1


@pytest.mark.requires_server(PHP_FPM)
def test_php_has_a_path_for_it(folder: Path, running: Running) -> None:
    endpoint = running(Pinged).endpoint
    said = ping(endpoint, "/ping", "--script-filename", "/ping", cwd=folder)
    assert "status 200, pong" in said


def test_our_own_server_answers_while_all_its_threads_are_busy(folder: Path) -> None:
    (folder / "busy_site.py").write_text(
        "import time\n"
        "def app(environ, start_response):\n"
        "    open('started', 'w').close()\n"
        "    while not __import__('os').path.exists('go'):\n"
        "        time.sleep(0.01)\n"
        "    start_response('200 OK', [])\n"
        "    return [b'']\n"
    )
    options = ["--bind", f"unix:{folder}/sock", "--threads", "1"]
    with Served("busy_site:app", *options, cwd=folder) as server:
        with socket.socket(socket.AF_UNIX) as busy:
            busy.connect(str(folder / "sock"))
            busy.sendall(
                record(1, 1, b"\0\1\0" + bytes(5))
                + record(4, 1, b"\x0e\3REQUEST_METHODGET\x0b\1REQUEST_URI/")
                + record(4, 1)
                + record(5, 1)
            )
            until = time.monotonic() + 20
            while not (folder / "started").exists():
                assert time.monotonic() < until
                time.sleep(0.01)
            assert "FCGI_MAX_CONNS=" in ping(server.endpoints[0], "--timeout", "20", cwd=folder)
            text = refused_here(3, "ping", server.endpoints[0], "/", "--timeout", "0.3", cwd=folder)
            assert text.endswith("is busy: no answer within 0.3 s")
            (folder / "go").write_text("")
            assert busy.recv(1000)


def mute(peer: Peer) -> None:
    while peer.socket.recv(65536):
        pass


def no_values(peer: Peer) -> None:
    """Know nothing of management records, and close."""
    if peer.socket.recv(65536)[:2] == b"\1\1":
        peer.send(record(STDOUT, 1, b"Status: 404 No\r\n\r\n") + END)


def test_a_server_without_get_values_is_asked_for_something(folder: Path) -> None:
    with responder(folder / "s", no_values) as one:
        assert "status 404" in ping(one.endpoint, cwd=folder)


def says(data: bytes) -> Callable[[Peer], None]:
    def behave(peer: Peer) -> None:
        peer.socket.recv(65536)
        peer.send(data)

    return behave


OVERLOADED = record(END_REQUEST, 1, bytes((0, 0, 0, 0, 2, 0, 0, 0)))
NO_ROLE = record(END_REQUEST, 1, bytes((0, 0, 0, 0, 3, 0, 0, 0)))


@pytest.mark.parametrize(
    ("behave", "arguments", "status", "text"),
    [
        (mute, [], 3, "is busy: no answer within 0.3 s"),
        (mute, ["/"], 3, "is busy: no answer within 0.3 s"),
        (says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), [], 4, "is wrong: version 72"),
        (says(b""), [], 4, "is wrong: the connection was closed before"),
        (says(OVERLOADED), ["/"], 3, "is busy: the request was refused: status 2, OVERLOADED"),
        (says(NO_ROLE), ["/"], 4, "is wrong: the request was refused: status 3"),
        (says(record(STDOUT, 1, b"Status: 503 No\n\n") + END), ["/"], 3, "is busy: status 503"),
        (says(record(STDOUT, 1, b"Status: 500 No\n\n") + END), ["/"], 4, "is wrong: status 500"),
    ],
)
def test_busy_and_wrong(
    folder: Path, behave: Callable[[Peer], None], arguments: list[str], status: int, text: str
) -> None:
    with responder(folder / "s", behave) as one:
        said = refused_here(
            status, "ping", one.endpoint, *arguments, "--timeout", "0.3", cwd=folder
        )
        assert text in said
        done = here("ping", one.endpoint, *arguments, "-q", "--timeout", "0.3", cwd=folder)
        assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_dead(folder: Path) -> None:
    text = refused_here(1, "ping", f"unix:{folder}/none", cwd=folder)
    assert text == f"unix:{folder}/none is dead: No such file or directory"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(folder / "left"))
    text = refused_here(1, "ping", f"unix:{folder}/left", cwd=folder)
    assert text == f"unix:{folder}/left is dead: Connection refused"


def test_a_full_accept_queue_is_busy(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(folder / "full"))
        listener.listen(0)
        first.connect(str(folder / "full"))
        refused_here(3, "ping", f"unix:{folder}/full", "--timeout", "0.2", cwd=folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may connect to everything")
def test_what_one_may_not_reach_is_wrong(folder: Path) -> None:
    with responder(folder / "s", serve_params) as one:
        (folder / "s").chmod(0)
        assert "Permission denied" in refused_here(4, "ping", one.endpoint, cwd=folder)


@pytest.mark.parametrize("arguments", [["fd:0"], [], ["unix:s", "/", "--timeout", "0"]])
def test_misuse_is_told(arguments: list[str], folder: Path) -> None:
    refused_here(2, "ping", *arguments, cwd=folder)
