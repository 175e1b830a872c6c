"""Endpoints: parsed, bound, refused, and removed again; with real sockets and processes."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from fulgate import Server, client
from fulgate.endpoint import AllowedClients, Endpoint, bind_all, check_exposed
from fulgate.errors import BindError, ConfigError
from fulgate.listener import LOCK_PATIENCE
from tests.processes import output, python


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("unix:/run/a.sock", Endpoint("unix", path="/run/a.sock")),
        ("unix:a b", Endpoint("unix", path="a b")),
        (
            "unix:/a?mode=600&owner=root&group=daemon",
            Endpoint("unix", path="/a", mode=0o600, owner="root", group="daemon"),
        ),
        ("unix:/a?mode=0666", Endpoint("unix", path="/a", mode=0o666)),
        ("tcp:localhost:9000", Endpoint("tcp", host="localhost", port=9000)),
        ("tcp:0.0.0.0:0", Endpoint("tcp", host="0.0.0.0", port=0)),
        ("tcp:[::1]:65535", Endpoint("tcp", host="::1", port=65535)),
        ("fd:0", Endpoint("fd", fd=0)),
        ("systemd", Endpoint("systemd")),
        ("systemd:web", Endpoint("systemd", name="web")),
        ("scgi+unix:/run/a+b.sock", Endpoint("unix", path="/run/a+b.sock", protocol="scgi")),
        ("ajp+tcp:[::1]:8009", Endpoint("tcp", host="::1", port=8009, protocol="ajp")),
        ("scgi+fd:3", Endpoint("fd", fd=3, protocol="scgi")),
        ("scgi+systemd:web", Endpoint("systemd", name="web", protocol="scgi")),
        ("unix:a+b", Endpoint("unix", path="a+b")),
    ],
)
def test_parse(text: str, endpoint: Endpoint) -> None:
    assert Endpoint.parse(text) == endpoint
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        "", "unix", "unix:", "unix:?mode=660", "unix:/a?mode=9", "unix:/a?mode=1777",
        "unix:/a?mode=", "unix:/a?mode", "unix:/a?mod=660", "unix:/a?mode=660&mode=666",
        "unix:/a\0b", "tcp:", "tcp:9000", "tcp::9000", "tcp:host", "tcp:host:65536", "tcp:host:-1",
        "tcp:::1:9000", "tcp:[::1]", "tcp:host:٣", "fd:", "fd:-1", "fd:x", "fd:²", "systemd:",
        "udp:host:1", "+unix:/a", "scgi+", "scgi+/a", "http+tcp:host:1", "SCGI+unix:/a",
        "scgi+ajp+unix:/a", "scgi:unix:/a",
    ],
)  # fmt: skip
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Endpoint.parse(text)
    assert "\n" not in str(caught.value)


def test_what_is_spoken_may_be_named_where_it_is_fastcgi_too() -> None:
    endpoint = Endpoint.parse("fastcgi+unix:/run/a.sock")
    assert endpoint == Endpoint.parse("unix:/run/a.sock")
    assert str(endpoint) == "unix:/run/a.sock"


def test_listeners_know_what_is_spoken(folder: Path) -> None:
    endpoints = [f"scgi+unix:{folder}/s", f"unix:{folder}/f", "ajp+tcp:127.0.0.1:0"]
    listeners = bind_all(endpoints)
    try:
        assert [one.protocol for one in listeners] == ["scgi", "fastcgi", "ajp"]
        assert [one.label for one in listeners[:2]] == endpoints[:2]
        assert Endpoint.parse(listeners[2].label).protocol == "ajp"
        (again,) = Endpoint.parse(f"scgi+fd:{listeners[0].fileno()}").bind()
        assert again.label == endpoints[0]
        again.detach()
    finally:
        for listener in listeners:
            listener.close()


def test_what_nobody_speaks_here_is_refused() -> None:
    with pytest.raises(ConfigError, match="fastcgi, scgi, ajp are served, and not spdy"):
        Server(_app, protocol="spdy")
    with pytest.raises(ConfigError, match="status_bind"):
        Server(_app, status_bind=("scgi+tcp:127.0.0.1:0",))
    for connect in (client.Client, client.AsyncClient, client.Connection):
        with pytest.raises(ConfigError, match="'spdy\\+' is none of fastcgi"):
            connect("spdy+tcp:127.0.0.1:1")


def _app(environ: object, start_response: object) -> list[bytes]:
    raise RuntimeError("never called")


def test_parse_suggests() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'unix:/run/a\.sock'"):
        Endpoint.parse("/run/a.sock")
    with pytest.raises(ConfigError, match=r"did you mean 'tcp:127\.0\.0\.1:9000'"):
        Endpoint.parse("127.0.0.1:9000")


# Unix sockets


def test_unix_listens_with_its_permissions_and_is_removed(folder: Path) -> None:
    path = folder / "a.sock"
    umask = os.umask(0o077)
    try:
        (listener,) = Endpoint.parse(f"unix:{path}?mode=626").bind()
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o626
    assert listener.label == f"unix:{path}"
    assert not listener.exposed
    assert not listener.get_inheritable()
    with Endpoint.parse(f"unix:{path}").connect(5) as client:
        connection, _ = listener.accept()
        client.sendall(b"x")
        assert connection.recv(1) == b"x"
        connection.close()
    with pytest.raises(BlockingIOError):
        listener.accept()
    listener.close()
    assert os.listdir(folder) == []
    listener.close()  # harmless


def test_unix_gets_owner_and_group(folder: Path) -> None:
    uid, gid = (12345, 23456) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    (listener,) = Endpoint.parse(f"unix:{folder}/s?owner={uid}&group={gid}").bind()
    with listener:
        status = (folder / "s").stat()
        assert (status.st_uid, status.st_gid) == (uid, gid)
    with pytest.raises(ConfigError, match="no user 'nobody-of-that-name'"):
        Endpoint.parse(f"unix:{folder}/s?owner=nobody-of-that-name").bind()
    with pytest.raises(ConfigError, match="no group 'nobody-of-that-name'"):
        Endpoint.parse(f"unix:{folder}/s?group=nobody-of-that-name").bind()
    assert os.listdir(folder) == []


def test_a_stale_unix_socket_is_replaced(folder: Path) -> None:
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
        stale.listen()
    (listener,) = Endpoint.parse(f"unix:{path}").bind()
    with listener, Endpoint.parse(f"unix:{path}").connect(5):
        pass
    assert not path.exists()


def test_the_socket_of_a_killed_process_is_replaced(folder: Path) -> None:
    process = python(
        f"""
        import time
        from fulgate.endpoint import Endpoint
        listeners = Endpoint.parse("unix:{folder}/s").bind()
        print("ready", flush=True)
        time.sleep(60)
        """
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    with pytest.raises(BindError, match="another process listens there"):
        Endpoint.parse(f"unix:{folder}/s").bind()
    process.kill()
    process.communicate(timeout=10)
    assert (folder / "s").is_socket()
    (listener,) = Endpoint.parse(f"unix:{folder}/s").bind()
    listener.close()


@pytest.mark.parametrize("backlog", [0, 1])
def test_a_live_unix_socket_is_left_alone(folder: Path, backlog: int) -> None:
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen(backlog)
        clients = []
        while True:  # a full backlog is a sign of life too
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            clients.append(client)
            if client.connect_ex(str(path)):
                break
        before = path.stat()
        with pytest.raises(BindError, match="another process listens there"):
            Endpoint.parse(f"unix:{path}").bind()
        for client in clients:
            client.close()
        assert os.path.samestat(before, path.stat())


def test_what_is_not_a_stream_socket_is_left_alone(folder: Path) -> None:
    file = folder / "file"
    file.write_text("precious")
    (folder / "link").symlink_to("nowhere")
    (folder / "folder").mkdir()
    for name in ("file", "link", "folder"):
        with pytest.raises(BindError, match="not a socket; it was left alone"):
            Endpoint.parse(f"unix:{folder / name}").bind()
    assert file.read_text() == "precious"
    assert (folder / "link").is_symlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
        datagram.bind(str(folder / "datagram"))
        with pytest.raises(BindError, match="another process listens there"):
            Endpoint.parse(f"unix:{folder / 'datagram'}").bind()
    assert (folder / "datagram").is_socket()


def test_unix_errors_are_one_line(folder: Path) -> None:
    with pytest.raises(BindError, match=f"cannot listen on unix:{folder}/no/s: No such file"):
        Endpoint.parse(f"unix:{folder}/no/s").bind()
    with pytest.raises(BindError, match="too long"):
        Endpoint.parse(f"unix:{folder}/{'x' * 120}").bind()
    assert os.listdir(folder) == []


def test_another_ones_socket_is_not_removed(folder: Path) -> None:
    path = folder / "s"
    (listener,) = Endpoint.parse(f"unix:{path}").bind()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        listener.close()
        assert path.is_socket()
        with Endpoint.parse(f"unix:{path}").connect(5):
            pass


def test_a_forked_child_removes_nothing_and_an_exit_does(folder: Path) -> None:
    code = f"""
        import os, sys
        from fulgate.endpoint import Endpoint
        (listener,) = Endpoint.parse("unix:s").bind()
        os.chdir("/")
        pid = os.fork()
        if pid == 0:
            listener.close()
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        pid = os.fork()
        if pid == 0:
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        print(os.path.exists("{folder}/s"))
        sys.exit(0)
        """
    assert output(python(code, cwd=folder)) == "True"
    assert os.listdir(folder) == []


def test_of_starters_at_once_one_wins(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(folder / "s"))
    code = f"""
        import sys
        from fulgate.endpoint import Endpoint
        from fulgate.errors import BindError
        sys.stdin.readline()
        try:
            listeners = Endpoint.parse("unix:{folder}/s").bind()
        except BindError as error:
            print(error, flush=True)
        else:
            print("won", flush=True)
        sys.stdin.readline()
        """
    processes = [python(code, stdin=subprocess.PIPE) for _ in range(6)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.stdout.readline() for process in processes if process.stdout is not None]
    assert said.count("won\n") == 1
    assert sum("another process listens there" in line for line in said) == 5
    with Endpoint.parse(f"unix:{folder}/s").connect(5):
        pass
    for process in processes:
        output(process)
    assert os.listdir(folder) == []


def test_a_folder_that_stays_locked_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LOCK_PATIENCE > 1
    monkeypatch.setattr("fulgate.listener.LOCK_PATIENCE", 0.1)
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(BindError, match="locked its folder"):
            Endpoint.parse(f"unix:{folder}/s").bind()
    finally:
        os.close(fd)
    assert os.listdir(folder) == []


# TCP


def test_tcp_listens_and_says_where() -> None:
    (listener,) = Endpoint.parse("tcp:127.0.0.1:0").bind()
    with listener:
        port = listener.getsockname()[1]
        assert listener.label == f"tcp:127.0.0.1:{port}"
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert not listener.exposed
        with Endpoint.parse(listener.label).connect(5) as client:
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert client.gettimeout() == 5
        with pytest.raises(BindError, match=r"tcp:127\.0\.0\.1:\d+: the address is in use already"):
            Endpoint.parse(listener.label).bind()
    with pytest.raises(ConnectionRefusedError):
        Endpoint.parse(f"tcp:127.0.0.1:{port}").connect(5)


def test_tcp_speaks_ipv6() -> None:
    (listener,) = Endpoint.parse("tcp:[::1]:0").bind()
    with listener:
        assert listener.label.startswith("tcp:[::1]:")
        assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        assert not listener.exposed
        with Endpoint.parse(listener.label).connect(5):
            pass


def test_a_host_name_is_all_its_addresses() -> None:
    (first,) = Endpoint.parse("tcp:localhost:0").bind()
    port = first.getsockname()[1]
    first.close()
    listeners = Endpoint.parse(f"tcp:localhost:{port}").bind()
    try:
        known = {info[4][0] for info in socket.getaddrinfo("localhost", port)}
        assert {listener.getsockname()[0] for listener in listeners} <= known
        with Endpoint.parse(f"tcp:localhost:{port}").connect(5):
            pass
    finally:
        for listener in listeners:
            listener.close()


def test_tcp_errors() -> None:
    with pytest.raises(BindError, match="does not resolve"):
        Endpoint.parse("tcp:host.invalid:9000").bind()
    with pytest.raises(BindError, match=r"cannot listen on tcp:203\.0\.113\.1:0: Cannot assign"):
        Endpoint.parse("tcp:203.0.113.1:0").bind()


def test_what_other_machines_reach_is_refused() -> None:
    for text in ("tcp:0.0.0.0:0", "tcp:[::]:0", "tcp:203.0.113.1:9000"):
        with pytest.raises(ConfigError, match="allowed_clients"):
            bind_all([text])
        with pytest.raises(ConfigError, match="allowed_clients"):
            check_exposed(Endpoint.parse(text), AllowedClients([]))
    said: list[str] = []
    for options in ({"on_exposed": said.append}, {"allowed_clients": AllowedClients(["10.0.0.1"])}):
        (listener,) = bind_all(["tcp:0.0.0.0:0"], **options)
        assert listener.exposed
        listener.close()
    assert len(said) == 1


def test_binding_is_all_or_nothing(folder: Path) -> None:
    with pytest.raises(BindError):
        bind_all([f"unix:{folder}/a", f"unix:{folder}/b", f"unix:{folder}/no/c"])
    assert os.listdir(folder) == []
    with pytest.raises(ConfigError):
        bind_all([f"unix:{folder}/a", "tcp:0.0.0.0:0"])
    listeners = bind_all([f"unix:{folder}/a", Endpoint.parse("tcp:127.0.0.1:0")])
    assert [listener.family for listener in listeners] == [socket.AF_UNIX, socket.AF_INET]
    for listener in listeners:
        listener.close()


def test_one_cannot_connect_to_everything() -> None:
    for text in ("fd:3", "systemd", "tcp:127.0.0.1:0"):
        with pytest.raises(ConfigError, match="cannot connect"):
            Endpoint.parse(text).connect(1)


# Who may connect


@pytest.mark.statement("2")
def test_allowed_clients() -> None:
    allowed = AllowedClients(["10.0.0.7", "192.168.0.0/16", " fd00::/8 "])
    assert allowed
    for peer in ("10.0.0.7", "192.168.3.4", "fd00::1", "::ffff:10.0.0.7"):
        assert allowed.allows((peer, 1234)), peer
    assert allowed.allows(("fd00::1%lo", 1234, 0, 1))
    for peer in ("10.0.0.8", "127.0.0.1", "::1", "fe80::1%eth0", "::ffff:10.0.0.8"):
        assert not allowed.allows((peer, 1234)), peer
    assert allowed.allows("")  # a Unix socket's peer
    assert not AllowedClients([])
    assert AllowedClients([]).allows(("203.0.113.1", 1))
    with pytest.raises(ConfigError, match="allowed_clients"):
        AllowedClients(["10.0.0.1/8"])
    with pytest.raises(ConfigError, match="allowed_clients"):
        AllowedClients(["host"])


def test_allowed_users() -> None:
    allowed = AllowedClients([f"uid:{os.getuid()}", " uid:root ", "::1"])
    assert allowed.users == {os.getuid(), 0}
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert allowed.allows("", ours)
        assert AllowedClients(["uid:54321", "127.0.0.1"]).allows(("127.0.0.1", 1), ours)
        assert not AllowedClients(["uid:54321"]).allows("", ours)
        assert AllowedClients(["::1"]).allows("", ours)
    assert not allowed.allows("", ours)  # what cannot be told is not allowed
    with pytest.raises(ConfigError, match="would let every machine"):
        bind_all(["tcp:0.0.0.0:0"], allowed_clients=AllowedClients(["uid:0"]))
    for wrong in ("uid:", "uid:no-such-user", "uid:-1"):
        with pytest.raises(ConfigError, match="there is no such user"):
            AllowedClients([wrong])


def test_allowed_groups() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for gid in {os.getegid(), *os.getgroups()}:
            assert AllowedClients([f"gid:{gid}", "uid:54321"]).allows("", ours)
        assert not AllowedClients(["gid:54321"]).allows("", ours)
        assert AllowedClients(["gid:54321"]).allows(("127.0.0.1", 1), ours)
        assert AllowedClients(["gid:54321", f"uid:{os.getuid()}"]).allows("", ours)
    assert not AllowedClients([f"gid:{os.getegid()}"]).allows("", ours)
    assert AllowedClients(["gid:root"]).groups == {0}
    assert AllowedClients(["gid:root"]).restrict
    for wrong in ("gid:", "gid:no-such-group", "gid:-1"):
        with pytest.raises(ConfigError, match="there is no such group"):
            AllowedClients([wrong])


@pytest.mark.statement("2")
def test_fcgi_web_server_addrs() -> None:
    environ = {"FCGI_WEB_SERVER_ADDRS": "199.170.183.28,199.170.183.71"}  # the example of 3.2
    allowed = AllowedClients.of((), environ)
    assert allowed.allows(("199.170.183.71", 1))
    assert not allowed.allows(("127.0.0.1", 1))
    assert AllowedClients.of(["127.0.0.1"], environ).allows(("127.0.0.1", 1))
    assert not AllowedClients.of((), {})
    with pytest.raises(ConfigError):
        AllowedClients.of((), {"FCGI_WEB_SERVER_ADDRS": "199.170.183"})


def test_a_signal_leaves_no_socket_behind_when_python_exits(folder: Path) -> None:
    process = python(
        f"""
        import signal, sys, time
        from fulgate.endpoint import Endpoint
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        listeners = Endpoint.parse("unix:{folder}/s").bind()
        print("ready", flush=True)
        time.sleep(60)
        """
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    output(process)
    assert os.listdir(folder) == []


def test_errno_of_a_dead_unix_socket_reaches_the_client(folder: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Endpoint.parse(f"unix:{folder}/s").connect(1)
    assert caught.value.errno == errno.ENOENT
