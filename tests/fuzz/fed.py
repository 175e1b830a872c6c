"""The fast parser, fed as a driver feeds it."""

from __future__ import annotations

from collections.abc import Callable

from fulgate.exchange import Buffer, Exchange, Limits
from fulgate.protocols.fastcgi import (
    FastCGI,
)
from tests import model
from tests.model import PARAMS, STDIN
from tests.raw import begin, pair, stream

VALUES = {"FCGI_MAX_CONNS": "100", "FCGI_MAX_REQS": "200", "FCGI_MPXS_CONNS": "0"}
NO_LIMITS = Limits(params_size=0, params=0, body=0)


class Fed:
    """A connection of the fast parser, whose exchanges are answered when they are complete."""

    def __init__(
        self, limits: Limits = NO_LIMITS, multiplex: bool = False, max_requests: int = 65535
    ) -> None:
        self.protocol = FastCGI(limits, VALUES, multiplex=multiplex, max_requests=max_requests)
        self.seen: list[Exchange] = []
        self.bodies: dict[Exchange, bytes] = {}
        self.states: dict[Exchange, object] = {}

    def feed(self, data: bytes) -> list[Exchange]:
        moved = self.protocol.feed(data)
        assert len(set(moved)) == len(moved)
        for exchange in moved:
            if exchange not in self.seen:
                self.seen.append(exchange)
            self.bodies[exchange] = self.bodies.get(exchange, b"") + exchange.take()
            state = self.state(exchange)
            assert self.states.get(exchange) != state, "nothing has moved"
            self.states[exchange] = state
        return moved

    def answer(self) -> None:
        for exchange in self.seen:
            if exchange.complete and not exchange.aborted and not exchange.ended:
                exchange.start("200 OK", [])
                exchange.finish()
                self.protocol.done(exchange)

    @staticmethod
    def state(exchange: Exchange) -> object:
        return (
            exchange.params_ended, exchange.stdin_ended, exchange.received, exchange.aborted,
            exchange.refused is not None,
        )  # fmt: skip

    def facts(self, exchange: Exchange, aborted: bool) -> object:
        pairs = exchange.pairs() if exchange.params_ended else []
        body = self.bodies.get(exchange, b"") + exchange.take()
        assert exchange.received == len(body)
        return (
            exchange.id, exchange.keep, exchange.params_ended, pairs, exchange.params,
            exchange.repeated, body, exchange.stdin_ended, aborted,
        )  # fmt: skip


def complete(id: int = 1, **options: bool) -> bytes:
    return begin(id, **options) + stream(PARAMS, id, pair(b"A", b"1")) + stream(STDIN, id, b"xyz")


def writes(exchange: Exchange) -> list[Callable[[], object]]:
    """All that writes to the answer."""
    return [lambda: exchange.send(b"x"), exchange.finish, exchange.fail]


def read_answer(*buffers: Buffer, id: int = 1) -> model.Answer:
    server = model.WebServer()
    answer = server.expect(id)
    server.read(b"".join(buffers))
    assert server.data == b"", "the last record is cut short"
    return answer
