"""The web server's side of AJP, against the application's side, and against broken answers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgate import Server
from fulgate.client import AsyncClient, Client, Connection
from fulgate.client.head import HeadReader
from fulgate.client.params import BadRequest, request_params
from fulgate.errors import ProtocolError
from fulgate.exchange import Exchange, Limits, Role
from fulgate.protocols.ajp import AJP
from fulgate.protocols.ajp_client import AJPClient
from fulgate.protocols.fastcgi_client import Request
from tests.ajp_model import read_forward
from tests.apps import app
from tests.command import here
from tests.raw import PATIENCE
from tests.test_scgi_client import answering

NO_LIMITS = Limits(params_size=0, params=0, body=0)


def begun(method: str = "GET", length: int = 0, **params: str) -> tuple[AJPClient, Request]:
    client = AJPClient()
    made = request_params(method, "/a%20b?x=1", length=length, params=params.items())
    request, _ = client.begin(made.items())
    return client, request


def test_variables_come_out_as_they_went_in() -> None:
    client, server = AJPClient(), AJP(NO_LIMITS, "s3cret")
    given = request_params(
        "PATCH",
        "/a%20b?x=1",
        headers=[("X-Thing", "thing"), ("Cookie", "a=b")],
        length=5,
        params={
            "REMOTE_USER": "ada",
            "AUTH_TYPE": "Basic",
            "REMOTE_HOST": "client.example",
            "HTTPS": "on",
            "REQUEST_SCHEME": "https",
            "SERVER_PORT": "443",
            "SSL_CIPHER": "AES",
            "SSL_CLIENT_CERT": "PEM",
            "SSL_SESSION_ID": "5e55",
            "SSL_PROTOCOL": "TLSv1.3",
            "SSL_CIPHER_USEKEYSIZE": "256",
            "AJP_CONTEXT": "/c",
            "AJP_SERVLET_PATH": "/s",
            "AJP_JVM_ROUTE": "r1",
            "AJP_ROLE": "admin",
            "AJP_SECRET": "s3cret",
        }.items(),
    )
    _, out = client.begin(given.items())
    [exchange] = server.feed(b"".join(out))
    assert exchange.refused is None
    kept = {name: value for name, value in given.items() if value or name == "SCRIPT_NAME"}
    del kept["SERVER_SOFTWARE"]  # for which AJP has no place
    del kept["AJP_SECRET"]
    assert exchange.params == kept


def test_request_is_what_the_model_reads() -> None:
    client = AJPClient()
    _, out = client.begin(request_params("GET", "/a?b=c").items())
    read = read_forward(b"".join(out)[4:])
    assert (read.method, read.fields[1], read.attributes) == ("GET", "/a", {5: "b=c"})


@given(
    st.integers(0, 50_000),
    st.lists(st.integers(1, 20_000), min_size=1, max_size=4),
    st.integers(1, 10_000),
    st.binary(max_size=30_000),
)
@settings(max_examples=150, deadline=None)
def test_conversations(size: int, pieces: list[int], cut: int, answer: bytes) -> None:
    """Three requests on one connection, with bodies in pieces, and segments of any length."""
    client, server = AJPClient(), AJP(NO_LIMITS, ahead=0)
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    for number in range(3):
        made = request_params("POST", f"/{number}", length=size)
        request, out = client.begin(made.items())
        to_server, to_client = b"".join(out), b""
        rest, taken = body, b""
        exchange: Exchange | None = None
        while not request.ended:
            if not request.stdin_ended:
                piece, rest = rest[: pieces[0]], rest[pieces[0] :]
                pieces = pieces[1:] + pieces[:1]
                to_server += b"".join(request.send(piece) if piece else request.end())
            while to_server or to_client:
                for moved in server.feed(to_server[:cut]):
                    exchange = moved
                to_server = to_server[cut:]
                to_client += b"".join(server.out)
                server.out = []
                client.feed(to_client[:cut])
                to_client = to_client[cut:]
                to_server += b"".join(client.out)
                client.out = []
            assert exchange is not None
            taken += exchange.take()
            if exchange.complete:
                exchange.start("200 OK", [("X-Number", str(number))])
                to_client += b"".join(exchange.finish(answer))
                server.done(exchange)
                while to_client:
                    client.feed(to_client[:cut])
                    to_client = to_client[cut:]
            else:
                to_client += b"".join(exchange.want(65536))
        assert taken == body
        found = HeadReader().feed(request.take())
        assert found is not None
        assert found[0].get("x-number") == str(number)
        assert found[1] == answer
        assert request.whole
        assert client.idle
        assert server.idle


def test_ping() -> None:
    client, server = AJPClient(), AJP(NO_LIMITS)
    assert server.feed(b"".join(client.ping())) == []
    assert client.feed(b"".join(server.out)) == []
    assert client.pongs == 1
    assert client.idle


def test_answer_before_the_body_leaves_the_connection_unusable_only_if_body_is_owed() -> None:
    for sent, idle in ((b"", False), (b"x" * 10, True)):
        client, server = AJPClient(), AJP(NO_LIMITS)
        request, out = client.begin(request_params("POST", "/", length=10).items())
        [exchange] = server.feed(b"".join([*out, *request.send(sent)]))
        exchange.start("200 OK", [])
        client.feed(b"".join(exchange.finish(b"early")))
        assert request.whole
        assert client.idle is idle


def test_application_that_closes_is_not_used_again() -> None:
    client, server = AJPClient(), AJP(NO_LIMITS, "secret")
    request, out = client.begin(request_params("GET", "/").items())
    [exchange] = server.feed(b"".join(out))
    assert exchange.refused is not None
    client.feed(b"".join(exchange.refuse(exchange.refused.status)))
    assert b"403" in request.take()
    assert not client.idle


def test_end_of_the_connection_cuts() -> None:
    client, request = begun()
    assert client.eof() == [request]
    assert request.cut
    assert not request.whole


def test_what_cannot_be_asked() -> None:
    client, request = begun("POST", 3)
    with pytest.raises(RuntimeError, match="one request at a time"):
        client.begin(request_params("GET", "/").items())
    with pytest.raises(ValueError, match="as CONTENT_LENGTH says"):
        request.send(b"four")
    for role in (Role.AUTHORIZER, Role.FILTER):
        with pytest.raises(ValueError, match="role"):
            AJPClient().begin(request_params("GET", "/").items(), role)
    for size in (9_000, 70_000):
        with pytest.raises(ValueError, match="packet"):
            AJPClient().begin({"HTTP_X": "x" * size, "REQUEST_URI": "/"}.items())
    request.end()
    for call in (request.end, lambda: request.send(b"x")):
        with pytest.raises(RuntimeError, match="ended already"):
            call()


# Over sockets


@pytest.fixture
def endpoint(folder: Path) -> Iterator[str]:
    where = f"ajp+unix:{folder}/a"
    with Server(app, bind=(where,), ajp_secret="s3cret", body_wait=0.05):
        yield where


SECRET = {"AJP_SECRET": "s3cret"}


@pytest.mark.parametrize("size", [0, 1, 8186, 8187, 3_000_000])
def test_client_and_a_kept_connection(endpoint: str, size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    digest = hashlib.sha256(body).hexdigest()
    with Client(endpoint, timeout=PATIENCE) as client:
        for _ in range(3):
            answer = client.request("POST", "/digest?a=b", body, params=SECRET)
            assert json.loads(answer.body)["sha256"] == digest
            assert client.get(f"/sized?size={size}", params=SECRET).status == 200
        assert len(client._idle) == 1

    async def asynchronous() -> None:
        async with AsyncClient(endpoint, timeout=PATIENCE) as client:
            for _ in range(3):
                answer = await client.request("POST", "/digest?a=b", body, params=SECRET)
                assert json.loads(answer.body)["sha256"] == digest

    asyncio.run(asynchronous())


def test_body_in_pieces_is_not_kept_in_memory(endpoint: str) -> None:
    """What the application has not asked for holds up whoever gives the pieces."""
    given, most = 0, 0
    with Connection(endpoint, PATIENCE) as connection:
        size = 4 << 20
        made = request_params("POST", "/digest", length=size, params=SECRET.items())
        request = connection.begin(made)
        while given < size:
            connection.send(request.send(bytes(65536)))
            given += 65536
            most = max(most, connection.protocol.behind)
        connection.send(request.end())
        answer = connection.answer(request)
        assert json.loads(answer.body)["length"] == size
    assert most < 1 << 20


def test_echo_answers_while_the_body_goes(endpoint: str) -> None:
    body = bytes(range(256)) * 8_000
    with Client(endpoint, timeout=PATIENCE) as client:
        assert client.request("POST", "/echo", body, params=SECRET).body == body
        pieces = [body[at : at + 100_000] for at in range(0, len(body), 100_000)]
        length = {**SECRET, "CONTENT_LENGTH": str(len(body))}
        assert client.request("POST", "/echo", pieces, params=length).body == body


def test_what_the_client_refuses(endpoint: str) -> None:
    with Client(endpoint) as client:
        assert client.get("/hello").status == 403
        with pytest.raises(BadRequest, match="AJP has no roles"):
            client.request("GET", "/", role=Role.AUTHORIZER)
        with pytest.raises(BadRequest, match="AJP wants a body's length"):
            client.request("POST", "/", iter([b"x"]))
    with Connection(endpoint) as connection:
        connection.ping()
        with pytest.raises(ValueError, match="GET_VALUES"):
            connection.get_values()
    with socket.socket(socket.AF_UNIX) as sock:
        with Connection(sock) as connection, pytest.raises(ValueError, match="only AJP"):
            connection.ping()


def test_get_and_ping(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert here("get", "-f", endpoint, "/hello", cwd=tmp_path).returncode == 22
    assert here("ping", endpoint, "/hello", cwd=tmp_path).returncode == 4
    given = ("--param", "AJP_SECRET=s3cret")
    assert here("get", endpoint, "/hello", *given, cwd=tmp_path).stdout == "Hello, world!\n"
    monkeypatch.setenv("FULGATE_AJP_SECRET", "s3cret")
    assert here("get", endpoint, "/hello", cwd=tmp_path).stdout == "Hello, world!\n"
    assert "status 200" in here("ping", endpoint, "/hello", cwd=tmp_path).stdout
    assert "CPONG" in here("ping", endpoint, cwd=tmp_path).stdout
    nobody = "ajp+unix:" + str(tmp_path / "nobody")
    assert here("ping", nobody, cwd=tmp_path).returncode == 1


def test_ping_of_what_is_no_ajp(folder: Path) -> None:
    with answering(lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as where:
        done = here("ping", where.replace("scgi+", "ajp+"), cwd=folder)
        assert done.returncode == 4, done.stderr
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{folder}/silent")
        silent.listen()
        done = here("ping", f"ajp+unix:{folder}/silent", "--timeout", "0.2", cwd=folder)
        assert done.returncode == 3, done.stderr


def test_verbose_shows_packets_and_no_secret(endpoint: str, tmp_path: Path) -> None:
    body = "x" * 10_000
    given = ("-d", body, "--param", "AJP_SECRET=s3cret", "--param", "AJP_ROLE=admin")
    shown = here("get", "-v", endpoint, "/digest?a=b", *given, cwd=tmp_path).stderr.splitlines()
    for line in (
        "> FORWARD_REQUEST: ",
        ">   POST /digest HTTP/1.1",
        ">   content-length: 10000",
        ">   query_string=a=b",
        ">   secret=...",
        ">   ROLE=admin",
        "> body: 8,186 bytes",
        "< GET_BODY_CHUNK: up to 1,814 bytes",
        "> body: 1,814 bytes",
        "< SEND_HEADERS: 200 OK",
        "< SEND_BODY_CHUNK: ",
        "< END_RESPONSE: reuse",
    ):
        assert any(one.startswith(line) for one in shown), (line, shown)
    assert not any("s3cret" in one for one in shown)


HEAD = b"AB\x00\x0a\x04\x00\xc8\x00\x02OK\x00\x00\x00"
END = b"AB\x00\x02\x05\x01"

WRONG = {
    "a packet of a web server": b"\x12\x34\x00\x01\x09",
    "HTTP": b"HTTP/1.1 200 OK\r\n\r\n",
    "an empty packet": b"AB\x00\x00",
    "an unknown packet": b"AB\x00\x01\x63",
    "a pong with content": b"AB\x00\x02\x09\x09",
    "a body without a head": b"AB\x00\x05\x03\x00\x01x\x00",
    "an end without a head": END,
    "two heads": HEAD + HEAD,
    "a head cut short": b"AB\x00\x05\x04\x00\xc8\x00\x02",
    "a line's end in a head": b"AB\x00\x0a\x04\x00\xc8\x00\x02\r\n\x00\x00\x00",
    "a head with an unknown code": b"AB\x00\x0e\x04\x00\xc8\x00\x02OK\x00\x00\x01\xa0\x0c\x00\x00",
    "a piece that is longer than it says": HEAD + b"AB\x00\x06\x03\x00\x01xx\x00",
    "a piece without its NUL": HEAD + b"AB\x00\x04\x03\x00\x01x",
    "an end of three bytes": HEAD + b"AB\x00\x03\x05\x01\x01",
    "something after the end": HEAD + END + HEAD,
    "body asked for twice": b"AB\x00\x03\x06\x00\x05" * 2,
}


@pytest.mark.parametrize("name", WRONG)
def test_answer_that_is_wrong(name: str) -> None:
    client, request = begun()
    with pytest.raises(ProtocolError):
        client.feed(WRONG[name])
    assert not request.whole or name == "something after the end"


@given(st.lists(st.binary(max_size=50) | st.sampled_from([HEAD, END, *WRONG.values()])))
@settings(deadline=None)
def test_nothing_but_protocol_errors_comes_of_any_bytes(pieces: list[bytes]) -> None:
    client, _ = begun("POST", 100)
    try:
        for piece in pieces:
            client.feed(piece)
    except ProtocolError:
        client.eof()
