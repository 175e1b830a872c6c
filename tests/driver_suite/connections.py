"""Connections, and how many of them."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys

import pytest

from tests.driver_suite.kit import END, Log, MakeServer, ask, hello, silent
from tests.model import PARAMS
from tests.raw import Raw, head, record


@pytest.mark.statement("10")
def test_a_kept_connection_serves_many_requests(make_server: MakeServer) -> None:
    served = make_server(hello)
    with Raw(served.address) as raw:
        for id in (1, 1, 2, 65535, *range(1, 100)):
            assert raw.request(id=id).body == b"hello\n"


@pytest.mark.statement("9")
def test_a_connection_that_is_not_to_be_kept_is_closed(make_server: MakeServer) -> None:
    served = make_server(hello)
    for address in (served.address, served.tcp):
        with Raw(address) as raw:
            assert raw.request(keep=False).body == b"hello\n"
            assert raw.closed()


CONNECT = """\
import os, socket, sys
os.setgroups([int(group) for group in sys.argv[3:]])
os.setuid(int(sys.argv[2]))  # only now: its Python may lie where no other user gets at it
with socket.socket(fileno=0) as parent, socket.socket(socket.AF_UNIX) as client:
    client.connect(sys.argv[1])
    socket.send_fds(parent, [b"c"], [client.fileno()])
"""


def connect_as(uid: int, address: str, *groups: int) -> socket.socket:
    """Have a process of this user, in these groups, connect, and take the connection from it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", CONNECT, address, *map(str, (uid, *groups))],
            stdin=theirs.fileno(),
            timeout=30,
            check=True,
        )
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    return socket.socket(fileno=fds[0])


def shut_out(address: object) -> bool:
    try:
        with Raw(address) as raw:
            return raw.closed()
    except ConnectionResetError:  # so quick that connecting fails
        return True


@pytest.mark.requires_root
def test_users_who_may_connect_to_a_unix_socket(make_server: MakeServer, log: Log) -> None:
    served = make_server(hello, allowed_clients=("uid:21234", "uid:nobody", "10.0.0.0/8"))
    os.chmod(served.address, 0o666)
    for uid in (21234, 65534):
        with Raw(connect_as(uid, served.address)) as raw:
            assert raw.request().body == b"hello\n"
    for stranger in (connect_as(21235, served.address), served.address):  # root is nobody special
        assert shut_out(stranger)
    assert "refused a connection from user 21235, which is not allowed" in "\n".join(log.lines())
    assert shut_out(served.tcp)


@pytest.mark.requires_root
def test_groups_that_may_connect_to_a_unix_socket(make_server: MakeServer) -> None:
    served = make_server(hello, allowed_clients=("gid:21300", "uid:21234"))
    os.chmod(served.address, 0o666)
    for uid, group in ((21234, 21301), (21235, 21300)):
        with Raw(connect_as(uid, served.address, 21302, group)) as raw:
            assert raw.request().body == b"hello\n"
    assert shut_out(connect_as(21235, served.address, 21301))


@pytest.mark.requires_root
def test_users_say_nothing_of_tcp_nor_addresses_of_users(make_server: MakeServer) -> None:
    with Raw(make_server(hello, allowed_clients=("uid:21234",)).tcp) as raw:
        assert raw.request().body == b"hello\n"
    with Raw(make_server(hello, allowed_clients=("10.0.0.0/8",)).address) as raw:
        assert raw.request().body == b"hello\n"


@pytest.mark.statement("2")
@pytest.mark.parametrize("address", ["127.0.0.0/8", "127.0.0.1"])
def test_addresses_and_networks_that_may_connect(make_server: MakeServer, address: str) -> None:
    with Raw(make_server(hello, allowed_clients=(address, "fd00::/8")).tcp) as raw:
        assert raw.request().body == b"hello\n"
    assert shut_out(make_server(hello, allowed_clients=("127.0.0.2", "::1/128")).tcp)


def test_hundreds_of_connections_on_two_threads(make_server: MakeServer) -> None:
    served = make_server(hello, threads=2)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Raw(served.address)) for _ in range(300)]
        for _ in range(3):
            for raw in clients:
                raw.expect()
                raw.send(head(), END)
            for raw in clients:
                assert raw.answer().body == b"hello\n"


def test_more_descriptors_than_select_can_wait_for(make_server: MakeServer) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= 4096, "this test needs 4,096 descriptors"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    served = make_server(hello, threads=2)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Raw(served.address)) for _ in range(1100)]
        for raw in clients[::10] + clients[-10:]:
            assert raw.request().body == b"hello\n"
        assert clients[-1].socket.fileno() > 1024


@pytest.mark.statement("R6")
def test_connections_that_say_nothing_or_dribble_cost_no_thread(make_server: MakeServer) -> None:
    served = make_server(hello, threads=1)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(Raw(served.address)) for _ in range(20)]
        dribble = [stack.enter_context(Raw(served.address)) for _ in range(20)]
        whole = head() + END
        for at in range(0, len(whole), 20):
            for raw in dribble:
                raw.send(whole[at : at + 20])
            with Raw(served.address) as other:
                assert other.request().body == b"hello\n"
        for raw in dribble:
            raw.expect()
            assert raw.answer().body == b"hello\n"
        for raw in idle:
            assert raw.request().body == b"hello\n"


def test_connections_beyond_the_limit_wait_in_the_backlog(make_server: MakeServer) -> None:
    served = make_server(hello, worker_connections=3)
    clients = [Raw(served.address) for _ in range(3)]
    for raw in clients:
        raw.request()
    for _ in range(20):
        late = ask(served)
        assert clients[1].request().body == b"hello\n"
        assert silent(late)
        clients.pop(0).socket.close()
        assert late.answer().body == b"hello\n"
        clients.append(late)
    for raw in clients:
        raw.socket.close()


def test_a_place_that_falls_free_at_any_time_is_taken(make_server: MakeServer) -> None:
    served = make_server(hello, worker_connections=1, threads=2)
    for _ in range(10):
        clients = [Raw(served.address) for _ in range(3)]
        for raw in clients:
            raw.expect()
            raw.send(head(keep=False), END)
        for raw in clients:
            assert raw.answer().body == b"hello\n"
            raw.socket.close()


@pytest.mark.statement("30")
def test_a_peer_that_breaks_the_rules_loses_its_connection_only(
    make_server: MakeServer, log: Log
) -> None:
    served = make_server(hello)
    with Raw(served.address) as good, Raw(served.address) as bad:
        good.request()
        bad.send(record(PARAMS, 1, version=2))
        assert bad.closed()
        assert good.request().body == b"hello\n"
    assert [line for line in log.lines() if "version 2" in line]
