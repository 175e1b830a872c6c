"""The application's side of AJP: what it reads, and what it answers.

tests/ajp_model.py is the web server's side.
"""

from __future__ import annotations

import pytest

from fulgate.cgi import repair
from fulgate.errors import Aborted
from fulgate.protocols.ajp import AJP
from tests import ajp_model
from tests.ajp import NO_LIMITS, answers, begun, owed
from tests.ajp_model import (
    CPING,
    METHODS_IN_ORDER,
    WebServer,
    body,
    forward,
    packet,
    post,
    string,
)


def environ(data: bytes) -> dict[str, str]:
    exchange = begun(data)
    repair(exchange)
    assert exchange.refused is None
    return exchange.params


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
