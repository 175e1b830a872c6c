"""`fulgate get`: what it sends, prints and exits with, towards real servers and broken ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fulgate.client.records import Describer, Record, RecordReader
from fulgate.exchange import Limits, Role
from fulgate.protocols.fastcgi import FastCGI
from fulgate.protocols.fastcgi_records import END_REQUEST, STDERR, STDOUT, record
from tests.command import environment, here, refused_here
from tests.echo import PEERS
from tests.echo import Peer as Server
from tests.echo import peer as run_peer
from tests.responder import Peer, responder, serve_params
from tests.servers import Running

END = record(END_REQUEST, 1, bytes(8))


@pytest.fixture(params=PEERS)
def server(request: pytest.FixtureRequest, folder: Path, running: Running) -> Iterator[Server]:
    with run_peer(request.param, folder, running) as one:
        yield one


def get(endpoint: str, *arguments: str, cwd: Path) -> tuple[int, str, str]:
    """Give exit status, output and errors."""
    done = here("get", endpoint, *arguments, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


def test_servers_answer_as_curl_would_show_it(server: Server, folder: Path) -> None:
    script = ["--script-filename", server.script_filename] if server.script_filename else []

    def ask(*arguments: str) -> tuple[int, str, str]:
        return get(server.endpoint, *arguments, *script, cwd=folder)

    assert ask("/", "-d", "one", "-d", "two=2") == (0, "one&two=2", "")
    status, out, errors = ask("/x", "-i", "-X", "PUT", "-H", "X-Given: yes", "--data-binary", "b")
    assert (status, errors) == (0, "")
    assert out.startswith("Status: 200")
    assert "X-Method: PUT\n" in out
    assert "X-Given: yes\n" in out
    assert out.endswith("\n\nb")
    assert ask("/missing")[0] == 0
    status, out, errors = ask("/missing", "--fail", "-d", "shown?")
    assert (status, out) == (22, "")
    assert errors == "fulgate: error: the answer's status is 404\n"
    if server.name != "go":
        assert "stderr: " in ask("/stderr")[2]
        assert "a complaint" in ask("/stderr")[2]
    (folder / "body").write_bytes(b"line\r\nline\0")
    assert ask("/", "-d", "@body")[1] == "lineline"
    assert ask("/", "--data-binary", "@body", "-o", "file") == (0, "", "")
    assert (folder / "file").read_bytes() == b"line\r\nline\0"


def test_the_head_alone(folder: Path) -> None:
    with responder(folder / "s", serve_params) as one:
        status, out, _ = get(one.endpoint, "-I", cwd=folder)
    assert (status, out.startswith("Status: 200 OK\nContent-Type:")) == (0, True)


def test_variables_are_what_the_options_say(folder: Path) -> None:
    with responder(folder / "s", serve_params) as one:
        status, out, _ = get(
            one.endpoint, "/p%20q/ü?a=b", "-H", "Host: example.org", "-H", "Accept:", "-H",
            "Cookie: a", "-H", "Cookie: b", "--param", "HTTPS=on", "--param", "REMOTE_ADDR=",
            cwd=folder,
        )  # fmt: skip
    assert status == 0
    for text in (
        '"REQUEST_METHOD": "GET"',
        '"REQUEST_URI": "/p%20q/%C3%BC?a=b"',
        '"PATH_INFO": "/p q/\\u00c3\\u00bc"',
        '"QUERY_STRING": "a=b"',
        '"HTTP_HOST": "example.org"',
        '"HTTP_COOKIE": "a; b"',
        '"HTTPS": "on"',
        '"REMOTE_ADDR": ""',
    ):
        assert text in out
    assert "HTTP_ACCEPT" not in out


def test_the_records_are_shown(folder: Path) -> None:
    def behave(peer: Peer) -> None:
        peer.request()
        peer.send(record(STDERR, 1, b"\x1b[31moh\n"), record(STDOUT, 1, b"X: y\r\n\r\nbody", 3))
        peer.send(END)

    with responder(folder / "s", behave) as one:
        status, out, errors = get(one.endpoint, "/a", "-v", "-d", "xyz", cwd=folder)
    assert (status, out) == (0, "body")
    lines = errors.splitlines()
    assert lines[:2] == [f"* connected to {one.endpoint}", "> BEGIN_REQUEST 1: RESPONDER"]
    assert ">   PATH_INFO=/a" in lines
    assert lines[-7:] == [
        "> STDIN 1: 3 bytes",
        "> STDIN 1: end",
        "< STDERR 1: 8 bytes",
        "<   \\x1b[31moh",
        "< STDOUT 1: 12 bytes, padding 3",
        "<   X: y",
        "< END_REQUEST 1: REQUEST_COMPLETE, appStatus 0",
    ]


def test_roles(folder: Path) -> None:
    def behave(peer: Peer) -> None:
        peer.protocol = FastCGI(Limits(), {}, frozenset(Role))
        exchange = peer.request()
        assert exchange is not None
        said = [exchange.role.name.encode(), exchange.take(), b"".join(exchange.data)]
        length = exchange.params.get("FCGI_DATA_LENGTH", "").encode()
        peer.answer(exchange, b" ".join([*said, length]), X="y")

    with responder(folder / "s", behave) as one:
        assert get(one.endpoint, "--role", "authorizer", cwd=folder)[1] == "AUTHORIZER   "
        filtered = get(
            one.endpoint, "--role", "filter", "--filter-data", "file", "-d", "b", cwd=folder
        )
        assert filtered[1] == "FILTER b file 4"


@pytest.mark.parametrize(
    ("sent", "status", "message", "out"),
    [
        (b"", 52, "closed before", ""),
        (record(STDOUT, 1, b"X: y\r\n\r\nhalf"), 18, "closed before", "half"),
        (record(STDOUT, 1, b"Content-Length: 9\r\n\r\nhalf") + END, 18, "4 bytes", "half"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", 8, "not FastCGI", ""),
        (record(STDOUT, 1, b"no head\r\n\r\n") + END, 8, "no header", ""),
        (record(END_REQUEST, 1, bytes((0, 0, 0, 0, 2, 0, 0, 0))), 56, "OVERLOADED", ""),
    ],
)
def test_what_went_wrong_is_the_exit_status(
    folder: Path, sent: bytes, status: int, message: str, out: str
) -> None:
    def behave(peer: Peer) -> None:
        peer.request()
        peer.send(sent)

    with responder(folder / "s", behave) as one:
        got = get(one.endpoint, cwd=folder)
        assert (got[0], got[1]) == (status, out)
        assert message in got[2]
        assert get(one.endpoint, "-s", cwd=folder) == (status, out, "")


def test_no_connection_and_no_time(folder: Path) -> None:
    def mute(peer: Peer) -> None:
        while peer.receive():
            pass

    text = refused_here(7, "get", f"unix:{folder}/none", cwd=folder)
    assert text == f"cannot connect to unix:{folder}/none: No such file or directory"
    refused_here(6, "get", "tcp:host.invalid:9000", cwd=folder)
    with responder(folder / "s", mute) as one:
        assert "deadline" in refused_here(28, "get", one.endpoint, "-m", "0.2", cwd=folder)
    with responder(folder / "t", serve_params) as one:
        refused_here(23, "get", one.endpoint, "-o", "none/file", cwd=folder)
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "fulgate", "get", one.endpoint],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with process:
            assert process.stdout is not None
            process.stdout.close()
            assert process.stderr is not None
            assert "cannot be written: Broken pipe" in process.stderr.read()
        assert process.returncode == 23


@pytest.mark.parametrize(
    ("status", "arguments"),
    [
        (3, ["fd:0"]),
        (3, ["unix:s", "path"]),
        (3, ["http://localhost/"]),
        (2, ["unix:s", "--role", "x"]),
        (2, ["unix:s", "-I", "-d", "x"]),
        (2, ["unix:s", "-F", "a=b", "-d", "x"]),
        (2, ["unix:s", "-F", "a"]),
        (2, ["unix:s", "-F", "a=b;what=c"]),
        (2, ["unix:s", "-H", "no colon"]),
        (2, ["unix:s", "-b", "file"]),
        (2, ["unix:s", "--no-such-option"]),
        (26, ["unix:s", "-d", "@no"]),
        (26, ["unix:s", "-T", "no"]),
        (26, ["unix:s", "-F", "a=@no"]),
        (26, ["unix:s", "-H", "@no"]),
    ],
)
def test_misuse_is_told(status: int, arguments: list[str], folder: Path) -> None:
    refused_here(status, "get", *arguments, cwd=folder)


def test_records_of_all_kinds_have_words() -> None:
    data = b"".join(
        record(kind, id, content)
        for kind, id, content in (
            (1, 1, b"\0\3\1" + bytes(5)),
            (1, 2, b"\0\x09\0" + bytes(5)),
            (2, 1, b""),
            (4, 1, b"\1\1a"),
            (4, 1, b"b"),
            (4, 1, b""),
            (4, 2, b"\5"),
            (4, 2, b""),
            (3, 1, b"\0\0\1\0\7\0\0\0"),
            (9, 0, b"\1\0a"),
            (10, 0, b"\1\1ab"),
            (11, 0, b"\x63" + bytes(7)),
            (99, 5, b"xy"),
            (1, 1, b"short"),
        )
    )
    reader, describer = RecordReader(), Describer()
    records: list[Record] = []
    for at in range(0, len(data), 7):
        records += reader.feed(data[at : at + 7])
    assert reader.rest == b""
    assert [line for one in records for line in describer.lines(one)] == [
        "BEGIN_REQUEST 1: FILTER, KEEP_CONN",
        "BEGIN_REQUEST 2: role 9",
        "ABORT_REQUEST 1",
        "PARAMS 1: 3 bytes",
        "PARAMS 1: 1 bytes",
        "PARAMS 1: end",
        "  a=b",
        "PARAMS 2: 1 bytes",
        "PARAMS 2: end",
        "  (a name-value pair is cut short)",
        "END_REQUEST 1: 7, appStatus 256",
        "GET_VALUES",
        "  a=",
        "GET_VALUES_RESULT",
        "  a=b",
        "UNKNOWN_TYPE: 99",
        "type 99 5: 2 bytes",
        "BEGIN_REQUEST 1: 5 bytes",
    ]
