"""Requests captured from real web servers, replayed: each gives the environ of PEP 3333."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fulgate.cgi import repair
from fulgate.exchange import Exchange, Limits, ServerProtocol
from fulgate.protocols.ajp import AJP
from fulgate.protocols.fastcgi import FastCGI
from fulgate.protocols.scgi import SCGI

CORPUS = Path(__file__).parent / "corpus"
LIMITS = Limits(params_size=262144, params=1000, body=1 << 30)

# Headers that belong to one connection: a server may hand them on or keep them back.
HOP_BY_HOP = {"HTTP_CONNECTION", "HTTP_KEEP_ALIVE", "HTTP_TE", "HTTP_TRANSFER_ENCODING"}


@dataclass(frozen=True)
class Case:
    name: str
    raw: bytes
    facts: dict[str, Any]


def load() -> list[Case]:
    return [
        Case(
            f"{path.parent.name}/{path.stem}",
            path.with_suffix(".bin").read_bytes(),
            json.loads(path.read_text()),
        )
        for path in sorted(CORPUS.glob("*/*.json"))
    ]


CASES = load()

PROTOCOLS: dict[str, Callable[[], ServerProtocol]] = {
    "fastcgi": lambda: FastCGI(LIMITS, {"FCGI_MPXS_CONNS": "0"}),
    "scgi": lambda: SCGI(LIMITS),
    "ajp": lambda: AJP(LIMITS),
}


def whole(raw: bytes) -> Iterator[bytes]:
    yield raw


def byte_by_byte(raw: bytes) -> Iterator[bytes]:
    for at in range(len(raw)):
        yield raw[at : at + 1]


def at_random(raw: bytes) -> Iterator[bytes]:
    """Cut into 2 to 12 pieces, the same ones in each run."""
    cuts = random.Random(raw)
    places = [0, *sorted(cuts.sample(range(1, len(raw)), cuts.randint(1, 11))), len(raw)]
    for start, stop in pairwise(places):
        yield raw[start:stop]


def replay(pieces: Iterator[bytes], name: str) -> tuple[Exchange, bytes]:
    """Feed one request to the parser as a driver does; give it, once complete, and its body."""
    protocol = PROTOCOLS[name]()
    found: list[Exchange] = []
    body = b""
    for piece in pieces:
        for exchange in protocol.feed(piece):
            if exchange not in found:
                found.append(exchange)
            body += exchange.take()
    assert not protocol.closing
    (exchange,) = found
    assert exchange.complete
    return exchange, body


@pytest.mark.parametrize("cut", [whole, byte_by_byte, at_random])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_captured_request(case: Case, cut: Any) -> None:
    exchange, body = replay(cut(case.raw), case.facts.get("protocol", "fastcgi"))

    assert len(body) == case.facts["body"]["length"]
    assert hashlib.sha256(body).hexdigest() == case.facts["body"]["sha256"]
    length = exchange.params.get("CONTENT_LENGTH")

    repair(exchange, **case.facts["settings"])
    environ = exchange.params
    expected = dict(case.facts["environ"])
    if expected.get("CONTENT_LENGTH") == "":
        # Nobody knew it when the request was passed on, or the server counted the whole body.
        expected.pop("CONTENT_LENGTH")
        assert environ.get("CONTENT_LENGTH") in (None, str(len(body))), length
    assert {name: environ.get(name) for name in expected} == expected
    assert all(type(value) is str for value in environ.values())

    headers = {name for name in environ if name.startswith("HTTP_")}
    sent = {name for name in expected if name.startswith("HTTP_")}
    assert headers - HOP_BY_HOP - set(case.facts["server_adds"]) <= sent
    assert exchange.refused is None


@pytest.mark.parametrize("server", ["nginx", "apache", "lighttpd", "haproxy", "caddy", "h2o"])
def test_corpus_has_each_server(server: str) -> None:
    names = {case.name for case in CASES if case.name.startswith(server + "/")}
    assert len(names) >= 15
    kinds = {name.rpartition("-")[2] for name in names}
    assert {"get", "head", "post", "percent", "cookies", "repeated"} <= kinds


@pytest.mark.parametrize(
    "server", ["nginx-scgi", "apache-scgi", "lighttpd-scgi", "apache-ajp", "jk-ajp"]
)
def test_corpus_has_those_that_speak_something_else(server: str) -> None:
    cases = [case for case in CASES if case.name.startswith(server + "/")]
    assert len(cases) >= 12
    assert {case.facts["protocol"] for case in cases} == {server.partition("-")[2]}
    kinds = {case.name.rpartition("-")[2] for case in cases}
    assert {"get", "head", "post", "percent", "cookies", "repeated"} <= kinds
