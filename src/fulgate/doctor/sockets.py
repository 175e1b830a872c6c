"""The sockets of a process: which listen, and who waits there. Linux: /proc, sock_diag(7)."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fulgate.endpoint import Endpoint

__all__ = ["Listening", "Sockets", "listening_at", "sockets_of"]

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST_DUMP = 0x301
NLMSG_ERROR, NLMSG_DONE = 2, 3
UDIAG_SHOW_RQLEN = 0x10
UNIX_DIAG_RQLEN = 4
LISTEN = 10  # TCP_LISTEN, which Unix sockets have too
SO_ACCEPTCON = 0x10000  # in /proc/net/unix


@dataclass(frozen=True)
class Listening:
    """A listening socket: where, how many wait to be accepted, and how many may; -1: unknown."""

    where: str
    waiting: int
    most: int

    @property
    def queue(self) -> str:
        """Say how many wait."""
        waiting = "unknown" if self.waiting < 0 else str(self.waiting)
        return f"waiting to be accepted: {waiting}" + (f" of {self.most}" if self.most >= 0 else "")

    @property
    def crowd(self) -> str:
        """Say that connections wait, if some do."""
        of = f" of at most {self.most}" if self.most >= 0 else ""
        if self.waiting <= 0:
            return ""
        return f"{self.waiting} connections{of} wait on {self.where} to be accepted"


@dataclass(frozen=True)
class Sockets:
    """`unread` counts connections that were accepted, and of which something was not read.

    `unseen` says what could not be seen, and why.
    """

    listening: list[Listening]
    connections: int
    unread: int
    unseen: list[str]


def sockets_of(pid: int) -> Sockets:
    """Look at a process's sockets. Raises OSError where its descriptors cannot be seen."""
    inodes = set(_inodes(pid))
    unseen: list[str] = []
    queues: dict[int, tuple[int, int]] = {}
    if os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino:
        try:
            queues = {**_unix_queues(), **_tcp_queues()}
        except OSError as error:
            unseen.append(f"accept queues of Unix sockets: sock_diag says {error.strerror}")
    else:
        unseen.append("accept queues of Unix sockets: it is in another network namespace")
    listening: list[Listening] = []
    unread = seen = 0
    for name in ("tcp", "tcp6"):
        for inode, state, where, waiting in _tcp(pid, name):
            if inode not in inodes:
                continue
            seen += 1
            if state == LISTEN:
                listening.append(Listening(where, *queues.get(inode, (waiting, -1))))
            else:
                unread += waiting > 0
    for inode, flags, path in _unix(pid):
        if inode not in inodes:
            continue
        seen += 1
        if flags & SO_ACCEPTCON:
            listening.append(Listening(f"unix:{path}", *queues.get(inode, (-1, -1))))
        else:
            unread += queues.get(inode, (0, 0))[0] > 0
    return Sockets(listening, seen - len(listening), unread, unseen)


def listening_at(endpoint: Endpoint) -> list[Listening]:
    """Give who listens at an endpoint of this machine. Raises OSError without Linux's sock_diag."""
    pid = os.getpid()
    found: list[Listening] = []
    if endpoint.kind == "unix":
        queues = _unix_queues()
        for inode, flags, path in _unix(pid):
            if flags & SO_ACCEPTCON and path == endpoint.path:
                found.append(Listening(f"unix:{path}", *queues.get(inode, (-1, -1))))
        return found
    queues = _tcp_queues()
    for name in ("tcp", "tcp6"):
        for inode, state, where, waiting in _tcp(pid, name):
            if state == LISTEN and where.endswith(f":{endpoint.port}"):
                found.append(Listening(where, *queues.get(inode, (waiting, -1))))
    return found


def _inodes(pid: int) -> Iterator[int]:
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry.path))
            if match is not None:
                yield int(match[1])


def _lines(pid: int, name: str) -> list[list[str]]:
    try:
        text = Path(f"/proc/{pid}/net/{name}").read_text(errors="surrogateescape")
    except OSError:
        return []
    return [line.split() for line in text.splitlines()[1:]]


def _tcp(pid: int, name: str) -> Iterator[tuple[int, int, str, int]]:
    """Give inode, state, address and receive queue: that of who waits, where it listens."""
    for fields in _lines(pid, name):
        host, port = fields[1].split(":")
        raw = bytes.fromhex(host)
        words = struct.unpack(f">{len(raw) // 4}I", raw)
        packed = struct.pack(f"={len(words)}I", *words)
        family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        text = socket.inet_ntop(family, packed)
        where = f"tcp:[{text}]:" if ":" in text else f"tcp:{text}:"
        waiting = int(fields[4].split(":")[1], 16)
        yield int(fields[9]), int(fields[3], 16), f"{where}{int(port, 16)}", waiting


def _unix(pid: int) -> Iterator[tuple[int, int, str]]:
    for fields in _lines(pid, "unix"):
        yield int(fields[6]), int(fields[3], 16), " ".join(fields[7:])


def _dump(request: bytes) -> Iterator[bytes]:
    """Ask the kernel for all sockets of a kind."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as link:
        link.settimeout(5.0)
        head = struct.pack(
            "=IHHII", 16 + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, 1, 0
        )
        link.send(head + request)
        while True:
            data = link.recv(1 << 16)
            at = 0
            while at + 16 <= len(data):
                length, kind = struct.unpack_from("=IH", data, at)
                if kind == NLMSG_DONE:
                    return
                if kind == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", data, at + 16)[0]
                    raise OSError(code, os.strerror(code))
                yield data[at + 16 : at + length]
                at += (length + 3) & ~3


def _unix_queues() -> dict[int, tuple[int, int]]:
    found: dict[int, tuple[int, int]] = {}
    states = 0xFFFFFFFF
    request = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, states, 0, UDIAG_SHOW_RQLEN, 0, 0)
    for message in _dump(request):
        inode = struct.unpack_from("=I", message, 4)[0]
        at = 16
        while at + 4 <= len(message):
            length, kind = struct.unpack_from("=HH", message, at)
            if kind == UNIX_DIAG_RQLEN:
                found[inode] = struct.unpack_from("=II", message, at + 4)
            at += max(4, (length + 3) & ~3)
    return found


def _tcp_queues() -> dict[int, tuple[int, int]]:
    found: dict[int, tuple[int, int]] = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        request = struct.pack("=BBBBI48x", family, socket.IPPROTO_TCP, 0, 0, 1 << LISTEN)
        for message in _dump(request):
            _, waiting, most, _, inode = struct.unpack_from("=IIIII", message, 52)
            found[inode] = (waiting, most)
    return found
