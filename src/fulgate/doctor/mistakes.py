"""What the doctor knows to be wrong: a name for each mistake, which a finding ends with.

docs/doctor.md explains each by its name. The tests make each in a real configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Found", "Mistake"]


class Mistake(StrEnum):
    """A mistake, by the name that is printed."""

    # What has lines that put it right.
    NO_VARIABLES = "no-variables"
    NO_PATH_INFO = "no-path-info"
    SPLIT_PATH = "split-path"
    NO_KEEP_ALIVE = "no-keep-alive"
    SMALL_BODY = "small-body"
    HTTPOXY = "httpoxy"
    NO_HEADERS = "no-headers"
    NO_AUTHORIZATION = "no-authorization"
    SOCKET = "socket"
    FOLDER = "folder"
    OPEN_PORT = "open-port"
    # What is only told.
    LEFT_BEHIND = "left-behind"
    DEAD = "dead"
    BUSY = "busy"
    WRONG = "wrong"
    WAITING = "waiting"
    LOST_THREADS = "lost-threads"


@dataclass(frozen=True)
class Found:
    """One mistake that is there: what was seen, and the lines that put it right."""

    mistake: Mistake
    text: str
    lines: tuple[str, ...] = ()

    @property
    def told(self) -> str:
        """What was seen, with the mistake's name."""
        return f"{self.text} [{self.mistake}]"

    def shown(self) -> list[str]:
        """Give the lines of a report."""
        return [self.told, *("    " + line for line in self.lines)]
