"""Connections, and how many of them."""

from __future__ import annotations

import contextlib
import resource

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
