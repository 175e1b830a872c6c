"""What a load generator is to do, and the connections that it does it on. No I/O of its own."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from typing import Any, Final

from fulgate.client.bench_answer import AnswerReader

__all__ = ["NEVER", "Plan", "Slot"]

NEVER: Final = 1 << 62  # ns


@dataclass(frozen=True)
class Plan:
    """What a load generator is to do; `share` splits it among several."""

    family: int  # of the address, which is what socket.connect takes
    address: Any
    request: bytes  # the whole request, as it goes onto the wire
    connections: int = 32
    keep: bool = True  # does the request ask to keep the connection?
    bare: bool = False  # the method is HEAD
    count: int = 0  # requests in all; 0: as many as fit in the time
    seconds: float = 0.0  # 0: until `count` are done
    rate: float = 0.0  # requests a second; 0: the next as soon as a connection is free
    delay: float = 0.0  # seconds until the first is due, with a rate
    timeout: float = 10.0  # seconds for an answer

    def share(self, number: int, of: int) -> Plan:
        """Give the part of it that generator `number`, from 0, of `of` does."""
        return replace(
            self,
            connections=_part(self.connections, number, of),
            count=_part(self.count, number, of),
            rate=self.rate / of,
            delay=number / self.rate if self.rate else 0.0,
        )


def _part(whole: int, number: int, of: int) -> int:
    return whole * (number + 1) // of - whole * number // of


class Slot:
    """One of the connections, by whatever sockets it is made one after the other."""

    __slots__ = (
        "asked", "connecting", "deaf", "fd", "reader", "retry_at", "served", "since", "sock",
        "unsent", "used",
    )  # fmt: skip

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.fd = -1
        self.connecting = False
        self.deaf = False  # the application does not read any more; it may still have answered
        self.used = False  # an answer came on this socket
        self.asked = False  # a request was begun on any, and an answer came on any
        self.served = False
        self.since = NEVER  # when a request was due that waits for the connection to be made
        self.unsent: memoryview | None = None  # of the request
        self.reader: AnswerReader | None = None  # of an answer that is read
        self.retry_at = NEVER
