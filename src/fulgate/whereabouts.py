"""Where a process serves, and where its status is: told to the other commands.

A process keeps that in a file in memory (memfd_create(2)), which whoever may look into the process
finds among its descriptors in /proc. So it goes with the process, leaves nothing on a disk, and can
be found by a process id as well as by an endpoint. It is told on Linux only.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fulgate.endpoint import Endpoint
from fulgate.errors import ConfigError

__all__ = ["Place", "at", "of", "same", "tell"]

NAME = "fulgate-serves"
LINK = f"/memfd:{NAME} "  # what /proc has such a descriptor lead to begins with this


@dataclass(frozen=True)
class Place:
    """Where one pool serves, or a process without pools, and where its status is."""

    bind: tuple[str, ...]  # endpoints, with real ports and absolute paths
    status_bind: tuple[str, ...] = ()
    status_path: str = ""


_told = -1


def _let_go() -> None:
    global _told
    if _told != -1:
        os.close(_told)
        _told = -1


os.register_at_fork(after_in_child=_let_go)  # it is the parent that it tells of


def tell(places: Iterable[Place]) -> None:
    """Tell where this process serves, in place of what it told before."""
    global _told
    document = [
        {
            "bind": [_absolute(one) for one in place.bind],
            "status_bind": [_absolute(one) for one in place.status_bind],
            "status_path": place.status_path,
        }
        for place in places
    ]
    with contextlib.suppress(OSError, AttributeError):  # there is no such thing here
        fd = os.memfd_create(NAME)
        os.write(fd, json.dumps(document).encode())
        _let_go()
        _told = fd


def of(pid: int) -> Sequence[Place]:
    """Give what a process tells; nothing, where it tells nothing. Raises ConfigError."""
    try:
        return _read(pid)
    except PermissionError:
        raise ConfigError(f"process {pid}: only its own user and root may look into it") from None
    except FileNotFoundError:
        raise ConfigError(f"process {pid}: there is no such process, or no /proc") from None


def at(endpoint: str) -> list[int]:
    """Give the ids of the processes that tell that they serve at an endpoint.

    Those of other users only root gets to know of.
    """
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    places = _read(int(name))
                    if any(same(endpoint, one) for place in places for one in place.bind):
                        found.append(int(name))
    return found


def same(one: str, other: str) -> bool:
    """Are two texts the same endpoint, whatever protocol and options they name?"""
    first, second = Endpoint.parse(_absolute(one)), Endpoint.parse(_absolute(other))
    return (first.kind, first.path, first.host, first.port) == (
        second.kind,
        second.path,
        second.host,
        second.port,
    )


def _absolute(text: str) -> str:
    endpoint = Endpoint.parse(text)
    if endpoint.kind != "unix" or os.path.isabs(endpoint.path):
        return text
    return text.replace(endpoint.path, os.path.abspath(endpoint.path), 1)


def _read(pid: int) -> list[Place]:
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, ConfigError):
            if os.readlink(f"{folder}/{name}").startswith(LINK):
                with open(f"{folder}/{name}", "rb") as file:
                    return list(_places(json.loads(file.read())))
    return []


def _places(document: list[dict[str, list[str]]]) -> Iterator[Place]:
    for one in document:
        place = Place(tuple(one["bind"]), tuple(one["status_bind"]), str(one["status_path"]))
        for text in (*place.bind, *place.status_bind):
            Endpoint.parse(text)
        yield place
