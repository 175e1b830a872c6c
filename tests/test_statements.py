"""The numbered statements of FastCGI's conformance list, each held against a running server.

The servers are processes of their own, and are spoken to in single records over real sockets. Most
run one thread: what needs a second one to keep a promise fails here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.apps import wait_for
from tests.conftest import SERVERS
from tests.model import (
    ABORT_REQUEST,
    BEGIN_REQUEST,
    CANT_MPX_CONN,
    END_REQUEST,
    GET_VALUES,
    GET_VALUES_RESULT,
    PARAMS,
    REQUEST_COMPLETE,
    STDERR,
    STDIN,
    STDOUT,
    UNKNOWN_ROLE,
    UNKNOWN_TYPE,
    Record,
)
from tests.raw import PATIENCE, Raw, begin, environ, head, pair, pairs, post, record, stream, values
from tests.servers import Fulgate, Running

APP = "tests.apps:app"

STATEMENTS = {
    *map(str, range(1, 31)),
    *(f"R{n}" for n in range(1, 7)),
}  # fmt: skip
# They wait for what does not exist yet: OVERLOADED on request, an exit status that an application
# chooses for appStatus, and the roles Authorizer and Filter.
NOT_YET = {"19", "25", "27", "28"}

statement = pytest.mark.statement


@pytest.fixture(scope="module")
def shared() -> Iterator[Fulgate]:
    """One server with a single thread, for whatever leaves nothing behind."""
    with tempfile.TemporaryDirectory(prefix="fulgate-", dir="/tmp") as folder:
        with Fulgate(Path(folder), APP, "--threads", "1") as server:
            yield server
            assert server.stop() == 0


@pytest.fixture
def served(shared: Fulgate, request: pytest.FixtureRequest) -> Iterator[Fulgate]:
    """The shared server, which still serves when the test has ended."""
    request.node.stash.setdefault(SERVERS, []).append(shared)
    yield shared
    still_serves(shared)


def still_serves(server: Fulgate) -> None:
    with Raw(server.socket) as raw:
        assert raw.request().body == b"Hello, world!\n"


def query(**paths: Path) -> str:
    return urlencode({name: str(path) for name, path in paths.items()})


def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def written(path: Path) -> str:
    """Wait for the application's report."""
    eventually(lambda: path.exists() and path.read_text() != "", f"{path.name} is there")
    return path.read_text()


def sockets(server: Fulgate) -> int:
    """Count the server's sockets, those that listen included."""
    count = 0
    for entry in Path(f"/proc/{server.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(entry).startswith("socket:")
    return count


# 1, 2: how it is started


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


# 3 to 8: records, streams and pairs


@statement("3")
@pytest.mark.parametrize("padding", [0, 1, 7, 8, 128, 255])
def test_padding_is_skipped(served: Fulgate, padding: int) -> None:
    with Raw(served.socket) as raw:
        for _ in range(2):
            answer = raw.request("/echo", body=b"0123456789" * 10, padding=padding, cut=33)
            assert answer.body == b"0123456789" * 10
        raw.send(values(b"FCGI_MPXS_CONNS", padding=padding))
        assert raw.management().kind == GET_VALUES_RESULT
        raw.expect()
        raw.send(begin(padding=padding), record(ABORT_REQUEST, 1, b"", padding))
        assert raw.answer().protocol_status == REQUEST_COMPLETE


@statement("4")
@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 1_000_000])
def test_records_that_are_sent(served: Fulgate, size: int) -> None:
    """The reader takes no other version; a length above 65,535 does not fit in its field."""
    with Raw(served.socket) as raw:
        answer = raw.request("/sized", f"size={size}")
    assert answer.body == (bytes(range(256)) * (size // 256 + 1))[:size]
    assert raw.reader.data == b""
    assert len(answer.records) <= 3 + 2 * (size // 65528 + 1)


@statement("5")
@pytest.mark.parametrize("id", [1, 2, 255, 256, 257, 32768, 65535])
def test_request_id_is_echoed(served: Fulgate, id: int) -> None:
    with Raw(served.socket) as raw:
        assert raw.request(id=id).body == b"Hello, world!\n"
        assert {one.id for one in raw.reader.order} == {id}
        # The reader takes no id but those that it expects.
        raw.expect(id)
        raw.send(begin(id, role=3))
        assert raw.answer(id).protocol_status == UNKNOWN_ROLE
        raw.expect(id)
        raw.send(begin(id), record(ABORT_REQUEST, id))
        assert raw.answer(id).protocol_status == REQUEST_COMPLETE


@statement("6")
def test_records_of_inactive_ids_are_ignored(served: Fulgate) -> None:
    noise = b"".join([record(kind, 7, b"noise") for kind in (*range(2, 13), 200, 255)])
    with Raw(served.socket) as raw:
        raw.send(noise)
        assert raw.request().body == b"Hello, world!\n"
        raw.expect()
        raw.send(head("/echo", **post(3)), noise, record(STDIN, 1, b"abc"), noise)
        raw.send(record(STDIN, 1))
        assert raw.answer().body == b"abc"
        # The id is inactive again: what comes late for it is not for the next request.
        late = record(PARAMS, 1, b"noise") + stream(STDIN, 1, b"noise") + record(ABORT_REQUEST, 1)
        raw.send(late)
        assert raw.request("/echo", body=b"abc").body == b"abc"
        raw.send(late)
        assert set(raw.values(b"FCGI_MAX_CONNS")) == {b"FCGI_MAX_CONNS"}


@statement("7")
@pytest.mark.parametrize("cut", [1, 2, 3, 5, 50])
def test_streams_are_independent_of_records(served: Fulgate, cut: int) -> None:
    wide = {"X_LONG": "v" * 300, "X" * 130: "name"}
    with Raw(served.socket) as raw:
        answer = raw.request("/", "a=b", cut=cut, **wide)
        shown = json.loads(answer.body)
        assert {name: shown[name] for name in wide} == wide
        assert shown["QUERY_STRING"] == "a=b"
        assert raw.request("/echo", body=b"0123456789" * 20, cut=cut).body == b"0123456789" * 20


@statement("7")
def test_a_request_that_comes_in_single_bytes(served: Fulgate) -> None:
    data = head("/echo", **post(5)) + stream(STDIN, 1, b"12345")
    with Raw(served.socket) as raw:
        raw.expect()
        for at in range(len(data)):
            raw.send(data[at : at + 1])
        assert raw.answer().body == b"12345"


@statement("8")
def test_lengths_of_pairs(served: Fulgate) -> None:
    sizes = [0, 1, 126, 127, 128, 129, 255, 256, 300, 70_000]
    sent = {f"V{size}": "v" * size for size in sizes}
    sent.update({"N" * size: f"n{size}" for size in sizes if size})
    with Raw(served.socket) as raw:
        shown = json.loads(raw.request("/", **sent).body)
        assert {name: shown.get(name) for name in sent} == sent
        # Four bytes are allowed for a short length too.
        raw.expect()
        four = b"\x80\0\0\1\x80\0\0\3Xabc" + b"\1\x80\0\0\2Yde" + b"\x80\0\0\1\1Zf"
        block = pairs(environ("/")) + four
        raw.send(begin(), stream(PARAMS, 1, block), record(STDIN, 1))
        shown = json.loads(raw.answer().body)
        assert (shown["X"], shown["Y"], shown["Z"]) == ("abc", "de", "f")


# 9, 10: who closes


@statement("9")
@pytest.mark.parametrize("path", ["/hello", "/fails", "/sized?size=300000"])
def test_without_keep_conn_it_closes(served: Fulgate, path: str) -> None:
    path, _, text = path.partition("?")
    with Raw(served.socket) as raw:
        raw.request(path, text, keep=False)
        assert raw.closed()


@statement("10")
@pytest.mark.parametrize("path", ["/hello", "/fails", "/sized?size=300000"])
def test_with_keep_conn_it_does_not_close(served: Fulgate, path: str) -> None:
    path, _, text = path.partition("?")
    with Raw(served.socket) as raw:
        for _ in range(3):
            raw.request(path, text)
        assert raw.request().body == b"Hello, world!\n"
        # An answer that does not wait for the whole body leaves the connection usable as well.
        raw.expect()
        raw.send(head(**post(200_000)), record(STDIN, 1, b"the first part"))
        assert raw.answer().body == b"Hello, world!\n"
        raw.send(stream(STDIN, 1, b"x" * 199_986))
        assert raw.request().body == b"Hello, world!\n"


# 11 to 14: management records


@statement("11")
def test_get_values(running: Running) -> None:
    options = ("--threads", "3", "--queue", "20", "--worker-connections", "50")
    server = running(Fulgate, APP, *options)
    all_three = {b"FCGI_MAX_CONNS": b"50", b"FCGI_MAX_REQS": b"23", b"FCGI_MPXS_CONNS": b"0"}
    with Raw(server.socket) as raw:
        assert raw.values(*all_three) == all_three
        for name, value in all_three.items():
            assert raw.values(name) == {name: value}
        assert raw.request().body == b"Hello, world!\n"


@statement("12")
def test_unknown_names_are_left_out(served: Fulgate) -> None:
    with Raw(served.socket) as raw:
        assert list(raw.values(b"FCGI_OTHER", b"FCGI_MPXS_CONNS", b"")) == [b"FCGI_MPXS_CONNS"]
        assert raw.values(b"fcgi_mpxs_conns", b"N" * 200) == {}
        assert raw.values() == {}


@statement("13")
@statement("14")
@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (values(b"FCGI_MPXS_CONNS"), Record(GET_VALUES_RESULT, 0, pair(b"FCGI_MPXS_CONNS", b"0"))),
        (record(77, 0, b"what"), Record(UNKNOWN_TYPE, 0, bytes([77, 0, 0, 0, 0, 0, 0, 0]))),
    ],
)
def test_management_records_at_any_time(
    served: Fulgate, tmp_path: Path, asked: bytes, told: Record
) -> None:
    go = tmp_path / "go"
    steps = [
        begin(),
        record(PARAMS, 1, pairs(environ("/stream", query(go=go), **post(6)))[:50]),
        record(PARAMS, 1, pairs(environ("/stream", query(go=go), **post(6)))[50:]),
        record(PARAMS, 1),
        record(STDIN, 1, b"abc"),
        record(STDIN, 1, b"def"),
        record(STDIN, 1),
    ]
    with Raw(served.socket) as raw:
        raw.send(asked)
        assert raw.management() == told
        answer = raw.expect()
        for step in steps:
            raw.send(step, asked)
            assert raw.management() == told
        # While the application runs, on the only thread there is:
        raw.until(1, b"first\n")
        raw.send(asked)
        assert raw.management() == told
        assert not answer.ended
        go.touch()
        assert raw.answer().body == b"first\nsecond\n"
        raw.send(asked)
        assert raw.management() == told


@statement("14")
def test_unknown_management_types(served: Fulgate) -> None:
    with Raw(served.socket) as raw:
        for kind in range(256):
            if kind != GET_VALUES:
                raw.send(record(kind, 0, bytes(kind)))
                assert raw.management() == Record(UNKNOWN_TYPE, 0, bytes([kind]) + bytes(7))
        assert raw.request().body == b"Hello, world!\n"


# 15 to 18, 20: aborts and refusals


@statement("15")
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("sent", [0, 10, 10_000], ids=["no PARAMS", "some PARAMS", "all PARAMS"])
def test_abort_before_params_have_ended(served: Fulgate, keep: bool, sent: int) -> None:
    with Raw(served.socket) as raw:
        raw.expect()
        block = pairs(environ())[:sent]
        raw.send(begin(keep=keep), stream(PARAMS, 1, block, end=False), record(ABORT_REQUEST, 1))
        answer = raw.answer()
        assert answer.protocol_status == REQUEST_COMPLETE
        assert answer.stdout == b""
        if keep:
            assert raw.request().body == b"Hello, world!\n"
        else:
            assert raw.closed()


@statement("16")
@pytest.mark.parametrize("keep", [True, False])
def test_abort_while_the_application_runs(served: Fulgate, keep: bool, tmp_path: Path) -> None:
    began, report = tmp_path / "began", tmp_path / "report"
    with Raw(served.socket) as raw:
        raw.expect()
        text = query(began=began, report=report)
        raw.send(head("/patient", text, keep=keep), record(STDIN, 1))
        wait_for(began)
        raw.send(record(ABORT_REQUEST, 1))
        answer = raw.answer()
        assert answer.protocol_status == REQUEST_COMPLETE
        assert answer.stdout == b""
        assert written(report) == "aborted=True"
        if keep:
            assert raw.request().body == b"Hello, world!\n"
        else:
            assert raw.closed()


@statement("16")
def test_abort_of_an_application_that_does_not_look(served: Fulgate, tmp_path: Path) -> None:
    """END_REQUEST comes although the application goes on; its id is free, its answer is lost."""
    go = tmp_path / "go"
    with Raw(served.socket) as raw:
        answer = raw.expect()
        raw.send(head("/stream", query(go=go)), record(STDIN, 1))
        raw.until(1, b"first\n")
        raw.send(record(ABORT_REQUEST, 1))
        assert raw.answer().protocol_status == REQUEST_COMPLETE
        raw.expect()
        raw.send(head("/echo", **post(3)), stream(STDIN, 1, b"new"))
        assert raw.values(b"FCGI_MPXS_CONNS")
        assert not go.exists()
        go.touch()
        assert raw.answer().body == b"new"
        assert answer.body == b"first\n"


@statement("16")
def test_abort_while_the_application_writes(served: Fulgate, tmp_path: Path) -> None:
    report = tmp_path / "report"
    with Raw(served.socket) as raw:
        raw.expect()
        raw.send(head("/endless", query(report=report)), record(STDIN, 1))
        raw.until(1, b"xxxx")
        raw.send(record(ABORT_REQUEST, 1))
        assert raw.answer().protocol_status == REQUEST_COMPLETE
        assert written(report) == "closed, aborted=True"
        assert raw.request().body == b"Hello, world!\n"


@statement("17")
@pytest.mark.parametrize("keep", [True, False])
def test_abort_while_the_application_reads(served: Fulgate, keep: bool, tmp_path: Path) -> None:
    began, report = tmp_path / "began", tmp_path / "report"
    with Raw(served.socket) as raw:
        raw.expect()
        text = query(began=began, report=report)
        raw.send(head("/reader", text, keep=keep, **post(100_000)), record(STDIN, 1, b"a part"))
        wait_for(began)
        raw.send(record(ABORT_REQUEST, 1))
        answer = raw.answer()
        assert answer.protocol_status == REQUEST_COMPLETE
        assert answer.stdout == b""
        assert written(report) == "Aborted"
        if keep:
            assert raw.request().body == b"Hello, world!\n"
        else:
            assert raw.closed()


@statement("17")
def test_abort_while_a_small_body_is_waited_for(running: Running, tmp_path: Path) -> None:
    server = running(Fulgate, APP, "--threads", "1", "--body-wait", "60")
    began, report = tmp_path / "began", tmp_path / "report"
    with Raw(server.socket) as raw:
        raw.expect()
        raw.send(head("/reader", query(began=began, report=report), **post(10)))
        raw.send(record(STDIN, 1, b"a part"), record(ABORT_REQUEST, 1))
        assert raw.answer().protocol_status == REQUEST_COMPLETE
        assert raw.request().body == b"Hello, world!\n"
    assert not began.exists()


@statement("16")
@statement("17")
def test_aborts_leave_nothing_in_the_log(running: Running, tmp_path: Path) -> None:
    server = running(Fulgate, APP, "--threads", "1")
    before = server.log()
    for path in ("/patient", "/reader", "/endless"):
        began, report = tmp_path / "began", tmp_path / "report"
        for how in (record(ABORT_REQUEST, 1), b""):
            with Raw(server.socket) as raw:
                raw.expect()
                raw.send(head(path, query(began=began, report=report), **post(100_000)))
                if path == "/endless":
                    raw.until(1, b"xxxx")
                else:
                    wait_for(began)
                if how:
                    raw.send(how)
                    raw.answer()
            written(report)
            began.unlink(missing_ok=True)
            report.unlink()
    still_serves(server)
    assert server.log() == before


@statement("18")
def test_concurrent_ids_are_refused(served: Fulgate, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with Raw(served.socket) as raw:
        raw.expect(1)
        raw.send(begin(1))
        for id in (2, 65535):  # while PARAMS come
            raw.expect(id)
            raw.send(head(id=id), stream(STDIN, id, b"ignored"))
            assert raw.answer(id).protocol_status == CANT_MPX_CONN
        raw.send(stream(PARAMS, 1, pairs(environ("/stream", query(go=go)))), record(STDIN, 1))
        raw.until(1, b"first\n")
        raw.expect(2)  # while the application runs
        raw.send(head(id=2), record(STDIN, 2))
        refusal = raw.answer(2)
        assert refusal.protocol_status == CANT_MPX_CONN
        assert refusal.stdout == b""
        go.touch()
        assert raw.answer(1).body == b"first\nsecond\n"
        assert raw.request(id=2).body == b"Hello, world!\n"


@statement("20")
@pytest.mark.parametrize("role", [0, 2, 3, 4, 256, 257, 65535])
def test_unknown_roles(served: Fulgate, role: int) -> None:
    with Raw(served.socket) as raw:
        for _ in range(2):
            raw.expect()
            raw.send(begin(role=role), stream(PARAMS, 1, pairs(environ())), record(STDIN, 1))
            answer = raw.answer()
            assert answer.protocol_status == UNKNOWN_ROLE
            assert answer.stdout == b""
        assert raw.request().body == b"Hello, world!\n"
    with Raw(served.socket) as raw:
        raw.expect()
        raw.send(begin(role=role, keep=False))
        assert raw.answer().protocol_status == UNKNOWN_ROLE
        assert raw.closed()


# 21 to 26: answers


@statement("21")
@pytest.mark.parametrize(
    ("path", "text", "method"),
    [
        ("/hello", "", "GET"),
        ("/hello", "", "HEAD"),
        ("/empty", "status=200+OK", "GET"),
        ("/empty", "status=204+No+Content", "GET"),
        ("/empty", "status=304+Not+Modified", "GET"),
        ("/sized", "size=0", "GET"),
        ("/sized", "size=65535", "GET"),
        ("/sized", "size=200000", "GET"),
        ("/fails", "", "GET"),
        ("/errors", "", "GET"),
    ],
)
def test_stdout_is_closed_by_an_empty_record(
    served: Fulgate, path: str, text: str, method: str
) -> None:
    with Raw(served.socket) as raw:
        answer = raw.request(path, text, REQUEST_METHOD=method)
    assert answer.stdout_ended
    assert answer.protocol_status == REQUEST_COMPLETE
    assert [one.kind for one in answer.records].count(END_REQUEST) == 1
    stdout = [one.content for one in answer.records if one.kind == STDOUT]
    assert stdout[-1] == b""
    assert stdout.count(b"") == 1


@statement("21")
def test_a_broken_answer_is_cut_without_an_end(served: Fulgate) -> None:
    with Raw(served.socket) as raw:
        with pytest.raises(EOFError):
            raw.request("/breaks")
        answer = raw.reader.answers[1]
        assert answer.body == b"x" * 100_000
        assert not answer.stdout_ended
        assert not answer.ended


@statement("22")
def test_stderr_between_stdout(running: Running) -> None:
    server = running(Fulgate, APP, "--stderr")
    with Raw(server.socket) as raw:
        answer = raw.request("/errors")
        assert answer.body == b"one\ntwo\n"
        assert answer.stderr == b"before one\nbefore two\nthe last\n"
        assert answer.stdout_ended
        assert answer.stderr_ended
        kinds = [one.kind for one in answer.records if one.content]
        assert kinds[:4] == [STDERR, STDOUT, STDERR, STDOUT]
        assert kinds[-2:] == [STDERR, END_REQUEST]

        failed = raw.request("/fails")
        assert failed.status == "500 Internal Server Error"
        assert b"LookupError: this application fails" in failed.stderr
        assert failed.stderr_ended
        assert b"LookupError" not in failed.stdout

        assert [one.kind for one in raw.request().records] == [STDOUT, STDOUT, END_REQUEST]


@statement("22")
def test_no_stderr_without_errors(served: Fulgate) -> None:
    with Raw(served.socket) as raw:
        for path in ("/hello", "/fails", "/errors"):
            raw.request(path)
        assert {one.kind for one in raw.reader.order} == {STDOUT, END_REQUEST}


@statement("23")
@pytest.mark.parametrize("length", ["200000", "", "-1"])
def test_the_answer_may_end_before_stdin_has(served: Fulgate, length: str) -> None:
    with Raw(served.socket) as raw:
        raw.expect()
        raw.send(head(REQUEST_METHOD="POST", CONTENT_LENGTH=length), record(STDIN, 1, b"abc"))
        answer = raw.answer()
        assert answer.body == b"Hello, world!\n"
        assert answer.protocol_status == REQUEST_COMPLETE


@statement("23")
def test_the_answer_may_start_before_stdin_has_ended(served: Fulgate) -> None:
    with Raw(served.socket) as raw:
        raw.expect()
        raw.send(head("/echo", **post(200_000)), record(STDIN, 1, b"a" * 8192))  # it reads so much
        raw.until(1, b"a" * 8192)
        raw.send(record(STDIN, 1, b"b" * 8192))
        raw.until(1, b"b" * 8192)
        raw.send(record(STDIN, 1))
        assert raw.answer().body == b"a" * 8192 + b"b" * 8192


@statement("23")
def test_the_answer_does_not_start_before_params_have_ended(
    served: Fulgate, tmp_path: Path
) -> None:
    began, report = tmp_path / "began", tmp_path / "report"
    with Raw(served.socket) as raw:
        raw.expect()
        block = pairs(environ("/reader", query(began=began, report=report)))
        raw.send(begin(), record(PARAMS, 1, block))
        assert raw.values(b"FCGI_MPXS_CONNS")  # all before it was read
        still_serves(served)  # and its only thread was free afterwards
        assert not began.exists()
        assert not raw.reader.answers[1].records
        raw.send(record(PARAMS, 1), record(STDIN, 1))
        assert raw.answer().body == b"whole\n"


@statement("24")
def test_output_is_cgi(served: Fulgate) -> None:
    with Raw(served.socket) as raw:
        for path, status in [
            ("/hello", b"Status: 200 OK"),
            ("/headers", b"Status: 302 Found"),
            ("/fails", b"Status: 500 Internal Server Error"),
        ]:
            answer = raw.request(path)
            assert answer.head[0] == status
            assert b"HTTP/1" not in answer.stdout
            for line in answer.head:
                assert re.fullmatch(rb"[A-Za-z-]+: [ -~]+", line)
            names = [line.partition(b":")[0].lower() for line in answer.head]
            assert names.count(b"status") == 1
            assert not {b"connection", b"transfer-encoding", b"date", b"server"} & set(names)
        answer = raw.request("/headers")
        assert b"Location: /elsewhere?a=1" in answer.head
        assert answer.head.count(b"Set-Cookie: a=1") == 1
        assert answer.head.count(b"Set-Cookie: b=2") == 1


@statement("26")
@pytest.mark.parametrize("length", [11, 100_000])
def test_a_body_that_is_too_short_can_be_told(served: Fulgate, length: int) -> None:
    with Raw(served.socket) as raw:
        raw.expect()
        raw.send(head("/digest", **post(length)), stream(STDIN, 1, b"0123456789"))
        facts = json.loads(raw.answer().body)
    assert facts["length"] == 10
    assert facts["content_length"] == str(length)


# 29, 30: signals and errors


@statement("29")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0(running: Running, signum: int) -> None:
    """Idle connections are not waited for: the server would have 30 seconds, `stop` has 20."""
    server = running(Fulgate, APP)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(Raw(server.socket)) for _ in range(100)]
        for raw in idle:
            assert raw.request().body == b"Hello, world!\n"
        lingering = stack.enter_context(Raw(server.socket))
        lingering.expect()
        lingering.send(head(keep=False, **post(200_000)), record(STDIN, 1, b"abc"))
        lingering.answer()
        assert server.stop(signum) == 0
        assert all(raw.closed() for raw in idle)
    assert not server.socket.exists()


@statement("29")
def test_a_signal_lets_running_requests_end(running: Running, tmp_path: Path) -> None:
    go = tmp_path / "go"
    server = running(Fulgate, APP)
    process = server.process
    assert process is not None
    with Raw(server.socket) as raw, Raw(server.socket) as idle:
        idle.request()
        raw.expect()
        raw.send(head("/stream", query(go=go)), record(STDIN, 1))
        raw.until(1, b"first\n")
        process.send_signal(signal.SIGTERM)
        assert idle.closed()
        assert process.poll() is None
        go.touch()
        assert raw.answer().body == b"first\nsecond\n"
        assert raw.closed()
    assert process.wait(PATIENCE) == 0


@statement("29")
def test_a_signal_lets_a_request_arrive_that_has_begun_to(running: Running) -> None:
    server = running(Fulgate, APP)
    process = server.process
    assert process is not None
    data = head() + record(STDIN, 1)
    with Raw(server.socket) as raw, Raw(server.socket) as idle:
        idle.request()
        raw.expect()
        raw.send(data[:100])
        still_serves(server)
        process.send_signal(signal.SIGTERM)
        assert idle.closed()
        raw.send(data[100:])
        assert raw.answer().body == b"Hello, world!\n"
        assert raw.closed()
    assert process.wait(PATIENCE) == 0


BROKEN = {
    "R1: no content": record(BEGIN_REQUEST, 1),
    "R1: too short": record(BEGIN_REQUEST, 1, b"\0\1\1\0\0\0\0"),
    "R1: too long": record(BEGIN_REQUEST, 1, b"\0\1\1\0\0\0\0\0\0"),
    "R2: version 0": record(STDIN, 1, version=0),
    "R2: version 2": record(BEGIN_REQUEST, 1, b"\0\1\1\0\0\0\0\0", version=2),
    "R2: version 255": record(GET_VALUES, 0, version=255),
    "R2: HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "R2: within a request": head() + record(STDIN, 1, version=2),
    "R3: no value": begin() + stream(PARAMS, 1, pairs(environ()) + b"\4\0NAM"),
    "R3: a value cut short": begin() + stream(PARAMS, 1, pairs(environ()) + b"\1\5Nabc"),
    "R3: one length": begin() + stream(PARAMS, 1, pairs(environ()) + b"\4"),
    "R3: a long length cut short": begin() + stream(PARAMS, 1, pairs(environ()) + b"\4\x80\0\0"),
    "R3: a length of 2 GiB": begin() + stream(PARAMS, 1, b"\xff\xff\xff\xff\1ab"),
    "R3: in GET_VALUES": record(GET_VALUES, 0, b"\5\0FCG"),
    "R4: before PARAMS": begin() + begin(),
    "R4: another role": begin() + begin(role=2),
    "R4: while STDIN comes": head(**post(10)) + record(STDIN, 1, b"abc") + begin(),
    "PARAMS after their end": head() + record(PARAMS, 1, pair(b"A", b"b")),
    "STDIN before PARAMS": begin() + record(STDIN, 1, b"abc"),
    "STDIN after its end": head(**post(200_000)) + record(STDIN, 1) + record(STDIN, 1),
}


def of(number: str) -> list[str]:
    return [name for name in BROKEN if name.startswith(f"{number}:")]


@pytest.fixture(scope="module")
def logging() -> Iterator[Fulgate]:
    """A server that has nothing to log but what is wrong."""
    with tempfile.TemporaryDirectory(prefix="fulgate-", dir="/tmp") as folder:
        options = ("--threads", "1", "--body-wait", "60")
        with Fulgate(Path(folder), APP, *options) as server:
            yield server


def one_line_and_closed(server: Fulgate, data: bytes) -> None:
    before = server.log()
    with Raw(server.socket) as raw:
        raw.send(data)
        assert raw.closed()  # nothing is shown to the client
    new = server.log().removeprefix(before).splitlines()
    assert len(new) == 1, new
    assert "closed a connection" in new[0]
    still_serves(server)
    assert server.log() == before + new[0] + "\n"


@statement("30")
@pytest.mark.parametrize("name", [name for name in BROKEN if name[0] != "R"])
def test_protocol_errors_are_logged_and_not_shown(logging: Fulgate, name: str) -> None:
    one_line_and_closed(logging, BROKEN[name])


@statement("R1")
@statement("30")
@pytest.mark.parametrize("name", of("R1"))
def test_begin_request_of_a_wrong_length(logging: Fulgate, name: str) -> None:
    one_line_and_closed(logging, BROKEN[name])


@statement("R2")
@statement("30")
@pytest.mark.parametrize("name", of("R2"))
def test_version_other_than_1(logging: Fulgate, name: str) -> None:
    one_line_and_closed(logging, BROKEN[name])


@statement("R3")
@statement("30")
@pytest.mark.parametrize("name", of("R3"))
def test_malformed_pair(logging: Fulgate, name: str) -> None:
    one_line_and_closed(logging, BROKEN[name])


@statement("R4")
@statement("30")
@pytest.mark.parametrize("name", of("R4"))
def test_begin_request_of_an_active_id(logging: Fulgate, name: str) -> None:
    one_line_and_closed(logging, BROKEN[name])


@statement("R4")
@statement("30")
def test_begin_request_of_an_id_whose_application_runs(logging: Fulgate, tmp_path: Path) -> None:
    go = tmp_path / "go"
    before = logging.log()
    with Raw(logging.socket) as raw:
        raw.expect()
        raw.send(head("/stream", query(go=go)), record(STDIN, 1))
        raw.until(1, b"first\n")
        raw.send(begin())
        assert raw.closed()
        assert raw.reader.answers[1].body == b"first\n"
        assert not go.exists()
        go.touch()
    still_serves(logging)
    assert len(logging.log().removeprefix(before).splitlines()) == 1


@statement("30")
def test_bytes_of_a_peer_cannot_forge_a_line(logging: Fulgate) -> None:
    before = logging.log()
    with Raw(logging.socket) as raw:
        raw.send(begin(role=1), stream(PARAMS, 1, b"\x7f\x7f\nERROR %s %d forged\n"))
        assert raw.closed()
    assert len(logging.log().removeprefix(before).splitlines()) == 1
    assert "forged" not in logging.log()


# R5, R6: limits and deadlines


@pytest.fixture(scope="module")
def narrow() -> Iterator[Fulgate]:
    with tempfile.TemporaryDirectory(prefix="fulgate-", dir="/tmp") as folder:
        options = [
            ("--threads", "1"),
            ("--limit-params-size", "2000"),
            ("--limit-params", "20"),
            ("--limit-request-body", "1000"),
        ]
        with Fulgate(Path(folder), APP, *[word for pair in options for word in pair]) as server:
            yield server


@statement("R5")
@pytest.mark.parametrize(
    "params",
    [
        {"LONG": "v" * 2000},
        {"N" * 2000: "long"},
        {"LONG": "v" * 20_000},
        {f"X{n}": "" for n in range(13)},
    ],
    ids=["long value", "long name", "ten times too long", "too many"],
)
def test_params_beyond_a_limit(narrow: Fulgate, params: dict[str, str]) -> None:
    with Raw(narrow.socket) as raw:
        answer = raw.request(**params)
        assert answer.status == "431 Request Header Fields Too Large"
        assert answer.stdout_ended
        assert raw.closed()
    still_serves(narrow)


@statement("R5")
def test_params_within_the_limits(narrow: Fulgate) -> None:
    with Raw(narrow.socket) as raw:
        room = 2000 - len(pairs(environ("/"))) - len(pairs([("LONG", "v" * 200)])) + 200
        assert raw.request("/", LONG="v" * room).status == "200 OK"
        some = {f"X{n}": "" for n in range(12)}
        assert raw.request("/", **some).status == "200 OK"


@statement("R5")
def test_params_without_an_end(narrow: Fulgate) -> None:
    """They are read a while, to be answered, but not for ever."""
    with Raw(narrow.socket) as raw:
        raw.expect()
        raw.send(begin())
        with contextlib.suppress(ConnectionError):
            for _ in range(2000):
                raw.send(record(PARAMS, 1, pair(b"A", b"b" * 996)))
        assert raw.closed()
    still_serves(narrow)


@statement("R5")
@pytest.mark.parametrize("path", ["/digest", "/hello"])
@pytest.mark.parametrize("length", ["1001", "100000000000", "9" * 30])
def test_content_length_beyond_the_limit(narrow: Fulgate, path: str, length: str) -> None:
    with Raw(narrow.socket) as raw:
        raw.expect()
        raw.send(head(path, REQUEST_METHOD="POST", CONTENT_LENGTH=length))
        assert raw.answer().status == "413 Content Too Large"  # before any of it came
        assert raw.closed()
    still_serves(narrow)


@statement("R5")
@pytest.mark.parametrize("length", ["", "-1", "10"])
@pytest.mark.parametrize("cut", [100, 65535])
def test_body_beyond_the_limit(narrow: Fulgate, length: str, cut: int) -> None:
    """Whatever was said, what comes is counted; and who sends more still gets the answer."""
    with Raw(narrow.socket) as raw:
        raw.expect()
        raw.send(head("/digest", REQUEST_METHOD="POST", CONTENT_LENGTH=length))
        raw.send(stream(STDIN, 1, b"x" * 300_000, cut=cut))
        answer = raw.answer()
        assert answer.status == "413 Content Too Large"
        assert answer.stdout_ended
        assert raw.closed()
    still_serves(narrow)


@statement("R5")
def test_body_within_the_limit(narrow: Fulgate) -> None:
    with Raw(narrow.socket) as raw:
        for length in ("1000", "", "-1"):
            answer = raw.request("/digest", body=b"x" * 1000, CONTENT_LENGTH=length)
            assert json.loads(answer.body)["length"] == 1000


def dribble(dribblers: list[Raw], piece: bytes) -> None:
    """Send `piece` on each connection every tenth of a second, until all of them are closed."""
    deadline = time.monotonic() + PATIENCE
    left = list(dribblers)
    while left:
        assert time.monotonic() < deadline, f"{len(left)} connections are still open"
        for raw in list(left):
            try:
                raw.send(piece)
                raw.socket.settimeout(0.001)
                with contextlib.suppress(TimeoutError):
                    if not raw.socket.recv(65536):
                        left.remove(raw)
            except ConnectionError:
                left.remove(raw)
        time.sleep(0.1)


@pytest.mark.slow
@statement("R6")
@pytest.mark.parametrize("poller", ["auto", "poll"])
def test_dribbled_params_cost_no_thread(running: Running, poller: str) -> None:
    options = ("--threads", "1", "--arrival-timeout", "1", "--poller", poller)
    server = running(Fulgate, APP, *options)
    with contextlib.ExitStack() as stack:
        dribblers = [stack.enter_context(Raw(server.socket)) for _ in range(40)]
        for n, raw in enumerate(dribblers):
            # Some send whole records, some do not get as far as the first one's end.
            raw.send(begin() if n % 2 else record(BEGIN_REQUEST, 1, bytes(8), 255)[:100])
        still_serves(server)
        for n, raw in enumerate(dribblers):
            if n % 2:
                raw.send(record(PARAMS, 1, b"\xff"))
        still_serves(server)
        dribble(dribblers[1::2], record(PARAMS, 1, b"x"))
        dribble(dribblers[::2], b"x")
        still_serves(server)
    eventually(lambda: sockets(server) == 1, "only the listening socket is left")


@pytest.mark.slow
@statement("R6")
def test_who_says_nothing_is_closed(running: Running) -> None:
    server = running(Fulgate, APP, "--arrival-timeout", "1", "--keep-alive", "1")
    with Raw(server.socket) as silent, Raw(server.socket) as idle:
        idle.request()
        assert silent.closed()
        assert idle.closed()


@statement("R6")
def test_a_dribbled_body_costs_no_thread_for_a_time(running: Running) -> None:
    server = running(Fulgate, APP, "--threads", "1", "--body-wait", "60")
    with contextlib.ExitStack() as stack:
        dribblers = [stack.enter_context(Raw(server.socket)) for _ in range(20)]
        for raw in dribblers:
            raw.expect()
            raw.send(head("/digest", **post(10)), record(STDIN, 1, b"abc"))
        still_serves(server)
        for raw in dribblers:
            raw.send(record(STDIN, 1, b"def"))
        still_serves(server)
        for raw in dribblers:
            raw.send(record(STDIN, 1, b"ghij"), record(STDIN, 1))
            assert json.loads(raw.answer().body)["length"] == 10


@pytest.mark.slow
@statement("R6")
def test_a_body_that_stops_is_closed_at_its_deadline(running: Running) -> None:
    options = ("--threads", "1", "--body-wait", "0.1", "--body-timeout", "1")
    server = running(Fulgate, APP, *options)
    with Raw(server.socket) as small, Raw(server.socket) as large:
        for raw, length in ((small, 10), (large, 200_000)):
            raw.expect()
            raw.send(head("/digest", **post(length)), record(STDIN, 1, b"abc"))
        assert small.closed()
        assert large.closed()
    still_serves(server)


# What flup 1.0.3 did, as far as no statement above says it


@pytest.mark.slow
def test_the_linger_after_an_answer_ends(running: Running) -> None:
    """A peer that has its answer and neither sends nor closes is closed, and holds no thread."""
    server = running(Fulgate, APP, "--threads", "1")
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            raw = stack.enter_context(Raw(server.socket))
            raw.expect()
            raw.send(head(keep=False, **post(200_000)), record(STDIN, 1, b"abc"))
            raw.answer()
        still_serves(server)
        eventually(lambda: sockets(server) == 1, "only the listening socket is left")


def test_running_out_of_descriptors_does_not_end_the_server(running: Running) -> None:
    server = running(Fulgate, APP, "--threads", "1")
    still_serves(server)
    used = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (used + 10, used + 10))
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(Raw(server.socket)) for _ in range(30)]
        for raw in crowd:
            raw.expect()
            raw.send(head(), record(STDIN, 1))
        for raw in crowd:  # those that were let in make room for the others
            assert raw.answer().body == b"Hello, world!\n"
            raw.socket.close()
    still_serves(server)
    complaints = [line for line in server.log().splitlines() if "cannot accept" in line]
    assert 1 <= len(complaints) <= 3


def test_more_than_1024_descriptors(running: Running) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= 3000, "this machine allows too few descriptors for the test"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3000), hard))
    try:
        server = running(Fulgate, APP, "--threads", "1")
        with contextlib.ExitStack() as stack:
            for _ in range(1100):
                raw = stack.enter_context(Raw(server.socket))
                raw.send(begin())
            last = stack.enter_context(Raw(server.socket))
            assert last.request("/sized", "size=1000000").body[-1:] == b"\x3f"
            assert sockets(server) > 1100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("threads", [1, 5])
def test_threads_are_as_many_as_were_asked_for(running: Running, threads: int) -> None:
    """Beside them there are the main thread and the one that keeps deadlines."""
    server = running(Fulgate, APP, "--threads", str(threads))
    expected = str(threads + 2)
    eventually(lambda: server.status("Threads") == expected, f"{expected} threads")
    still_serves(server)
    assert server.status("Threads") == expected


def test_exceptions_do_not_vanish(running: Running) -> None:
    server = running(Fulgate, APP, "--threads", "1")
    with Raw(server.socket) as raw:
        assert raw.request("/fails").status == "500 Internal Server Error"
        assert raw.request().body == b"Hello, world!\n"
    assert "GET /fails HTTP/1.1" in server.log()
    assert "LookupError: this application fails before it answers" in server.log()


def test_peers_that_close_within_a_body_leak_nothing(running: Running, tmp_path: Path) -> None:
    server = running(Fulgate, APP, "--threads", "2")
    for n in range(10):
        began, report = tmp_path / f"began{n}", tmp_path / f"report{n}"
        with Raw(server.socket) as raw:
            raw.expect()
            raw.send(head("/reader", query(began=began, report=report), **post(200_000)))
            raw.send(record(STDIN, 1, b"abc"))
            wait_for(began)
        assert written(report) == "Aborted"
    still_serves(server)
    assert server.status("Threads") == "4"
    eventually(lambda: sockets(server) == 1, "only the listening socket is left")


def test_a_file_in_the_way_is_left_alone(folder: Path) -> None:
    path = folder / "precious"
    path.write_text("data")
    server = Fulgate(folder, APP)
    server.socket = path
    with pytest.raises(RuntimeError, match="not a socket; it was left alone"):
        server.start()
    assert path.read_text() == "data"


def test_a_full_server_answers_503(running: Running, tmp_path: Path) -> None:
    go = tmp_path / "go"
    server = running(Fulgate, APP, "--threads", "1", "--queue", "0")
    with Raw(server.socket) as busy, Raw(server.socket) as raw:
        busy.expect()
        busy.send(head("/stream", query(go=go)), record(STDIN, 1))
        busy.until(1, b"first\n")
        answer = raw.request()
        assert answer.status == "503 Service Unavailable"
        assert any(line.startswith(b"Retry-After: ") for line in answer.head)
        assert answer.stdout_ended
        go.touch()
        assert busy.answer().body == b"first\nsecond\n"
        assert raw.request().body == b"Hello, world!\n"


# The list itself


def test_every_statement_is_tested_here() -> None:
    tested = {
        mark.args[0]
        for thing in globals().values()
        for mark in getattr(thing, "pytestmark", [])
        if mark.name == "statement"
    }
    assert tested == STATEMENTS - NOT_YET


def test_every_marker_names_a_statement(request: pytest.FixtureRequest) -> None:
    for item in request.session.items:
        for mark in item.iter_markers("statement"):
            assert len(mark.args) == 1, item.nodeid
            assert mark.args[0] in STATEMENTS, item.nodeid
