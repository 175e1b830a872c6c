"""What a connection keeps of each request where there are several, whichever driver has it."""

from __future__ import annotations

from collections import deque
from typing import Final

from fulgate.drivers.phases import ARRIVING, FOREVER
from fulgate.exchange import Buffer, Exchange

try:
    from mypy_extensions import mypyc_attr
except ImportError:
    from fulgate.attributes import mypyc_attr

__all__ = ["FEED", "UNIT", "Lane", "pieces"]

UNIT: Final = 32768  # bytes of an answer that go at once, before others have a turn
FEED: Final = 65536  # bytes on their way, at which no more is taken out of the lanes
JOIN_BELOW: Final = 4096  # a unit this small is joined with the next one


@mypyc_attr(allow_interpreted_subclasses=True)
class Lane:
    """One request: its phase, its deadline, and what was written for it and has not left.

    A unit is what the protocol gave at once, and nothing of another request comes within it.
    """

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.phase = ARRIVING
        self.deadline = FOREVER
        self.units: deque[bytes] = deque()
        self.unsent = 0  # bytes in them

    def put(self, unit: bytes) -> None:
        self.unsent += len(unit)
        units = self.units
        if units and len(units[-1]) + len(unit) <= JOIN_BELOW:
            units[-1] += unit
        else:
            units.append(unit)

    def take(self) -> bytes:
        unit = self.units.popleft()
        self.unsent -= len(unit)
        return unit

    def clear(self) -> None:
        self.units.clear()
        self.unsent = 0


def pieces(data: Buffer) -> list[Buffer]:
    """Give a piece of an answer in such as make a unit each; at least one."""
    size = len(data)
    if size <= UNIT:
        return [data]
    view = memoryview(data)
    return [view[at : at + UNIT] for at in range(0, size, UNIT)]
