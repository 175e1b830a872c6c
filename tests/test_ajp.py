"""The application's side of AJP: what it reads, what it answers, and what it does not put up with.

tests/ajp_model.py is the web server's side.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgate.cgi import repair
from fulgate.errors import Aborted, LimitExceeded, ProtocolError
from fulgate.exchange import Buffer, Exchange, Limits
from fulgate.protocols.ajp import AJP
from fulgate.protocols.ajp_packets import Forward, decode_forward, encode_forward
from tests import ajp_model
from tests.ajp_model import (
    CPING,
    METHODS_IN_ORDER,
    Answer,
    Broken,
    WebServer,
    body,
    forward,
    packet,
    post,
    read_forward,
    string,
)

NO_LIMITS = Limits(params_size=0, params=0, body=0)


def begun(data: bytes, protocol: AJP | None = None) -> Exchange:
    """Feed what begins one request."""
    [exchange] = (protocol or AJP(NO_LIMITS)).feed(data)
    return exchange


def environ(data: bytes) -> dict[str, str]:
    exchange = begun(data)
    repair(exchange)
    assert exchange.refused is None
    return exchange.params


def answers(*buffers: Buffer, size: int = 8192) -> list[Answer]:
    server = WebServer(size)
    server.read(b"".join(buffers))
    assert not server.data, "the last packet is cut short"
    return server.answers


def owed(protocol: AJP) -> list[int]:
    """Take what the protocol has to say, and give how much body it asks for."""
    server = WebServer(65536)
    out, protocol.out = protocol.out, []
    server.read(b"".join(out))
    return server.answer.asked


# What is read


def test_request_becomes_an_environ() -> None:
    seen = environ(
        forward(
            "POST",
            "/a%20b/c",
            [("host", "example.org"), ("content-length", "0"), ("accept", "*/*"), ("X-Own", "1")],
            [("query_string", "q=%201&r"), ("remote_user", "ada"), ("auth_type", "Basic")],
            remote_host="client.example",
            server_port=8080,
        )
    )
    assert (
        seen.items()
        >= {
            "REQUEST_METHOD": "POST",
            "SCRIPT_NAME": "",
            "PATH_INFO": "/a b/c",
            "QUERY_STRING": "q=%201&r",
            "REQUEST_URI": "/a%20b/c?q=%201&r",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "SERVER_NAME": "example.org",
            "SERVER_PORT": "8080",
            "REMOTE_ADDR": "192.0.2.7",
            "REMOTE_HOST": "client.example",
            "REMOTE_USER": "ada",
            "AUTH_TYPE": "Basic",
            "CONTENT_LENGTH": "0",
            "HTTP_HOST": "example.org",
            "HTTP_ACCEPT": "*/*",
            "HTTP_X_OWN": "1",
            "wsgi.url_scheme": "http",
        }.items()
    )
    assert "HTTPS" not in seen


def test_tls_is_told_as_apache_tells_it_to_scripts() -> None:
    seen = environ(
        forward(
            attributes=[("ssl_cert", "PEM"), ("ssl_cipher", "AES"), ("ssl_session", "5e55")],
            named=[("AJP_SSL_PROTOCOL", "TLSv1.3")],
            ssl=True,
            key_size=256,
        )
    )
    assert (
        seen.items()
        >= {
            "HTTPS": "on",
            "REQUEST_SCHEME": "https",
            "wsgi.url_scheme": "https",
            "SSL_CLIENT_CERT": "PEM",
            "SSL_CIPHER": "AES",
            "SSL_SESSION_ID": "5e55",
            "SSL_PROTOCOL": "TLSv1.3",
            "SSL_CIPHER_USEKEYSIZE": "256",
        }.items()
    )


def test_attributes_of_ajp_alone_have_a_prefix_that_no_header_can_have() -> None:
    seen = environ(
        forward(
            headers=[("AJP_ROLE", "forged"), ("AJP-ROLE", "client"), ("Remote-User", "client")],
            attributes=[("context", "/c"), ("servlet_path", "/s"), ("route", "r1")],
            named=[
                ("AJP_REMOTE_PORT", "54321"),
                ("AJP_LOCAL_ADDR", "192.0.2.1"),
                ("ROLE", "admin"),
                ("HTTP_X_FORWARDED_FOR", "attribute"),
            ],
        )
    )
    assert (
        seen.items()
        >= {
            "REMOTE_PORT": "54321",
            "SERVER_ADDR": "192.0.2.1",
            "AJP_ROLE": "admin",
            "AJP_CONTEXT": "/c",
            "AJP_SERVLET_PATH": "/s",
            "AJP_JVM_ROUTE": "r1",
            "AJP_HTTP_X_FORWARDED_FOR": "attribute",
            "HTTP_AJP_ROLE": "client",
            "HTTP_REMOTE_USER": "client",
        }.items()
    )
    assert not seen.keys() & {"REMOTE_USER", "HTTP_X_FORWARDED_FOR"}


def test_headers_that_could_pass_for_others_are_left_out() -> None:
    seen = environ(
        forward(
            headers=[
                ("X_Forwarded_For", "forged"),
                ("Content_Length", "7"),
                ("Proxy", "http://attacker.example"),  # httpoxy
                ("X Y", "space"),
                ("", "no name"),
                ("Upgrade", "websocket"),
            ]
        )
    )
    assert not [name for name in seen if name.startswith("HTTP_")]
    assert "CONTENT_LENGTH" not in seen


def test_header_that_came_twice_is_handled_as_with_fastcgi() -> None:
    twice = [("X-User", "a"), ("x-user", "b"), ("accept", "a"), ("Accept", "b")]
    exchange = begun(forward(headers=twice))
    assert exchange.pairs()[-4:] == [
        ("HTTP_X_USER", "a"), ("HTTP_X_USER", "b"), ("HTTP_ACCEPT", "a"), ("HTTP_ACCEPT", "b"),
    ]  # fmt: skip
    repair(exchange)
    assert exchange.refused is not None
    assert exchange.refused.status == "400 Bad Request"
    assert exchange.params["HTTP_ACCEPT"] == "a, b"


@pytest.mark.parametrize("code", range(1, 28))
def test_each_coded_method(code: int) -> None:
    data = bytearray(forward("GET"))
    data[5] = code
    assert begun(bytes(data)).params["REQUEST_METHOD"] == METHODS_IN_ORDER[code - 1]


def test_method_that_is_stored() -> None:
    assert begun(forward("PATCH")).params["REQUEST_METHOD"] == "PATCH"


@pytest.mark.parametrize("name", list(ajp_model.HEADERS))
def test_each_coded_header(name: str) -> None:
    value = "5" if name == "content-length" else "value"
    coded, plain = (begun(forward(headers=[(name, value)], coded=c)) for c in (True, False))
    variable = name.upper().replace("-", "_")
    assert coded.pairs() == plain.pairs()
    assert coded.pairs()[-1] in [(variable, value), ("HTTP_" + variable, value)]


def test_strings_that_are_none() -> None:
    seen = environ(
        forward(
            protocol=None,
            remote_addr=None,
            server_name=None,
            attributes=[("remote_user", None), ("query_string", None)],
        )
    )
    assert not seen.keys() & {"REMOTE_ADDR", "REMOTE_HOST", "REMOTE_USER"}
    assert seen["QUERY_STRING"] == ""
    assert seen["SERVER_PROTOCOL"] == "HTTP/1.0"


def test_query_in_the_path_counts_where_there_is_no_other() -> None:
    seen = environ(forward(uri="/p?a=1"))
    assert (seen["PATH_INFO"], seen["QUERY_STRING"]) == ("/p", "a=1")
    assert seen["REQUEST_URI"] == "/p?a=1"


def test_ping_is_answered_between_requests_and_before_one() -> None:
    protocol = AJP(NO_LIMITS)
    [exchange] = protocol.feed(CPING + forward() + CPING)
    server = WebServer()
    server.read(b"".join(protocol.out))
    assert server.pongs == 2
    assert exchange.complete


# Bodies


def test_first_packet_of_a_body_with_a_length_comes_unasked() -> None:
    protocol = AJP(NO_LIMITS)
    exchange = begun(post(3), protocol)
    assert not exchange.complete
    assert not protocol.out
    assert not exchange.want(100)
    assert protocol.feed(body(b"abc")) == [exchange]
    assert exchange.complete
    assert exchange.take() == b"abc"
    assert not protocol.out


def test_rest_of_a_body_is_asked_for_until_enough_waits_to_be_read() -> None:
    protocol = AJP(NO_LIMITS, ahead=15_000)
    exchange = begun(post(40_000) + body(b"x" * 8186), protocol)
    assert owed(protocol) == [8186]
    protocol.feed(body(b"x" * 8186))
    assert owed(protocol) == [], "enough waits"
    assert exchange.want(1) != []
    assert exchange.want(1) == [], "asked for once"
    protocol.feed(body(b"x" * 8186))
    assert len(exchange.take()) == 3 * 8186
    assert len(b"".join(exchange.want(65536))) == 7
    protocol.feed(body(b"x" * 8186))
    assert owed(protocol) == [40_000 - 4 * 8186], "no more than there is"
    protocol.feed(body(b"x" * (40_000 - 4 * 8186)))
    assert exchange.complete
    assert exchange.received == 40_000
    assert owed(protocol) == []


def test_body_without_a_length_is_asked_for_until_an_empty_packet() -> None:
    for end in (body(), packet(b"")):  # as Apache and as the description have it
        protocol = AJP(NO_LIMITS)
        exchange = begun(forward("POST", headers=[("Transfer-Encoding", "chunked")]), protocol)
        assert owed(protocol) == [8186]
        protocol.feed(body(b"abc"))
        assert owed(protocol) == [8186]
        assert not exchange.complete
        protocol.feed(end)
        assert owed(protocol) == []
        assert exchange.complete
        assert exchange.take() == b"abc"
        assert exchange.content_length == -1


def test_packets_may_be_larger_when_both_sides_are_told_so() -> None:
    protocol = AJP(NO_LIMITS, packet_size=65536)
    exchange = begun(post(200_000) + body(b"x" * 65530), protocol)
    assert owed(protocol) == [65530]
    exchange.start("200 OK", [("X", "y" * 60_000)])
    [answer] = answers(*exchange.finish(b"z" * 200_000), size=65536)
    assert [len(piece) for piece in answer.pieces] == [65528, 65528, 65528, 3416]
    assert answer.body == b"z" * 200_000


def test_empty_packet_ends_a_body_before_its_length() -> None:
    exchange = begun(post(5) + body(b"abc") + body())
    assert exchange.complete
    assert exchange.received == 3


def test_packet_that_is_owed_to_an_answered_request_is_no_request() -> None:
    protocol = AJP(NO_LIMITS)
    exchange = begun(post(700), protocol)
    exchange.start("200 OK", [])
    [answer] = answers(*exchange.finish())
    protocol.done(exchange)
    assert answer.reuse
    assert not protocol.closing
    assert not protocol.idle, "or the connection could be handed to who knows nothing of it"
    forged = forward(uri="/forged")[4:]
    data = forged + b" " * (700 - len(forged))
    assert protocol.feed(body(data)) == []
    assert protocol.idle
    assert begun(forward(uri="/next"), protocol).params["PATH_INFO"] == "/next"


@pytest.mark.parametrize("unasked", [True, False])
def test_body_over_http2_without_a_length_is_never_taken_for_a_request(unasked: bool) -> None:
    """Apache sends its first packet unasked, and nothing in the request tells.

    0x02.. as its length, and its content, would make a FORWARD_REQUEST.
    """
    protocol = AJP(NO_LIMITS)
    exchange = begun(forward("POST", protocol="HTTP/2.0"), protocol)
    assert owed(protocol) == [8186]
    data = (b"\x02" + string("HTTP/1.1") + string("/forged")).ljust(0x2FF, b"\0")
    if unasked:
        assert protocol.feed(body(data)) == [exchange]
        assert owed(protocol) == []
        assert not exchange.complete, "what was asked for is to come"
        protocol.feed(body(b"rest"))
        assert owed(protocol) == [8186]
    protocol.feed(body())
    assert exchange.complete
    assert exchange.take() == (data + b"rest" if unasked else b"")
    exchange.start("200 OK", [])
    exchange.finish()
    protocol.done(exchange)
    assert protocol.idle
    assert begun(forward(uri="/next"), protocol).params["PATH_INFO"] == "/next"


def test_request_over_http1_without_a_length_has_no_body() -> None:
    protocol = AJP(NO_LIMITS)
    assert begun(forward("POST"), protocol).complete
    assert not protocol.out


# Answers


def test_answer_in_packets() -> None:
    exchange = begun(forward())
    exchange.start(
        "404 Not Found", [("Content-Type", "text/plain"), ("X-Own", "\xe9"), ("set-cookie", "a=b")]
    )
    [answer] = answers(*exchange.finish(b"x" * 20_000))
    assert (answer.status, answer.reason, answer.reuse) == (404, "Not Found", True)
    assert answer.headers == [
        ("Content-Type", "text/plain"), ("X-Own", "\xe9"), ("Set-Cookie", "a=b"),
    ]  # fmt: skip
    assert [len(piece) for piece in answer.pieces] == [8184, 8184, 20_000 - 2 * 8184]
    assert exchange.sent == 20_000


@pytest.mark.parametrize("size", [1, 8183, 8184, 8185, 16368, 262144, 262145, 1 << 20])
def test_answers_of_many_sizes_in_one_piece_and_in_two(size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"y" * (size % 256)
    for view in (data, memoryview(data)):
        exchange = begun(forward())
        exchange.start("200 OK", [])
        [answer] = answers(*exchange.finish(view))
        assert answer.body == data
        exchange = begun(forward())
        exchange.start("200 OK", [])
        [answer] = answers(*exchange.send(view), *exchange.send(b""), *exchange.finish(view))
        assert answer.body == data + data
        assert exchange.sent == 2 * size


def test_head_alone_and_short_pieces_are_flushed() -> None:
    exchange = begun(forward())
    exchange.start("200 OK", [])
    out = [*exchange.send(b""), *exchange.send(b"tick"), *exchange.finish()]
    [answer] = answers(*out)
    assert answer.pieces == [b"", b"tick", b""]


def test_head_that_no_packet_holds_is_an_error_of_the_application() -> None:
    exchange = begun(forward())
    exchange.start("200 OK", [("X", "y" * 8192)])
    with pytest.raises(ValueError, match="ajp_packet_size"):
        exchange.send(b"")
    exchange.start("200 OK", [("X", "y" * 70_000)])
    with pytest.raises(ValueError, match="too long"):
        exchange.send(b"")
    exchange.start("500 Internal Server Error", [])
    [answer] = answers(*exchange.finish())
    assert answer.status == 500


def test_broken_answer_has_no_end_and_closes() -> None:
    protocol = AJP(NO_LIMITS)
    exchange = begun(forward(), protocol)
    exchange.start("200 OK", [])
    exchange.send(b"a part")
    assert exchange.fail() == []
    protocol.done(exchange)
    assert exchange.broken
    assert protocol.closing


def test_what_writes_after_the_end_or_after_an_abort() -> None:
    protocol = AJP(NO_LIMITS)
    exchange = begun(post(5), protocol)
    with pytest.raises(RuntimeError, match="not started"):
        exchange.send(b"x")
    exchange.start("200 OK", [])
    exchange.finish()
    for call in (exchange.finish, exchange.fail, lambda: exchange.send(b"x")):
        with pytest.raises(RuntimeError, match="ended already"):
            call()
    assert exchange.want(1) == []
    protocol = AJP(NO_LIMITS)
    exchange = begun(post(5), protocol)
    assert protocol.eof() == [exchange]
    assert protocol.closing
    assert exchange.aborted
    exchange.start("200 OK", [])
    for call in (exchange.finish, exchange.fail, lambda: exchange.send(b"x")):
        with pytest.raises(Aborted):
            call()
    assert exchange.want(1) == []


# Limits, and the secret


def refused(data: bytes, limits: Limits = NO_LIMITS, secret: str = "") -> str:
    protocol = AJP(limits, secret)
    exchange = begun(data, protocol)
    if exchange.refused is None:
        return ""
    status = exchange.refused.status
    [answer] = answers(*exchange.refuse(status))
    assert f"{answer.status} {answer.reason}" == status
    assert not answer.reuse
    protocol.done(exchange)
    assert protocol.closing
    assert not protocol.out
    assert protocol.feed(b"\xff" * 100) == [], "what comes then means nothing"
    return status


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (forward(attributes=[("secret", "s3cret")]), ""),
        (forward(), "403 Forbidden"),
        (forward(attributes=[("secret", "s3cre")]), "403 Forbidden"),
        (forward(attributes=[("secret", "s3cret1")]), "403 Forbidden"),
        (forward(attributes=[("secret", "t3cret")]), "403 Forbidden"),
        (forward(attributes=[("secret", "")]), "403 Forbidden"),
        (forward(attributes=[("secret", None)]), "403 Forbidden"),
        (forward(named=[("secret", "s3cret")]), "403 Forbidden"),
        (forward(headers=[("secret", "s3cret")]), "403 Forbidden"),
        (post(5) + body(b"12345"), "403 Forbidden"),
    ],
)
def test_secret(data: bytes, status: str) -> None:
    assert refused(data, secret="s3cret") == status


def test_secret_is_in_no_variable() -> None:
    protocol = AJP(NO_LIMITS, "s3cret")
    exchange = begun(forward(attributes=[("secret", "s3cret")]), protocol)
    assert "s3cret" not in repr((exchange.params, exchange.pairs(), exchange.raw))


def test_secret_outside_ascii_is_compared_as_utf_8() -> None:
    given = "gr\u00fc\u00df".encode().decode("latin-1")
    assert refused(forward(attributes=[("secret", given)]), secret="gr\u00fc\u00df") == ""


@pytest.mark.parametrize(
    ("data", "limits", "status"),
    [
        (forward(uri="/" + "x" * 1000), Limits(params_size=1000), "431"),
        (forward(headers=[(f"x-{n}", "") for n in range(11)]), Limits(params=10), "431"),
        (forward(named=[(f"x-{n}", "") for n in range(11)]), Limits(params=10), "431"),
        (post(101), Limits(body=100), "413"),
        (post(101) + body(b"x" * 101), Limits(body=100), "413"),
        (post(10**30), Limits(body=0), "413"),
        (post(100), Limits(body=100), ""),
        (forward(headers=[("content-length", "-1")]), NO_LIMITS, "400"),
        (forward(headers=[("content-length", "")]), NO_LIMITS, "400"),
        (forward(headers=[("content-length", "5"), ("Content-Length", "6")]), NO_LIMITS, "400"),
        (forward(headers=[("content-length", "5"), ("Content-Length", "5")]), NO_LIMITS, ""),
        (
            forward(headers=[("content-length", "5"), ("transfer-encoding", "chunked")]),
            NO_LIMITS,
            "400",
        ),
    ],
)
def test_limits(data: bytes, limits: Limits, status: str) -> None:
    assert refused(data, limits)[:3] == status


def test_body_without_a_length_that_grows_too_long() -> None:
    protocol = AJP(Limits(body=10))
    exchange = begun(forward("PUT", headers=[("transfer-encoding", "chunked")]), protocol)
    protocol.feed(body(b"x" * 10))
    assert exchange.refused is None
    assert len(owed(protocol)) == 2
    assert protocol.feed(body(b"x")) == [exchange]
    assert exchange.refused is not None
    assert exchange.refused.status[:3] == "413"
    assert exchange.take() == b""
    assert protocol.out == []
    assert exchange.want(1) == []
    assert not exchange.keep


# What closes the connection

HELLO = forward()
ONE_HEADER = HELLO.index(b"\x00\x01\xa0\x0b")  # where the count of headers is


def changed(at: int, data: bytes) -> bytes:
    return HELLO[:at] + data + HELLO[at + len(data) :]


BROKEN = {
    "a packet to the web server": b"AB" + HELLO[2:],
    "no magic": b"GET / HTTP/1.1\r\n\r\n",
    "the magic the wrong way round": b"\x34\x12" + HELLO[2:],
    "an empty packet that nobody asked for": packet(b""),
    "body that nobody asked for": body(b"abc"),
    "an unknown type": packet(b"\x63"),
    "SHUTDOWN": packet(b"\x07"),
    "PING of old": packet(b"\x08"),
    "CPING with content": packet(b"\x0a\x0a"),
    "a request of one byte": packet(b"\x02"),
    "an unknown method": changed(5, b"\x1c"),
    "method 0": changed(5, b"\x00"),
    "a method that is stored nowhere": changed(5, b"\xff"),
    "a stored method that is none": forward("A B"),
    "a stored method with a line's end": forward("GET\r\n"),
    "no path": forward(uri=None),
    "a string that ends beyond its packet": changed(6, b"\x7f\xff"),
    "a string without its NUL": changed(6, b"\x00\x07"),
    "a string up to the very end": packet(b"\x02\x02\x00\x03abc"),
    "more headers than there are": changed(ONE_HEADER, b"\x00\x02"),
    "65,535 headers": changed(ONE_HEADER, b"\xff\xff"),
    "fewer headers than there are": changed(ONE_HEADER, b"\x00\x00"),
    "an unknown header": changed(ONE_HEADER + 2, b"\xa0\x0f"),
    "header 0": changed(ONE_HEADER + 2, b"\xa0\x00"),
    "a header without a name": changed(ONE_HEADER + 2, b"\xff\xff"),
    "an unknown attribute": HELLO[:-1] + b"\x0e",
    "no end of the attributes": packet(HELLO[4:-1]),
    "an attribute cut short": packet(HELLO[4:-1] + b"\x03"),
    "an attribute without a name": packet(HELLO[4:-1] + b"\x0a\xff\xff\xff\xff\xff"),
    "a key size cut short": packet(HELLO[4:-1] + b"\x0b\x01"),
    "the user twice": forward(attributes=[("remote_user", "a"), ("remote_user", "root")]),
    "the key size twice": packet(HELLO[4:-1] + b"\x0b\x01\x00" * 2 + b"\xff"),
    "the secret twice": forward(attributes=[("secret", "a"), ("secret", "b")]),
    "something behind the end": packet(HELLO[4:] + b"\x00"),
    "a second request before the answer": HELLO + HELLO,
    "body behind a request that has none": HELLO + body(b"abc"),
    "more body than its length": post(3) + body(b"abcd"),
    "more body than asked for": post(3) + body(b"abc") + body(b"d"),
    "a packet of body that says more": post(9) + packet(b"\x00\x04abc"),
    "a packet of body that says less": post(9) + packet(b"\x00\x02abc"),
    "a packet of body that says 0xFFFF": post(9) + packet(b"\xff\xffabc"),
    "a packet of body of one byte": post(9) + packet(b"\x00"),
    "a request in place of the body": post(9) + HELLO,
}


@pytest.mark.parametrize("name", BROKEN)
def test_connection_is_given_up_for(name: str) -> None:
    with pytest.raises(ProtocolError):
        AJP(NO_LIMITS).feed(BROKEN[name])
    protocol = AJP(NO_LIMITS)
    with pytest.raises(ProtocolError):
        byte_by_byte(protocol, BROKEN[name])


def byte_by_byte(protocol: AJP, data: bytes) -> None:
    for byte in data:
        protocol.feed(bytes([byte]))


def test_what_is_incomplete_is_waited_for() -> None:
    protocol = AJP(NO_LIMITS)
    for byte in HELLO[:-1]:
        assert protocol.feed(bytes([byte])) == []
        assert not protocol.idle
    assert len(protocol.feed(HELLO[-1:])) == 1


# Against the model

texts = st.text(st.characters(max_codepoint=255, exclude_characters="\0"), max_size=20)
maybe_texts = st.none() | texts
names = st.sampled_from([*ajp_model.HEADERS, "X-Own", "x_own", "", "\xe9"]) | texts


@st.composite
def forwards(draw: st.DrawFn) -> bytes:
    """FORWARD_REQUESTs, with whatever may be in one."""
    headers = draw(st.lists(st.tuples(names, texts), max_size=5))
    known = draw(st.lists(st.sampled_from(list(ajp_model.ATTRIBUTES)), unique=True))
    known = [name for name in known if name != "stored_method"]
    return forward(
        draw(st.sampled_from([*ajp_model.METHODS, "PATCH"])),
        draw(texts),
        headers,
        [(name, draw(maybe_texts)) for name in known],
        draw(st.lists(st.tuples(texts, texts), max_size=3)),
        protocol=draw(maybe_texts),
        remote_addr=draw(maybe_texts),
        remote_host=draw(maybe_texts),
        server_name=draw(maybe_texts),
        server_port=draw(st.integers(0, 65535)),
        ssl=draw(st.booleans()),
        key_size=draw(st.integers(0, 65535)),
        coded=draw(st.booleans()),
    )


def facts(content: bytes) -> object:
    """What the package reads of a FORWARD_REQUEST, in the model's words."""
    read = decode_forward(content)
    fields = [read.protocol, read.uri, read.remote_addr, read.remote_host, read.server_name]
    return ajp_model.Request(
        read.method, fields, read.server_port, read.is_ssl, read.headers, read.attributes,
        read.named,
    )  # fmt: skip


@given(forwards())
@settings(deadline=None)
def test_request_reads_as_the_model_reads_it(data: bytes) -> None:
    assert facts(data[4:]) == read_forward(data[4:])


@given(forwards(), st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_request_breaks_where_it_does_for_the_model(
    data: bytes, draw: st.DataObject
) -> None:
    content = bytearray(data[4:])
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(content) - 1))
        if draw.draw(st.booleans()):
            content[at] = draw.draw(st.integers(0, 255))
        else:
            del content[at:]
        if not content:
            return
    try:
        expected: object = read_forward(bytes(content))
    except Broken:
        expected = None
    try:
        read = facts(bytes(content))
    except ProtocolError:
        read = None
    assert read == expected


@given(forwards())
@settings(deadline=None)
def test_request_is_written_as_it_is_read(data: bytes) -> None:
    read = decode_forward(data[4:])
    again = encode_forward(read)
    assert again[:4] == data[:2] + struct.pack(">H", len(again) - 4)
    assert facts(again[4:]) == facts(data[4:])
    assert isinstance(read, Forward)


@given(st.lists(st.binary(max_size=50) | st.sampled_from(list(BROKEN.values())), max_size=6))
@settings(deadline=None)
def test_nothing_but_errors_of_ours_comes_of_any_bytes(pieces: list[bytes]) -> None:
    protocol = AJP(Limits())
    with contextlib.suppress(ProtocolError, LimitExceeded):
        for piece in pieces:
            protocol.feed(piece)


@dataclass
class Asked:
    """One request of a conversation, and what the application does with it."""

    length: str  # "known", "chunked", "none", or "http2": unknown, and its start sent unasked
    body: bytes
    read: int  # how many pieces of the body the application takes before it answers
    answer: bytes
    pieces: list[int]  # how long the packets of body are


@st.composite
def askeds(draw: st.DrawFn) -> Asked:
    length = draw(st.sampled_from(["known", "chunked", "none", "http2"]))
    size = 0 if length == "none" else draw(st.sampled_from([0, 1, 700, 8186, 8187, 30_000]))
    trap = forward(uri="/forged")[4:]  # whoever takes it for a request has been had
    return Asked(
        length,
        (trap * (size // len(trap) + 1))[:size],
        draw(st.integers(0, 12)),
        draw(st.sampled_from([b"", b"short", b"long" * 5000])),
        draw(st.lists(st.integers(1, 8186), min_size=1, max_size=4)),
    )


class Apache:
    """Sends requests one after the other, and their bodies, as mod_proxy_ajp does."""

    def __init__(self, asked: Asked, number: int) -> None:
        self.sent = b""
        self.rest = asked.body
        self.pieces = asked.pieces
        headers = {
            "known": [("content-length", str(len(asked.body)))],
            "chunked": [("transfer-encoding", "chunked")],
        }
        self.sent += forward(
            "POST",
            f"/{number}",
            headers.get(asked.length, []),
            protocol="HTTP/2.0" if asked.length == "http2" else "HTTP/1.1",
        )
        if asked.length != "chunked" and asked.body:
            self.more(8186)

    def more(self, size: int) -> None:
        size = min(size, self.pieces[0])
        self.pieces = self.pieces[1:] + self.pieces[:1]
        piece, self.rest = self.rest[:size], self.rest[size:]
        self.sent += body(piece)


@given(st.lists(askeds(), min_size=1, max_size=5), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_conversations_stay_in_step(conversation: list[Asked], random: object) -> None:
    """Whatever the application reads of the bodies, each request gets its own answer."""
    protocol = AJP(NO_LIMITS, ahead=10_000)
    for number, asked in enumerate(conversation):
        apache = Apache(asked, number)
        server = WebServer(asked=apache.more)
        exchange: Exchange | None = None
        taken = b""
        reads = asked.read
        while not server.answers:
            for cut in pieces_of(apache.sent, random):
                for moved in protocol.feed(cut):
                    assert exchange in (None, moved)
                    exchange = moved
            apache.sent = b""
            server.read(b"".join(protocol.out))
            protocol.out = []
            assert exchange is not None
            assert exchange.params["PATH_INFO"] == f"/{number}"
            if exchange.ended:
                break
            if reads and not exchange.stdin_ended:
                reads -= 1
                taken += exchange.take()
                server.read(b"".join(exchange.want(65536)))
                continue
            if apache.sent:
                continue
            taken += exchange.take()
            exchange.start("200 OK", [("X-Number", str(number))])
            server.read(b"".join(exchange.finish(asked.answer)))
            ended = exchange.stdin_ended
            protocol.done(exchange)
            assert asked.body.startswith(taken)
            assert not ended or taken == asked.body
        assert exchange is not None
        [answer] = server.answers
        assert answer.header("x-number") == str(number)
        assert (answer.body, answer.reuse) == (asked.answer, True)
        assert protocol.feed(apache.sent) == []
        server.read(b"".join(protocol.out))
        protocol.out = []
    assert protocol.idle
    assert not protocol.closing


def pieces_of(data: bytes, random: object) -> Iterator[bytes]:
    while data:
        size = random.choice([1, 3, 4, 100, 5000, 100_000])  # type: ignore[attr-defined]
        yield data[:size]
        data = data[size:]
