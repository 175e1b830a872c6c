"""What is fuzzed with coverage as the guide: each parser, by a function of any bytes.

A target returns, or an assertion fails, or it raises what it must not. Where there is a plain model
of the protocol, the parser is held to it; and how the bytes are cut must not matter anywhere.
`run.py` has atheris call them, tests/test_fuzz.py calls them with what is kept in corpus/.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from fulgate.cgi import PATH_POLICIES, REPEATED_POLICIES, repair
from fulgate.client.head import Head, HeadReader
from fulgate.client.recording import Event, Recording
from fulgate.client.records import Describer, RecordReader
from fulgate.errors import ConfigError, LimitExceeded, ProtocolError
from fulgate.exchange import Buffer, Exchange, Limits, Role
from fulgate.protocols.ajp import AJP
from fulgate.protocols.ajp_packets import decode_forward, decode_head, encode_forward
from fulgate.protocols.fastcgi import FastCGI
from fulgate.protocols.fastcgi_client import FastCGIClient
from fulgate.protocols.fastcgi_records import GET_VALUES, decode_pairs, decode_params, encode_pair
from tests import ajp_model, model
from tests.ajp import facts as forward_facts
from tests.fuzz.conversations import Cut, byte_by_byte, whole
from tests.fuzz.fed import NO_LIMITS, VALUES
from tests.raw import record
from tests.test_fastcgi import agree
from tests.test_scgi import check as check_scgi

Target = Callable[[bytes], None]
SMALL = Limits(params_size=100, params=4, body=60)
ALL_ROLES = frozenset(Role)


def cut_at(size: int) -> Cut:
    def cut(data: bytes) -> Iterator[bytes]:
        step = size or 1
        yield from (data[at : at + step] for at in range(0, len(data), step))

    return cut


def split(data: bytes) -> tuple[int, int, bytes]:
    """Give two numbers that say how, and the rest."""
    return data[0] if data else 0, data[1] if len(data) > 1 else 0, data[2:]


# FastCGI


def fastcgi(data: bytes) -> None:
    """What a web server sends, held to the model."""
    how, size, rest = split(data)
    if not refuses(rest):  # which the model does not
        agree([rest], cut_at(size), multiplex=how & 1 == 1)


def refuses(data: bytes) -> bool:
    """Does a CONTENT_LENGTH come that is too long whatever the limit?"""
    protocol = FastCGI(NO_LIMITS, VALUES, multiplex=True)
    try:
        moved = [one for byte in data for one in protocol.feed(bytes((byte,)))]
    except ProtocolError:
        moved = []
    return any(one.refused is not None for one in [*moved, *protocol.eof()])


def limited(data: bytes, cut: Cut) -> object:
    protocol = FastCGI(SMALL, VALUES, ALL_ROLES, multiplex=True)
    seen: list[Exchange] = []
    bodies: dict[int, bytes] = {}
    error = ""
    try:
        for piece in cut(data):
            for exchange in protocol.feed(piece):
                if exchange not in seen:
                    seen.append(exchange)
                key = seen.index(exchange)
                exchange.reading_data = exchange.stdin_ended
                bodies[key] = bodies.get(key, b"") + exchange.take()
                assert exchange.body_size == len(b"".join([*exchange.body, *exchange.data]))
    except (ProtocolError, LimitExceeded) as found:
        return type(found).__name__
    facts = []
    for key, exchange in enumerate(seen):
        refused = exchange.refused.status if exchange.refused is not None else ""
        facts.append(
            (
                exchange.id, exchange.role, exchange.params_ended, exchange.params, refused,
                exchange.stdin_ended, exchange.data_ended, exchange.aborted, exchange.keep,
                b"" if refused else bodies.get(key),
            )
        )  # fmt: skip
        assert len(bodies.get(key, b"")) <= SMALL.body or refused
    return facts, b"".join(protocol.out), protocol.idle, error


def fastcgi_limits(data: bytes) -> None:
    """The same for all roles at once, and with limits: these depend on no cut either."""
    _, size, rest = split(data)
    expected = limited(rest, byte_by_byte)
    found = limited(rest, cut_at(size))
    assert found == expected, (found, expected)


def asked(data: bytes, cut: Cut) -> object:
    client = FastCGIClient()
    requests = [client.begin([("A", "1")], id=id)[0] for id in (1, 2)]
    error = False
    try:
        for piece in cut(data):
            client.feed(piece)
    except ProtocolError:
        error = True
    facts = [
        (
            one.take(), one.take_stderr(), one.ended, one.app_status, one.protocol_status,
            one.stdout_ended, one.stderr_ended, one.whole, one.received,
        )
        for one in requests
    ]  # fmt: skip
    return facts, client.values, client.unknown_types, error, not error and client.idle


def fastcgi_client(data: bytes) -> None:
    """What an application answers."""
    _, size, rest = split(data)
    assert asked(rest, whole) == asked(rest, cut_at(size))


def get_values(data: bytes) -> None:
    protocol = FastCGI(NO_LIMITS, VALUES)
    data = data[:65535]
    try:
        names = [name for name, _ in model.read_pairs(data)]
    except model.Broken:
        try:
            protocol.feed(record(GET_VALUES, 0, data))
        except ProtocolError:
            return
        raise AssertionError("broken pairs were taken") from None
    assert protocol.feed(record(GET_VALUES, 0, data)) == []
    (answer,) = model.Reader().records(b"".join(protocol.out))
    expected = {n: VALUES[n.decode()].encode() for n in names if n.decode("latin-1") in VALUES}
    assert dict(model.read_pairs(answer.content)) == expected
    assert len(answer.content) < 200


def params(data: bytes) -> None:
    """Name-value pairs, by the fast way and by the slow one."""
    try:
        expected = model.read_pairs(data)
    except model.Broken:
        for decode in (decode_pairs, decode_params):
            try:
                decode(data)
            except ProtocolError:
                continue
            raise AssertionError("broken pairs were taken") from None
        return
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in expected]
    assert decode_pairs(data) == pairs
    assert decode_params(data) == (dict(pairs), len(pairs))
    again = b"".join([encode_pair(name, value) for name, value in expected])
    assert model.read_pairs(again) == expected


# Answers, recordings


def head_of(data: bytes, cut: Cut) -> tuple[Head, bytes] | str | None:
    reader = HeadReader(limit=1000)
    found = None
    rest = b""
    try:
        for piece in cut(data):
            if found is not None:
                rest += piece
            else:
                found = reader.feed(piece)
    except ProtocolError:
        return "broken"
    return None if found is None else (found[0], found[1] + rest)


def cgi_head(data: bytes) -> None:
    """The head of an answer: what is taken for one can be passed on."""
    _, size, rest = split(data)
    found = head_of(rest, byte_by_byte)
    if len(rest) <= 1000:  # a limit may be passed within a piece, or not
        assert head_of(rest, cut_at(size)) == found
    if isinstance(found, tuple):
        head, body = found
        assert 100 <= head.status <= 599
        assert rest.endswith(body)
        text = head.reason + "".join([name + value for name, value in head.texts])
        assert not set(text) & set("\r\n\0")


def recording(data: bytes) -> None:
    """A file of what passed, or what is said to be one."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as file:
        file.write(data)
        file.flush()
        try:
            found = Recording.read(file.name)
        except ConfigError:
            return
    told(found)


def told(found: Recording) -> None:
    for conversation in found.conversations():
        for one in conversation.asked():
            assert isinstance(one.name, str)
            assert isinstance(one.variables, dict)


def dump(data: bytes) -> None:
    """What passed, in words; and what was asked in it."""
    _, size, rest = split(data)
    reader, describer = RecordReader(), Describer()
    try:
        for piece in cut_at(size)(rest):
            for one in reader.feed(piece):
                for line in describer.lines(one):
                    assert line.isprintable(), line
    except ProtocolError:
        pass
    half = len(rest) // 2
    events = [Event(0.0, 1, "to-application", rest[:half]), Event(1.0, 1, "to-web-server", rest)]
    told(Recording("unix:/x", "", [*events, Event(2.0, 1, "to-application", rest[half:])]))


# SCGI, AJP


def scgi(data: bytes) -> None:
    """What a web server sends, held to the model."""
    _, size, rest = split(data)
    for cut in (whole, byte_by_byte, cut_at(size)):
        check_scgi(rest, cut)


def ajp_of(data: bytes, cut: Cut) -> object:
    protocol = AJP(SMALL)
    seen: list[Exchange] = []
    bodies: dict[int, bytes] = {}
    try:
        for piece in cut(data):
            for exchange in protocol.feed(piece):
                if exchange not in seen:
                    seen.append(exchange)
                key = seen.index(exchange)
                bodies[key] = bodies.get(key, b"") + exchange.take()
    except (ProtocolError, LimitExceeded) as error:
        return type(error).__name__
    return [
        (one.params, one.pairs(), one.stdin_ended, one.refused is not None, bodies[key])
        for key, one in enumerate(seen)
    ]


def ajp(data: bytes) -> None:
    """What a web server sends: packets, however they are cut."""
    _, size, rest = split(data)
    assert ajp_of(rest, whole) == ajp_of(rest, byte_by_byte) == ajp_of(rest, cut_at(size))


def ajp_forward(data: bytes) -> None:
    """A request, held to the model; and the head of an answer."""
    if not data:
        return
    try:
        expected: object = ajp_model.read_forward(data)
    except ajp_model.Broken:
        expected = None
    try:
        found: object = forward_facts(data)
    except ProtocolError:
        found = None
    assert found == expected
    if found is not None:
        try:
            again = encode_forward(decode_forward(data))
        except ValueError:  # it fits in no packet
            return
        assert forward_facts(again[4:]) == found
    try:
        decode_head(data)
    except ProtocolError:
        return


# What becomes of parameters


def environ(data: bytes) -> None:
    """Lines of NAME=VALUE, as each policy repairs them."""
    how, other, rest = split(data)
    path = PATH_POLICIES[how % len(PATH_POLICIES)]
    repeated = REPEATED_POLICIES[other % len(REPEATED_POLICIES)]
    pairs = [tuple(line.split(b"=", 1)) for line in rest.split(b"\n") if b"=" in line]
    raw = b"".join([encode_pair(name, value) for name, value in pairs])
    protocol = FastCGI(NO_LIMITS, VALUES)
    sent: list[Buffer] = [record(1, 1, b"\0\1\1\0\0\0\0\0")]
    for at in range(0, len(raw), 65535):
        sent.append(record(4, 1, raw[at : at + 65535]))
    (exchange,) = protocol.feed(b"".join([*sent, record(4, 1), record(5, 1)]))
    repair(exchange, path, "/app" if how & 64 else "", repeated)
    found = exchange.params
    assert isinstance(found["SCRIPT_NAME"], str)
    assert isinstance(found["PATH_INFO"], str)
    assert found["wsgi.url_scheme"].isascii()
    assert not {"HTTP_PROXY", "HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE"} & found.keys()
    if path not in ("uri", "cgi"):
        assert not found["SCRIPT_NAME"].startswith("//")
    if exchange.refused is not None:
        assert exchange.refused.status.startswith("400")


TARGETS: dict[str, Target] = {
    target.__name__.replace("_", "-"): target
    for target in (
        fastcgi,
        fastcgi_limits,
        fastcgi_client,
        get_values,
        params,
        cgi_head,
        recording,
        dump,
        scgi,
        ajp,
        ajp_forward,
        environ,
    )
}
