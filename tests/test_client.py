"""The head of a CGI answer, CGI variables made from HTTP, and the blocking client."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgate.client.connection import Connection, call
from fulgate.client.head import HeadReader, parse_head
from fulgate.client.params import BadRequest, header_params, locate
from fulgate.errors import ConfigError, ProtocolError
from fulgate.exchange import Limits, Role
from fulgate.protocols.fastcgi import (
    FastCGI,
)
from fulgate.protocols.fastcgi_records import (
    CANT_MPX_CONN,
    END_REQUEST,
    STDERR,
    record,
)
from tests.responder import Peer, Responder, responder, serve_params

# the head of an answer


@pytest.mark.parametrize(
    ("text", "status", "reason"),
    [
        ("Content-Type: text/plain", 200, "OK"),
        ("Status: 404 Not Found", 404, "Not Found"),
        ("Status: 404", 404, ""),
        ("status:  418   I'm a teapot ", 418, "I'm a teapot"),
        ("Location: http://example.org/", 302, "Found"),
        ("Location: /local", 302, "Found"),
        ("Location: /created\r\nStatus: 201 Created", 201, "Created"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_status_of_a_head(text: str, status: int, reason: str, newline: str) -> None:
    data = (text.replace("\r\n", newline) + newline * 2).encode() + b"body\n\n"
    found = HeadReader().feed(data)
    assert found is not None
    assert (found[0].status, found[0].reason) == (status, reason)
    assert found[1] == b"body\n\n"


def test_headers_keep_order_and_spelling() -> None:
    head = parse_head(b"Set-Cookie: a=1\r\nX-A:\tb c \r\nSet-Cookie: b=\xfc\r\nStatus: 200 OK\r\n")
    assert head.headers == [(b"Set-Cookie", b"a=1"), (b"X-A", b"b c"), (b"Set-Cookie", b"b=\xfc")]
    assert head.get("x-a") == "b c"
    assert head.get("status", "gone") == "gone"


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"no header",
        b"HTTP/1.1 200 OK\r\nX: y",
        b": empty name",
        b"X Y: space in the name",
        b"X : space before the colon",
        b"X: y\r\n folded",
        b"X: bare\rCR",
        b"X: NUL\0",
        b"Status: 99 Low",
        b"Status: 600 High",
        b"Status: abc",
        b"Status: 200OK",
        b"Status:",
        b"Status: 200 OK\r\nStatus: 200 OK",
        b"Location: /a\r\nlocation: /b",
        b"Content-Length: 5\r\nContent-Length: 5",
        b"Content-Length: -1",
        b"Content-Length: \xb2",
    ],
)
def test_a_broken_head_is_a_protocol_error(head: bytes) -> None:
    with pytest.raises(ProtocolError):
        HeadReader().feed(head + b"\r\n\r\n")


def test_a_head_has_a_limit() -> None:
    for data in (b"X: " + b"y" * 1000, b"X: y\r\n" * 200, b"X: " + b"y" * 1000 + b"\r\n\r\n"):
        with pytest.raises(ProtocolError, match="longer than 900"):
            HeadReader(900).feed(data)
    assert HeadReader(900).feed(b"X: " + b"y" * 800 + b"\r\n\r\n" + b"z" * 1000) is not None


@settings(deadline=None)
@given(st.lists(st.sampled_from([b"A: b", b"Status: 200 OK", b"\r", b"\n", b"\r\n", b"x", b":"])))
def test_a_head_does_not_depend_on_cuts(parts: list[bytes]) -> None:
    data = b"".join(parts)

    def run(pieces: list[bytes]) -> object:
        reader = HeadReader(40)
        for at, piece in enumerate(pieces):
            try:
                found = reader.feed(piece)
            except ProtocolError:
                return "error"
            if found is not None:
                return found[0], found[1] + b"".join(pieces[at + 1 :])
        return None

    assert run([data]) == run([data[n : n + 1] for n in range(len(data))])


# CGI variables


def test_headers_become_variables() -> None:
    assert header_params(
        [
            (b"Host", b"example.org"),
            (b"content-type", b"text/plain"),
            (b"Content-Length", b"12"),
            (b"X-Name", b"\xfc"),
        ]
    ) == {
        "HTTP_HOST": "example.org",
        "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "12",
        "HTTP_X_NAME": "\xfc",
    }


def test_repeated_headers_are_joined() -> None:
    assert header_params(
        [
            (b"accept", b"a/b"),
            (b"cookie", b"a=1"),
            (b"accept", b"c/d"),
            (b"cookie", b"b=2"),
            (b"host", b"same"),
            (b"host", b"same"),
        ]
    ) == {"HTTP_ACCEPT": "a/b, c/d", "HTTP_COOKIE": "a=1; b=2", "HTTP_HOST": "same"}


@pytest.mark.parametrize(
    "name", [b"host", b"authorization", b"content-type", b"content-length", b"range", b"origin"]
)
def test_a_singleton_with_two_values_is_refused(name: bytes) -> None:
    with pytest.raises(BadRequest):
        header_params([(name, b"1"), (name.upper(), b"2")])


@pytest.mark.parametrize(
    "name",
    [
        b"Proxy",
        b"X_Real_IP",
        b"Content_Length",
        b"x.forwarded",
        b"X\xfc",
        b"Connection",
        b"Keep-Alive",
        b"TE",
        b"Trailer",
        b"Transfer-Encoding",
        b"Upgrade",
        b"Proxy-Connection",
        b"Proxy-Authorization",
        b"Expect",
    ],
)
def test_headers_that_are_dropped(name: bytes) -> None:
    assert header_params([(b"a", b"b"), (name, b"close")]) == {"HTTP_A": "b"}


def test_connection_names_more_that_is_dropped_but_nothing_that_matters() -> None:
    headers = [
        (b"connection", b"close, X-Hop , Host, Cookie, X-Forwarded-For"),
        (b"x-hop", b"1"),
        (b"host", b"h"),
        (b"cookie", b"c"),
        (b"x-forwarded-for", b"f"),
    ]
    assert header_params(headers) == {
        "HTTP_HOST": "h",
        "HTTP_COOKIE": "c",
        "HTTP_X_FORWARDED_FOR": "f",
    }


def test_a_length_beside_chunks_is_no_length() -> None:
    headers = [(b"transfer-encoding", b"chunked"), (b"content-length", b"5")]
    assert header_params(headers) == {}
    with pytest.raises(BadRequest):
        header_params([(b"content-length", b"+5")])


@pytest.fixture
def tree(folder: Path) -> Path:
    root = folder / "root"
    (root / "sub.php").mkdir(parents=True)
    (root / "blog").mkdir()
    for name in ("index.php", "a.php", "A B.PHP", "blog/index.php", "secret.txt", "sub.php/x.php"):
        (root / name).write_text("<?php")
    (folder / "outside.php").write_text("<?php")
    (root / "out.php").symlink_to(folder / "outside.php")
    (root / "dangling.php").symlink_to(folder / "nowhere.php")
    (root / "alias.php").symlink_to("a.php")
    (root / "up").symlink_to(folder)
    (folder / "current").symlink_to(root)
    (folder / "root2").mkdir()
    (folder / "root2" / "x.php").write_text("<?php")
    return root


@pytest.mark.parametrize(
    ("path", "name", "info", "file"),
    [
        (b"/a.php", b"/a.php", b"", "a.php"),
        (b"/a.php/info/more.php", b"/a.php", b"/info/more.php", "a.php"),
        (b"/a.php/", b"/a.php", b"/", "a.php"),
        (b"/A B.PHP", b"/A B.PHP", b"", "A B.PHP"),
        (b"/alias.php", b"/alias.php", b"", "a.php"),
        (b"/", b"/index.php", b"", "index.php"),
        (b"/blog/", b"/blog/index.php", b"", "blog/index.php"),
        (b"/blog", b"/index.php", b"", "index.php"),
        (b"/pretty/url", b"/index.php", b"", "index.php"),
        (b"/secret.txt", b"/index.php", b"", "index.php"),
        (b"/a.phpx", b"/index.php", b"", "index.php"),
    ],
)
def test_a_path_chooses_a_script(
    tree: Path, path: bytes, name: bytes, info: bytes, file: str
) -> None:
    for root in (str(tree), str(tree.parent / "current"), str(tree) + "/"):
        script = locate(root, path, "index.php", [".php"])
        assert script is not None
        assert (script.name, script.path_info) == (name, info)
        assert script.filename == os.fsencode(tree / file)
        assert script.root == os.fsencode(tree)


@pytest.mark.parametrize(
    "path",
    [
        b"/none.php",
        b"/secret.txt/x.php",
        b"/sub.php",
        b"/../outside.php",
        b"/blog/../../outside.php",
        b"/blog/../a.php",
        b"/./a.php",
        b"/a.php/..",
        b"/a.php\0.txt",
        b"/out.php",
        b"/dangling.php",
        b"/up/outside.php",
        b"/up/root2/x.php",
        b"/up/root/a.php/../../outside.php",
        b"a.php",
        b"",
        b"*",
        b"/" + b"a" * 5000 + b".php",
    ],
)
def test_no_path_leaves_the_root(tree: Path, path: bytes) -> None:
    script = locate(str(tree), path, "index.php", [".php"])
    # A link that comes back in is no way out.
    assert script is None


@settings(deadline=None)
@given(st.lists(st.sampled_from(["..", ".", "/", "up", "blog", "a.php", "out.php", "root2", "\0"])))
def test_whatever_the_path_the_file_is_inside(parts: list[str]) -> None:
    # The tree of this module's checkout will do: it has what a path could leave to.
    root = Path(__file__).parent
    script = locate(str(root), ("/" + "/".join(parts)).encode(), "conftest.py", [".py", ".php"])
    if script is not None:
        assert Path(os.fsdecode(script.filename)).is_relative_to(root.resolve())


# the blocking client

PARAMS = {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": "/x"}


@pytest.fixture
def facts(folder: Path) -> Iterator[Responder]:
    with responder(folder / "s", serve_params) as one:
        yield one


def test_call_makes_one_request(facts: Responder) -> None:
    answer = call(facts.endpoint, PARAMS, b"body")
    assert answer.status == 200
    assert answer.header("content-type") == "application/json"
    assert json.loads(answer.body) == {**PARAMS, "body": "body", "connection": 1}
    assert (answer.app_status, answer.protocol_status, answer.stderr) == (0, 0, b"")


def test_a_connection_is_used_again(facts: Responder) -> None:
    with Connection(facts.endpoint) as connection:
        for n in range(3):
            found = json.loads(connection.call(PARAMS.items(), [b"a", b"b" * n]).body)
            assert found["body"] == "a" + "b" * n
            assert found["connection"] == 1
        assert connection.get_values() == {}


def test_a_large_body_while_a_large_answer_comes(folder: Path) -> None:
    body = random.Random(1).randbytes(3_000_000)

    def echo(peer: Peer) -> None:
        # Writes before it reads: whoever only writes meanwhile waits for ever.
        exchange = peer.request(whole=False)
        assert exchange is not None
        exchange.start("200 OK", [("X", "y")])
        digest = hashlib.sha256()
        while not exchange.stdin_ended:
            piece = exchange.take()
            digest.update(piece)
            peer.send(exchange.send(piece * 2))
            assert peer.receive()
        digest.update(piece := exchange.take())
        peer.send(exchange.finish(piece * 2))
        assert digest.digest() == hashlib.sha256(body).digest()

    with responder(folder / "s", echo) as one:
        assert len(call(one.endpoint, PARAMS, body).body) == 2 * len(body)


def test_stderr_is_kept_apart(folder: Path) -> None:
    def behave(peer: Peer) -> None:
        exchange = peer.request()
        assert exchange is not None
        peer.send(record(STDERR, 1, b"warning"))
        peer.answer(exchange, X="y")

    with responder(folder / "s", behave) as one:
        assert call(one.endpoint, PARAMS).stderr == b"warning"


def test_a_filter_gets_its_data(folder: Path) -> None:
    def behave(peer: Peer) -> None:
        peer.protocol = FastCGI(Limits(), {}, frozenset(Role))
        exchange = peer.request()
        assert exchange is not None
        peer.answer(exchange, exchange.take() + b" " + b"".join(exchange.data), X="y")

    with responder(folder / "s", behave) as one:
        with Connection(one.endpoint) as connection:
            answer = connection.call(PARAMS, b"body", role=Role.FILTER, data=b"file")
            assert answer.body == b"body file"


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"", "closed before the answer had ended"),
        (record(6, 1, b"X: y\r\n\r\nhalf"), "closed before the answer had ended"),
        (record(END_REQUEST, 1, bytes((0, 0, 0, 0, CANT_MPX_CONN, 0, 0, 0))), "status 1"),
        (record(6, 1, b"X: y") + record(END_REQUEST, 1, bytes(8)), "inside its head"),
        (b"garbage!", "not FastCGI"),
    ],
)
def test_what_is_no_answer_is_a_protocol_error(folder: Path, sent: bytes, message: str) -> None:
    def behave(peer: Peer) -> None:
        peer.request()
        peer.send(sent)

    with responder(folder / "s", behave) as one:
        with pytest.raises(ProtocolError, match=message):
            call(one.endpoint, PARAMS)


def test_silence_is_a_timeout(folder: Path) -> None:
    def behave(peer: Peer) -> None:
        while peer.receive():
            pass

    with responder(folder / "s", behave) as one:
        with pytest.raises(TimeoutError):
            call(one.endpoint, PARAMS, timeout=0.1)


def test_an_answer_that_came_before_the_body_was_read_is_seen(folder: Path) -> None:
    def behave(peer: Peer) -> None:
        exchange = peer.request(whole=False)
        assert exchange is not None
        peer.answer(exchange, b"too large", "413 Content Too Large")

    with responder(folder / "s", behave) as one:
        answer = call(one.endpoint, PARAMS, bytes(10_000_000))
        assert (answer.status, answer.body) == (413, b"too large")


def test_nobody_listens(folder: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        call(f"unix:{folder}/none", PARAMS)
    for endpoint in ("fd:0", "systemd", "nonsense"):
        with pytest.raises(ConfigError):
            Connection(endpoint)


def test_a_connected_socket_will_do() -> None:
    ours, theirs = socket.socketpair()
    with theirs, Connection(ours) as connection:
        connection.begin(PARAMS)
        assert theirs.recv(65536).startswith(b"\x01\x01")
    assert ours.fileno() == -1
