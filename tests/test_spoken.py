"""What is spoken on a listening socket stays so: over reloads, executions anew, and hand-overs."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from fulgate.listener import bind_unix
from tests import ajp_peer, scgi
from tests.command import APP as FACTS
from tests.command import Served, refused
from tests.raw import Raw
from tests.scgi import Peer
from tests.test_inherited import systemd
from tests.test_master import APP, until
from tests.twistd import Twistd


def ask(address: object, path: str = "/") -> bytes:
    with Peer(address) as peer:
        peer.send(scgi.request(path))
        return peer.answer().body


def test_connections_are_handed_over_with_what_is_spoken_on_them(folder: Path) -> None:
    """Idle ones, and some on which nothing was said yet; by SIGHUP, then by SIGUSR2."""
    # SCGI stands first, in case anybody takes the first one for all.
    (folder / "counted.py").write_text(APP)
    endpoints = [f"scgi+unix:{folder}/s", f"ajp+unix:{folder}/a", f"unix:{folder}/sock"]
    (folder / "fulgate.toml").write_text(f"bind = {endpoints}\nworkers = 1\n")
    with Served("counted:app", cwd=folder) as served:
        assert served.endpoints == endpoints
        pid = ask(f"{folder}/s").split()[1]
        for number in (signal.SIGHUP, signal.SIGUSR2):
            with (
                Raw(f"{folder}/sock") as idle,
                Raw(f"{folder}/sock") as silent,
                Peer(f"{folder}/s") as unheard,
                ajp_peer.Peer(f"{folder}/a") as idle_ajp,
                ajp_peer.Peer(f"{folder}/a") as silent_ajp,
            ):
                assert idle.request("/").body.split()[1] == pid
                assert idle_ajp.ask("/").body.split()[1] == pid
                # An answer to one that came later: these were accepted.
                assert ask(f"{folder}/s").split()[1] == pid
                served.process.send_signal(number)

                def replaced(pid: bytes = pid) -> bool:
                    return ask(f"{folder}/s").split()[1] != pid

                until(replaced, lambda: served.text)
                # Until then it has what is idle.
                until(lambda pid=pid: not Path(f"/proc/{int(pid)}").exists(), lambda: served.text)  # type: ignore[misc]
                new = ask(f"{folder}/s").split()[1]
                assert idle.request("/").body.split()[1] == new
                assert silent.request("/").body.split()[1] == new
                for peer in (idle_ajp, silent_ajp):
                    peer.ping()
                    assert peer.ask("/", b"body").body.split()[1] == new
                unheard.send(scgi.request())
                assert unheard.answer().body.split()[1] == new
                pid = new


def test_a_reload_may_change_what_is_spoken(folder: Path) -> None:
    (folder / "counted.py").write_text(
        "def app(environ, start):\n    start('200 OK', [])\n    return [b'here']\n"
    )

    def configure(*endpoints: str) -> None:
        bind = json.dumps([endpoint.format(folder) for endpoint in endpoints])
        (folder / "fulgate.toml").write_text(f"bind = {bind}\nworkers = 1\n")

    def speaks_scgi(name: str) -> bool:
        with Peer(f"{folder}/{name}") as peer:
            peer.send(scgi.request())
            try:
                return peer.answer().body == b"here"
            except ConnectionError:
                return False

    def speaks_fastcgi(name: str) -> bool:
        with Raw(f"{folder}/{name}") as raw:
            try:
                return raw.request("/").body == b"here"
            except (EOFError, BrokenPipeError):
                return False

    for number in (signal.SIGHUP, signal.SIGUSR2):
        configure("unix:{}/a", "scgi+unix:{}/b")
        with Served("counted:app", cwd=folder) as served:
            assert speaks_fastcgi("a")
            assert speaks_scgi("b")
            configure("scgi+unix:{}/a", "unix:{}/b", "scgi+unix:{}/c")
            served.process.send_signal(number)
            until(lambda: (folder / "c").exists(), lambda: served.text)
            until(lambda: speaks_scgi("a"), lambda: served.text)
            until(lambda: speaks_fastcgi("b"), lambda: served.text)
            until(lambda: speaks_scgi("c"), lambda: served.text)
            configure("scgi+unix:{}/c")
            served.process.send_signal(number)
            until(lambda: not (folder / "a").exists(), lambda: served.text)
            until(lambda: not (folder / "b").exists(), lambda: served.text)
            assert speaks_scgi("c")
        assert not (folder / "c").exists()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_one_socket_speaks_one_protocol(folder: Path, workers: str) -> None:
    (folder / "counted.py").write_text(APP)
    binds = ("--bind", f"unix:{folder}/s", "--bind", f"scgi+unix:{folder}/s")
    status, why = (2, "cannot speak both fastcgi and scgi") if workers == "1" else (3, "listens")
    assert why in refused(status, "serve", "counted:app", *binds, "--workers", workers, cwd=folder)


def test_while_developing(folder: Path) -> None:
    (folder / "hello.py").write_text(FACTS)
    with Served("hello:app", "--bind", f"scgi+unix:{folder}/s", "--reload", cwd=folder) as served:
        first = json.loads(ask(f"{folder}/s"))["pid"]
        (folder / "hello.py").write_text(FACTS + "\n# changed\n")
        until(lambda: json.loads(ask(f"{folder}/s"))["pid"] != first, lambda: served.text)


def test_the_http_front_takes_an_endpoint_that_it_can_speak_to(folder: Path) -> None:
    (folder / "hello.py").write_text(FACTS)
    front = ("--http", "127.0.0.1:0")
    with Served(
        "hello:app", "--bind", f"scgi+unix:{folder}/s", "--bind", f"unix:{folder}/f", *front,
        cwd=folder,
    ) as served:  # fmt: skip
        served.wait_for("Open http")
    alone = Served("hello:app", "--bind", f"scgi+unix:{folder}/s", *front, cwd=folder, wait=False)
    assert alone.process.wait(20) == 2
    assert "--http needs an endpoint of FastCGI" in alone.text


def test_inherited_sockets_speak_what_they_are_told(folder: Path) -> None:
    code = """
        from fulgate import Server
        server = Server(lambda e, s: [], bind=("scgi+systemd:more", "systemd:web"))
        server.bind()
        print([(one.protocol, one.label) for one in server.listeners])
        """
    web, more = (bind_unix(f"{folder}/{name}", 10) for name in ("web", "more"))
    with web, more:
        said = systemd([web, more], "web:more", code)
    assert said == f"[('scgi', 'scgi+unix:{folder}/more'), ('fastcgi', 'unix:{folder}/web')]"


def test_under_twistd(folder: Path) -> None:
    (folder / "hello.py").write_text(FACTS)
    endpoint = f"scgi+unix:{folder}/s"
    arguments = ("-n", "fastcgi", "--app", "hello:app", "--bind", endpoint)
    with Twistd(folder, *arguments, wait=f"serving SCGI on {endpoint}"):
        assert json.loads(ask(f"{folder}/s", "/there"))["path_info"] == "/there"
