"""Who answers an exchange where one thread serves all: the asyncio driver and Twisted's."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Answerer"]


class Answerer(Protocol):
    """Called in the thread of the loop or the reactor."""

    def begin(self) -> None: ...
    def moved(self) -> None: ...  # body came, or its end, or it was refused
    def aborted(self) -> None: ...  # it is over, and its connection takes no more
    def pause(self) -> None: ...  # the client reads slowly
    def resume(self) -> None: ...  # there is room again for what is written
