"""FastCGIService and the plugin, under twistd and in a program of one's own."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fulgate.config import settings
from fulgate.tap import NO_OPTIONS
from tests.alone import free_port
from tests.twistd import (
    APP,
    PATIENCE,
    STOPPED,
    TWISTD,
    Refused,
    Twistd,
    ask,
    environment,
    fails,
    service,
    tac,
    until,
)


@pytest.fixture
def home(folder: Path) -> Path:
    (folder / "site_app.py").write_text(APP)
    return folder


def facts(endpoint: str, path: str = "/") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ask(endpoint, path).body)
    return found


def command(*arguments: str) -> list[str]:
    return ["fastcgi", "--app", "site_app:app", *arguments]


# Daemonised


def test_a_daemon_of_a_tac_file(home: Path) -> None:
    endpoint = f"unix:{home}/app.sock"
    run = home / "run"
    run.mkdir()
    options = ("--umask", "077", "--rundir", str(run), "--pidfile", str(home / "twistd.pid"))
    with Twistd(home, *options, "-y", tac(home, service(home))) as twistd:
        found = facts(endpoint)
        assert found["pid"] == twistd.pid
        assert found["umask"] == 0o077
        assert found["cwd"] == str(run)
        assert found["fds"] == ["/dev/null"] * 3
        assert stat.S_IMODE((home / "app.sock").stat().st_mode) == 0o666
        assert {name for name in found["threads"] if name.startswith("fulgate-")} == {
            "fulgate-control",
            *(f"fulgate-{n}" for n in range(1, 9)),
        }
        for _ in range(20):
            assert ask(endpoint).status == 200
        assert twistd.end() < 20
    assert not (home / "app.sock").exists()
    assert not (home / "twistd.pid").exists()
    assert "Server Shut Down" in twistd.text()
    assert "Traceback" not in twistd.text()


def test_a_daemon_of_the_plugin(home: Path) -> None:
    endpoint = f"unix:{home}/app.sock"
    with Twistd(home, *command("--bind", endpoint, "--threads", "3")) as twistd:
        found = facts(endpoint)
        assert found["loaded"][1] == found["pid"] == twistd.pid  # imported after the fork
        assert "fulgate-3" in found["threads"]
        assert "fulgate-4" not in found["threads"]
    assert set(os.listdir(home)) - {"__pycache__"} == {"out", "site_app.py", "twistd.log"}


@pytest.mark.parametrize("daemon", [True, False], ids=["daemon", "foreground"])
def test_what_the_application_says_is_in_twistds_log(home: Path, daemon: bool) -> None:
    endpoint = f"unix:{home}/app.sock"
    options = ["--access-logfile", "-", "--bind", endpoint]
    with Twistd(home, *([] if daemon else ["-n"]), *command(*options)) as twistd:
        assert ask(endpoint, "/noise").status == 200
        assert ask(endpoint, "/fails").status == 500
        for line in ('"GET /noise HTTP/1.1" 200', '"GET /fails HTTP/1.1" 500'):
            until(lambda line=line: line in twistd.text(), twistd.text)  # type: ignore[misc]
        text = twistd.log_file.read_text()
        for line in (
            "[stdout#info] by print",
            "[stderr#error] by stderr",
            "[fulgate.app#error] by wsgi.errors",
            "[application#warn] by logging {braces}",
            "[fulgate#error] GET /fails HTTP/1.1: the application raised",
            "builtins.LookupError: by a traceback {braces}",
        ):
            assert text.count(line) == 1, line
        assert re.search(r'\[fulgate.access#info\] .*"GET /noise HTTP/1.1" 200', text)


def test_logging_that_a_tac_file_sets_up_is_not_lost(home: Path) -> None:
    more = 'import logging; logging.basicConfig(format="ours: %(message)s")'
    with Twistd(home, "-y", tac(home, service(home), more=more)) as twistd:
        assert ask(f"unix:{home}/app.sock", "/noise").status == 200
        until(lambda: "ours: by logging {braces}" in twistd.text(), twistd.text)
        assert twistd.text().count("serving FastCGI on") == 1


def test_sigusr1_rotates_the_log(home: Path) -> None:
    endpoint = f"unix:{home}/app.sock"
    with Twistd(home, *command("--bind", endpoint)) as twistd:
        assert ask(endpoint, "/noise").status == 200
        twistd.send(signal.SIGUSR1)
        rotated = home / "twistd.log.1"
        until(rotated.exists, "it was not rotated")
        assert "by print" in rotated.read_text()
        assert ask(endpoint, "/noise").status == 200
        until(lambda: "by logging" in twistd.log_file.read_text(), "nothing is in the new log")


def test_an_application_that_does_not_load(home: Path) -> None:
    said = fails(home, "fastcgi", "--app", "missing:app", "--bind", f"unix:{home}/app.sock")
    assert "application 'missing:app': there is no module 'missing'" in said
    assert not (home / "app.sock").exists()
    until(lambda: not (home / "twistd.pid").exists(), "the pid file stays")


def test_a_socket_that_cannot_be_had(home: Path) -> None:
    (home / "precious").write_text("data")
    said = fails(home, *command("--bind", f"unix:{home}/precious"))
    assert "BindError: cannot listen on unix:" in said  # twistd cuts it short
    log = home / "twistd.log"
    until(lambda: "not a socket; it was left alone" in log.read_text(), "nor is it in the log")
    assert (home / "precious").read_text() == "data"


# Services beside others


def test_several_services_beside_one_of_twisteds(home: Path) -> None:
    port = free_port()
    more = """
from twisted.internet import protocol
class Greeter(protocol.Protocol):
    def connectionMade(self):
        self.transport.write(b"greetings")
        self.transport.loseConnection()
"""
    other = (
        f'internet.TCPServer({port}, protocol.Factory.forProtocol(Greeter), interface="127.0.0.1")'
    )
    services = [service(home, "one", ", threads=2"), other, service(home, "two", ", threads=1")]
    with Twistd(home, "-y", tac(home, *services, more=more)) as twistd:
        for name in ("one", "two"):
            found = facts(f"unix:{home}/{name}")
            assert found["pid"] == twistd.pid
            assert sorted(found["threads"]).count("fulgate-1") == 2
            assert found["threads"].count("fulgate-2") == 1
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
            assert client.recv(100) == b"greetings"
        ask(f"unix:{home}/two", "/noise")
        until(lambda: "by logging" in twistd.text(), twistd.text)
        assert twistd.text().count("by logging") == 1
    assert "Traceback" not in twistd.text()
    assert not (home / "one").exists()
    assert not (home / "two").exists()


CHILD = """\
import sys
from twisted.application import service
from twisted.internet import reactor, threads
from fulgate.twisted import FastCGIService
from tests.twistd import ask
import site_app

parent = service.MultiService()
one = FastCGIService("unix:one", wsgi=site_app.app)
two = FastCGIService("unix:two", wsgi=site_app.app)
one.setServiceParent(parent)
two.setServiceParent(parent)
parent.privilegedStartService()
parent.startService()

async def check():
    assert (await threads.deferToThread(ask, one.endpoints[0])).status == 200
    await one.disownServiceParent()
    assert one.endpoints == [] and not one.running
    assert (await threads.deferToThread(ask, two.endpoints[0])).status == 200
    one.setServiceParent(parent)  # again
    assert (await threads.deferToThread(ask, one.endpoints[0])).status == 200
    print("serving FastCGI on nothing else", flush=True)

def failed(failure):
    failure.printTraceback()
    reactor.stop()

from twisted.internet.defer import Deferred
reactor.callWhenRunning(lambda: Deferred.fromCoroutine(check()).addErrback(failed))
reactor.run()
"""


def test_a_child_may_stop_and_start_again(home: Path) -> None:
    (home / "main.py").write_text(CHILD)
    started = Twistd(home, "main.py", command=[sys.executable], wait="nothing else")
    with started as twistd:
        assert twistd.end() < 20
    assert "Traceback" not in twistd.text()
    assert not (home / "one").exists()
    assert not (home / "two").exists()


# Privileges


@pytest.fixture
def low_port() -> int:
    return free_port(range(101, 1024))


@pytest.mark.requires_root
@pytest.mark.parametrize("how", ["options", "tac"])
def test_sockets_are_bound_before_privileges_are_shed(home: Path, low_port: int, how: str) -> None:
    nobody = pwd.getpwnam("nobody")
    uid, gid = nobody.pw_uid, nobody.pw_gid
    endpoint = f"unix:{home}/app.sock?mode=640&owner=34567&group=45678"
    home.chmod(0o777)
    if how == "options":
        bind = ["--bind", f"tcp:127.0.0.1:{low_port}", "--bind", endpoint]
        arguments = ["--uid", str(uid), "--gid", str(gid), *command(*bind)]
    else:
        made = f'FastCGIService("tcp:127.0.0.1:{low_port}", "{endpoint}", wsgi="site_app:app")'
        arguments = ["-y", tac(home, made, application=f'"test", uid={uid}, gid={gid}')]
    with Twistd(home, *arguments) as twistd:
        found = facts(f"tcp:127.0.0.1:{low_port}")
        assert found["ids"] == [uid, uid, gid, gid]
        if how == "options":  # else the .tac file has imported it
            assert found["loaded"][0] == uid
        status = (home / "app.sock").stat()
        assert (status.st_uid, status.st_gid) == (34567, 45678)
        assert stat.S_IMODE(status.st_mode) == 0o640
        for task in Path(f"/proc/{twistd.pid}/task").iterdir():  # each thread, the old ones too
            ids = re.findall(r"^[UG]id:\t(.*)$", (task / "status").read_text(), re.MULTILINE)
            assert ids == ["\t".join([str(uid)] * 4), "\t".join([str(gid)] * 4)]
        assert ask(f"unix:{home}/app.sock").status == 200
    # The folder is one in which anybody may remove.
    assert not (home / "app.sock").exists()
    assert not (home / "twistd.pid").exists()


# The fork


@pytest.mark.parametrize("serve", ["Server", "FastCGIService"])
def test_a_server_that_was_started_before_the_fork_is_refused(home: Path, serve: str) -> None:
    endpoint = f"unix:{home}/app.sock"
    started = {
        "Server": f'server = fulgate.Server(site_app.app, bind=("{endpoint}",)); server.start()',
        "FastCGIService": f'FastCGIService("{endpoint}", wsgi=site_app.app).startService()',
    }[serve]
    name = tac(home, more=f"import fulgate\n{started}")
    with pytest.raises(Refused) as refused:
        Twistd(home, "-y", name, wait=STOPPED)
    assert "a fork does not copy threads" in str(refused.value)
    assert "Start the server after the fork" in str(refused.value)
    assert "fulgate.twisted.FastCGIService" in str(refused.value)
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        ask(endpoint)  # nobody hangs on a socket where nobody accepts
    # In the foreground the same file serves, since nothing forks.
    (home / "twistd.log").unlink()
    with Twistd(home, "-n", "-y", name, wait="starting up"):
        assert ask(endpoint).status == 200


# Whoever started it


@pytest.fixture
def notified(folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(folder / "notify"))
        sock.settimeout(PATIENCE)
        yield sock


def systemd(
    home: Path, listeners: list[socket.socket], names: str, *arguments: str, **more: str
) -> Twistd:
    """Run twistd as systemd does: sockets from descriptor 3 on, and variables that say so."""
    moved = "".join(
        f"os.dup2({sock.fileno()}, {30 + n}); " for n, sock in enumerate(listeners)
    ) + "".join(f"os.dup2({30 + n}, {3 + n}); " for n in range(len(listeners)))
    code = (
        f"import os, sys; {moved}os.environ['LISTEN_PID'] = str(os.getpid()); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    env = {
        "LISTEN_FDS": str(len(listeners)),
        "LISTEN_FDNAMES": names,
        "NOTIFY_SOCKET": str(home / "notify"),
        **more,
    }
    return Twistd(
        home,
        "-n",
        *arguments,
        command=[sys.executable, "-c", code, *TWISTD],
        env=env,
        pass_fds=[sock.fileno() for sock in listeners],
    )


def test_systemds_sockets_and_notifications(home: Path, notified: socket.socket) -> None:
    path = home / "given.sock"
    with (
        socket.create_server(("127.0.0.1", 0)) as web,
        socket.create_server(str(path), family=socket.AF_UNIX) as local,
    ):
        port = web.getsockname()[1]
        made = [
            'FastCGIService("systemd:web", wsgi=site_app.app)',
            'FastCGIService("systemd:local", wsgi=site_app.app)',
        ]
        with systemd(home, [web, local], "web:local", "-y", tac(home, *made)) as twistd:
            assert notified.recv(100) == b"READY=1"
            assert facts(f"tcp:127.0.0.1:{port}")["pid"] == twistd.pid
            assert facts(f"unix:{path}")["listen"] == []  # no child takes them for its own
            assert twistd.end(signal.SIGTERM) < 20
            said = b""
            while b"STOPPING=1" not in said:
                said = notified.recv(100)
                assert said in (b"READY=1", b"STOPPING=1")
        assert path.exists()  # it is systemd's
        assert "Traceback" not in twistd.text()


@pytest.mark.parametrize(
    "made", ["wsgi=site_app.app", "asgi=asgi_app"], ids=["threads", "asyncio in a thread"]
)
def test_systemds_watchdog_hears_that_work_goes_on(
    home: Path, notified: socket.socket, made: str
) -> None:
    more = "async def asgi_app(scope, receive, send): pass"
    file = tac(home, f'FastCGIService("systemd", {made})', more=more)
    with socket.create_server(("127.0.0.1", 0)) as web:
        with systemd(home, [web], "", "-y", file, WATCHDOG_USEC="300000"):
            said = [notified.recv(100) for _ in range(6)]
            assert b"READY=1" in said
            assert said.count(b"WATCHDOG=1") >= 4


def test_the_plugin_takes_systemds_sockets_by_itself(home: Path, notified: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as web:
        with systemd(home, [web], "", *command()):
            assert notified.recv(100) == b"READY=1"
            assert ask(f"tcp:127.0.0.1:{web.getsockname()[1]}").status == 200


@pytest.mark.parametrize("how", ["plugin", "tac"])
def test_a_socket_on_descriptor_0_survives_the_daemon(home: Path, how: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        if how == "plugin":
            arguments = command()
        else:
            arguments = ["-y", tac(home, 'FastCGIService("fd:0", wsgi=site_app.app)')]
        with Twistd(home, *arguments, stdin=server.fileno()):
            found = facts(f"tcp:127.0.0.1:{server.getsockname()[1]}")
            assert found["fds"] == ["/dev/null"] * 3


def test_an_inherited_socket_beside_one_of_its_own(home: Path) -> None:
    own = f"unix:{home}/own.sock"
    with socket.create_server(("127.0.0.1", 0)) as server:
        with Twistd(home, *command("-b", "fd:0", "-b", own), stdin=server.fileno()):
            assert ask(own).status == 200
            assert ask(f"tcp:127.0.0.1:{server.getsockname()[1]}").status == 200
    assert not (home / "own.sock").exists()  # which the daemon made, and not its parent


# Settings


def test_settings_come_from_files_variables_and_options(home: Path) -> None:
    (home / "fulgate.toml").write_text(
        f'app = "site_app:app"\nthreads = 2\nenv_file = "env"\nbind = ["unix:{home}/file.sock"]\n'
        "stderr = true\n"
    )
    (home / "env").write_text("OF_THE_FILE=read\n")
    binds = ["--bind", f"unix:{home}/one.sock", "--bind=" + f"unix:{home}/two.sock"]
    with Twistd(home, "fastcgi", *binds, "--no-stderr", env={"FULGATE_QUEUE": "7"}) as twistd:
        for name in ("one", "two"):
            found = facts(f"unix:{home}/{name}.sock")
            assert found["threads"].count("fulgate-2") == 1
            assert "fulgate-3" not in found["threads"]
            assert found["env"] == "read"
        assert not (home / "file.sock").exists()
        assert ask(f"unix:{home}/one.sock", "/fails").stderr == b""
    assert "Traceback" in twistd.text()  # of /fails


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name the application: --app MODULE:ATTR"),
        (["--app", "a:b", "--treads", "3"], "option --treads not recognized"),
        (["--app", "a:b", "--threads", "many"], "--threads: 'many' is not a whole number"),
        (["--app", "a:b", "--threads", "0"], "--threads: 0 is out of range"),
        (["--app", "a:b", "--bind", "/run/x"], "did you mean 'unix:/run/x'?"),
        (["--app", "a:b", "--bind", "tcp:0.0.0.0:9000"], "would let every machine"),
        (["--app", "a:b", "--config", "missing.toml"], "there is no configuration file"),
        (["--app", "a:b", "--user", "nobody"], "option --user not recognized"),
        (["--app", "a b"], "write MODULE:ATTR"),
    ],
)
def test_wrong_options(home: Path, arguments: list[str], says: str) -> None:
    said = fails(home, "fastcgi", *arguments)
    assert says in said
    assert "Traceback" not in said
    until(lambda: not (home / "twistd.pid").exists(), "the pid file stays")


def test_what_is_twistds_to_do_is_not_passed_over(home: Path) -> None:
    (home / "fulgate.toml").write_text('app = "site_app:app"\nuser = "www-data"\n')
    said = fails(home, "fastcgi")
    assert "fulgate.toml: user: not under twistd: twistd's --uid does that" in said
    (home / "fulgate.toml").write_text("[pool.one]\napp = 'site_app:app'\n")
    assert "pools: not under twistd: it is for `fulgate serve`" in fails(home, "fastcgi")
    (home / "fulgate.toml").write_text('app = "site_app:app"\nworkers = 2\n')
    assert "workers: not under twistd: it is for `fulgate serve`" in fails(home, "fastcgi")
    (home / "fulgate.toml").unlink()
    said = fails(home, *command(), env={"FULGATE_PID": "x.pid"})
    assert "environment FULGATE_PID: pid: not under twistd: twistd's --pidfile" in said


def test_help_has_every_setting(home: Path) -> None:
    said = subprocess.run(
        [*TWISTD, "fastcgi", "--help"],
        cwd=home, env=environment(), capture_output=True, text=True, check=True, timeout=PATIENCE,
    ).stdout  # fmt: skip
    for setting in settings():
        there = re.search(rf" {setting.option}(?![\w-])", said) is not None
        assert there == (setting.name not in NO_OPTIONS), setting.name
