"""How a server is started: statements 1 and 2."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model import END_REQUEST, STDOUT
from tests.raw import PATIENCE, Raw
from tests.servers import Fulgate, Running
from tests.statements import APP, eventually, statement


@contextlib.contextmanager
def spawned(
    listener: socket.socket, *options: str, shell: str = 'exec "$0" "$@"'
) -> Iterator[subprocess.Popen[str]]:
    """Run fulgate as a FastCGI process manager would, its socket on descriptor 0."""
    command = [sys.executable, "-m", "fulgate", "serve", APP, *options]
    root = str(Path(__file__).parent.parent)
    process = subprocess.Popen(
        ["/bin/sh", "-c", shell, *command],
        stdin=listener.fileno(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": root, "PYTHONWARNINGS": "error"},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=PATIENCE)


@statement("1")
@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_the_listening_socket_may_be_descriptor_0(
    family: socket.AddressFamily, folder: Path
) -> None:
    address = str(folder / "0.sock") if family == socket.AF_UNIX else ("127.0.0.1", 0)
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen()
        with spawned(listener) as process:
            with Raw(listener.getsockname()) as raw:
                assert raw.request().body == b"Hello, world!\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        assert family != socket.AF_UNIX or (folder / "0.sock").is_socket()  # not ours to remove


@statement("1")
def test_the_other_standard_descriptors_may_be_closed(folder: Path) -> None:
    """So section 2.2 has it; what is logged then must not reach whatever has those numbers."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "0.sock"))
        listener.listen()
        closing = 'exec "$0" "$@" >&- 2>&-'
        with spawned(listener, "--access-logfile", "-", shell=closing) as process:
            with contextlib.ExitStack() as stack:
                for path, status in [("/hello", "200 OK"), ("/fails", "500 Internal")] * 3:
                    raw = stack.enter_context(Raw(folder / "0.sock"))
                    answer = raw.request(path)
                    assert answer.status.startswith(status)
                    assert {r.kind for r in raw.reader.order} == {STDOUT, END_REQUEST}
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0


@statement("1")
@pytest.mark.parametrize("kind", ["connected", "not listening"])
def test_descriptor_0_of_a_cgi_program_is_not_listened_on(kind: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket() as fresh:
        with spawned(theirs if kind == "connected" else fresh, "--bind", "fd:0") as process:
            out, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 3
        assert "descriptor 0 is not a listening stream socket" in out
        assert "Traceback" not in out


def closed_at_once(address: object, source: str = "") -> bool:
    with Raw(address, source) as raw:
        return raw.closed()


def tcp_address(server: Fulgate) -> tuple[str, int]:
    """Wait until the server says on which port it listens."""
    line = re.compile(r"on tcp:\[?([^\]]+)\]?:([0-9]+)\n")
    eventually(lambda: line.search(server.log()) is not None, "it listens")
    found = line.search(server.log())
    assert found is not None
    return found[1], int(found[2])


@statement("2")
@pytest.mark.parametrize("addresses", ["127.0.0.1,127.0.0.3", " 127.0.0.3 , 127.0.0.1 ", "::1"])
def test_web_server_addrs(running: Running, addresses: str) -> None:
    env = {"FCGI_WEB_SERVER_ADDRS": addresses}
    server = running(Fulgate, APP, "--bind", "tcp:127.0.0.1:0", env=env)
    address = tcp_address(server)
    for source in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
        if source in addresses:
            with Raw(address, source) as raw:
                assert raw.request().body == b"Hello, world!\n"
        else:
            assert closed_at_once(address, source)
    assert closed_at_once(server.socket)  # a transport other than TCP
    assert server.stop() == 0


@statement("2")
@pytest.mark.parametrize("addresses", ["192.0.2.1,::1", "127.0.0.1,::2"])
def test_web_server_addrs_of_ipv6(running: Running, addresses: str) -> None:
    env = {"FCGI_WEB_SERVER_ADDRS": addresses}
    server = running(Fulgate, APP, "--bind", "tcp:[::1]:0", env=env)
    address = tcp_address(server)
    if "::1" in addresses:
        with Raw(address) as raw:
            assert raw.request().body == b"Hello, world!\n"
    else:
        assert closed_at_once(address)


@statement("2")
@pytest.mark.parametrize("allowed", [True, False])
def test_an_ipv4_peer_of_an_ipv6_socket_is_known_by_its_ipv4_address(
    allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FCGI_WEB_SERVER_ADDRS", "127.0.0.1" if allowed else "127.0.0.2")
    with socket.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::ffff:127.0.0.1", 0))
        listener.listen()
        address = ("127.0.0.1", listener.getsockname()[1])
        with spawned(listener):
            if allowed:
                with Raw(address) as raw:
                    assert raw.request().body == b"Hello, world!\n"
            else:
                assert closed_at_once(address)


@statement("2")
def test_web_server_addrs_that_cannot_be_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FCGI_WEB_SERVER_ADDRS", "127.0.0.1,example")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "0.sock"))
        listener.listen()
        with spawned(listener) as process:
            out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert len(out.splitlines()) == 1
    assert "'example'" in out
