"""Endpoints: where to listen, and where to connect.

Written `unix:PATH?mode=660&owner=NAME&group=NAME`, `tcp:HOST:PORT`, `tcp:[IPV6]:PORT`, `fd:N`
or `systemd[:NAME]`, after `scgi+` or `ajp+` where that is spoken there, and not FastCGI.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl

from fulgate.errors import BindError, ConfigError
from fulgate.listener import (
    FASTCGI,
    Listener,
    adopt,
    bind_tcp,
    bind_unix,
    inherited_on_stdin,
    ip_address,
    is_loopback,
    look_up,
    systemd_sockets,
)

__all__ = [
    "DEFAULT",
    "FASTCGI",
    "PROTOCOLS",
    "AllowedClients",
    "Endpoint",
    "Listener",
    "bind_all",
    "check_exposed",
    "spoken",
    "user_of",
]

SO_PEERGROUPS = 59  # Linux; socket has no name for it

DEFAULT = "tcp:127.0.0.1:9000"
"""Where a server listens that is told nothing and inherits nothing."""

PROTOCOLS = {FASTCGI: "FastCGI", "scgi": "SCGI", "ajp": "AJP"}
"""What may stand before an endpoint's "+", and its name in a sentence.

`fulgate.composition` knows which of them it serves.
"""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to listen or to connect. `parse` makes one."""

    kind: str  # "unix", "tcp", "fd" or "systemd"
    path: str = ""  # unix
    mode: int = 0o660  # unix: permissions of the socket's file, as PHP-FPM's listen.mode
    owner: str = ""  # unix: name or number; "": the process's own
    group: str = ""
    host: str = ""  # tcp: name or address, IPv6 without its brackets
    port: int = 0  # tcp: 0 has the system choose, for listening only
    fd: int = -1
    name: str = ""  # systemd: FileDescriptorName=; "" takes all
    protocol: str = FASTCGI  # what is spoken there, of PROTOCOLS

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read an endpoint's text form. Raises ConfigError."""
        if "\0" in text:
            raise ConfigError(f"endpoint {text!r}: NUL is not allowed")
        protocol, plus, plain = text.partition("+")
        if not plus or ":" in protocol:
            return cls._parse(text, text)
        if protocol not in PROTOCOLS:
            known = ", ".join(name + "+" for name in PROTOCOLS)
            raise ConfigError(f"endpoint {text!r}: {protocol + plus!r} is none of {known}")
        return replace(cls._parse(text, plain), protocol=protocol)

    @classmethod
    def _parse(cls, text: str, plain: str) -> Endpoint:
        """Read what has no protocol before it; `text` is for what is said of it."""
        kind, colon, rest = plain.partition(":")
        if kind == "unix" and colon:
            return cls._parse_unix(text, rest)
        if kind == "tcp" and colon:
            return cls._parse_tcp(text, rest)
        if kind == "fd" and rest.isascii() and rest.isdigit():
            return cls("fd", fd=int(rest))
        if kind == "systemd" and (rest or not colon):
            return cls("systemd", name=rest)
        raise ConfigError(
            f"endpoint {text!r}: write unix:PATH, tcp:HOST:PORT, fd:N or systemd[:NAME]"
            + _did_you_mean(plain)
        )

    @classmethod
    def _parse_unix(cls, text: str, rest: str) -> Endpoint:
        path, _, query = rest.partition("?")
        if not path:
            raise ConfigError(f"endpoint {text!r}: the path is missing")
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
        except ValueError:
            raise ConfigError(f"endpoint {text!r}: write ?mode=660&owner=..&group=..") from None
        known = dict(pairs)
        unknown = sorted(known.keys() - {"mode", "owner", "group"})
        if unknown or len(known) != len(pairs):
            raise ConfigError(
                f"endpoint {text!r}: {unknown[0]!r} is unknown; mode, owner and group are known"
                if unknown
                else f"endpoint {text!r}: an option is there twice"
            )
        for name, value in pairs:
            if not value:
                raise ConfigError(f"endpoint {text!r}: {name} has no value")
        mode = known.get("mode", "660")
        if not re.fullmatch("0?[0-7]{3}", mode):
            raise ConfigError(f"endpoint {text!r}: mode is octal, such as 660")
        return cls(
            "unix",
            path=path,
            mode=int(mode, 8),
            owner=known.get("owner", ""),
            group=known.get("group", ""),
        )

    @classmethod
    def _parse_tcp(cls, text: str, rest: str) -> Endpoint:
        match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]]+)):([0-9]{1,5})", rest, re.ASCII)
        if match is None or int(match[3]) > 65535:
            raise ConfigError(
                f"endpoint {text!r}: write tcp:HOST:PORT, IPv6 as tcp:[::1]:PORT, ports to 65535"
            )
        return cls("tcp", host=match[1] or match[2], port=int(match[3]))

    def __str__(self) -> str:
        return self.plain if self.protocol == FASTCGI else f"{self.protocol}+{self.plain}"

    @property
    def plain(self) -> str:
        """Its text form without the protocol."""
        if self.kind == "unix":
            options = [f"mode={self.mode:o}"] if self.mode != 0o660 else []
            options += [f"owner={self.owner}"] if self.owner else []
            options += [f"group={self.group}"] if self.group else []
            return f"unix:{self.path}" + ("?" if options else "") + "&".join(options)
        if self.kind == "tcp":
            host = f"[{self.host}]" if ":" in self.host else self.host
            return f"tcp:{host}:{self.port}"
        if self.kind == "fd":
            return f"fd:{self.fd}"
        return f"systemd:{self.name}" if self.name else "systemd"

    # as a server

    def bind(self, backlog: int = 2048) -> list[Listener]:
        """Listen. A host name, or `systemd`, may stand for several sockets.

        Raises BindError, and ConfigError for an owner or group that does not exist.
        """
        try:
            listeners = self._bind(backlog)
        except ConfigError as error:
            raise ConfigError(f"endpoint {self}: {error}") from None
        except BindError as error:
            raise BindError(f"cannot listen on {self}: {error}") from error.__cause__
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno == errno.EADDRINUSE:
                reason = "the address is in use already"
            raise BindError(f"cannot listen on {self}: {reason}") from error
        for listener in listeners:
            listener.protocol = self.protocol
        return listeners

    def _bind(self, backlog: int) -> list[Listener]:
        if self.kind == "unix":
            return [
                bind_unix(self.path, backlog, mode=self.mode, owner=self.owner, group=self.group)
            ]
        if self.kind == "tcp":
            return bind_tcp(self._resolve(passive=True), backlog)
        if self.kind == "fd":
            return [adopt(self.fd)]
        fds = systemd_sockets(self.name)
        if not fds:
            raise BindError("systemd passed no such socket (LISTEN_FDS, LISTEN_FDNAMES)")
        return [adopt(fd) for fd in fds]

    def exposed(self) -> list[str]:
        """Give the addresses behind a TCP endpoint that other machines can reach.

        [] for a Unix socket, and for inherited sockets (see `Listener.exposed`). Raises BindError
        for a host name that does not resolve.
        """
        if self.kind != "tcp":
            return []
        addresses = [str(sockaddr[0]) for _, sockaddr in self._resolve(passive=True)]
        return [address for address in addresses if not is_loopback(address)]

    def check(self) -> None:
        """Raise ConfigError for an owner or group that does not exist."""
        try:
            look_up(self.owner, self.group)
        except ConfigError as error:
            raise ConfigError(f"endpoint {self}: {error}") from None

    # as a client

    def addresses(self) -> list[tuple[socket.AddressFamily, Any]]:
        """Give what `socket.connect` wants: address families and addresses, to try in order.

        Raises ConfigError for an endpoint that one cannot connect to, BindError for a host name
        that does not resolve.
        """
        if self.kind == "unix":
            return [(socket.AF_UNIX, self.path)]
        if self.kind != "tcp" or not self.port:
            raise ConfigError(f"endpoint {self}: one cannot connect to it")
        return self._resolve(passive=False)

    def connect(self, timeout: float | None = None) -> socket.socket:
        """Connect as a client; `timeout` in seconds also becomes the socket's.

        Raises OSError when nobody listens, TimeoutError, else what `addresses` raises.
        """
        problem: OSError = OSError(errno.EADDRNOTAVAIL, "no address")
        for family, address in self.addresses():
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.settimeout(timeout)
                _connect(sock, address)
                if family != socket.AF_UNIX:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                sock.close()
                problem = error
            else:
                return sock
        raise problem

    def _resolve(self, *, passive: bool) -> list[tuple[socket.AddressFamily, Any]]:
        flags = socket.AI_PASSIVE if passive else 0
        try:
            found = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=flags
            )
        except (OSError, UnicodeError) as error:  # UnicodeError: a label that IDNA refuses
            raise BindError(f"the host {self.host!r} does not resolve: {error}") from error
        return list(dict.fromkeys((family, sockaddr) for family, _, _, _, sockaddr in found))


def _connect(sock: socket.socket, address: Any) -> None:
    """Connect; where the accept queue of a Unix socket is full, wait for it as TCP does."""
    timeout = sock.gettimeout()
    until = time.monotonic() + (timeout or 0)
    while True:
        try:
            sock.connect(address)
            return
        except BlockingIOError:
            if not timeout:
                raise
            if time.monotonic() >= until:
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
            time.sleep(0.005)


class AllowedClients:
    """Who may connect: addresses and networks over TCP (FastCGI 1.0, section 3.2), users otherwise.

    `patterns` are like "10.0.0.7", "10.0.0.0/8" or "fd00::/8", and "uid:www-data" or "uid:33", and
    "gid:www-data" for who is in a group, for Unix sockets, where the kernel says who has connected
    (SO_PEERCRED, unix(7), and SO_PEERGROUPS). Addresses say nothing of Unix sockets, and users and
    groups nothing of TCP; a kind of which none is named is open to everybody. Raises ConfigError.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self.networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self.users: set[int] = set()
        self.groups: set[int] = set()
        for pattern in patterns:
            pattern = pattern.strip()
            if pattern.startswith("uid:"):
                self.users.add(_number(pattern, "user"))
                continue
            if pattern.startswith("gid:"):
                self.groups.add(_number(pattern, "group"))
                continue
            try:
                self.networks.append(ipaddress.ip_network(pattern))
            except ValueError as error:
                raise ConfigError(f"allowed_clients: {error}") from None

    @classmethod
    def of(cls, patterns: Iterable[str], environ: Mapping[str, str] = os.environ) -> AllowedClients:
        """Take `patterns`, or if there are none what FCGI_WEB_SERVER_ADDRS says."""
        patterns = list(patterns)
        if not patterns:
            listed = environ.get("FCGI_WEB_SERVER_ADDRS", "")
            patterns = [part for part in listed.split(",") if part.strip()]
        return cls(patterns)

    def __bool__(self) -> bool:
        """Is TCP restricted, so that other machines may reach it?"""
        return bool(self.networks)

    @property
    def restrict(self) -> bool:
        """Is anybody shut out?"""
        return bool(self.networks or self.users or self.groups)

    def allows(self, peer: Any, sock: socket.SocketType | None = None) -> bool:
        """May whoever has connected go on? `peer` and `sock` are as `socket.accept` gives them."""
        if isinstance(peer, tuple):
            if not self.networks:
                return True
            address = ip_address(peer[0])
            return any(address in network for network in self.networks)
        if not (self.users or self.groups):
            return True
        if sock is None:
            return False
        return user_of(sock) in self.users or not self.groups.isdisjoint(groups_of(sock))


def _number(pattern: str, kind: str) -> int:
    """Give the number of a user or a group."""
    if not hasattr(socket, "SO_PEERCRED"):
        raise ConfigError(f"allowed_clients: {pattern!r} needs SO_PEERCRED, which Linux has")
    name = pattern.partition(":")[2]
    try:
        number = max(look_up(name, "") if kind == "user" else look_up("", name))
    except ConfigError:
        number = -1
    if number < 0:
        raise ConfigError(f"allowed_clients: {pattern!r}: there is no such {kind}")
    return number


def user_of(sock: socket.SocketType) -> int:
    """Give the user who has connected to a Unix socket; -1 when that cannot be told."""
    return _credentials(sock)[0]


def groups_of(sock: socket.SocketType) -> set[int]:
    """Give the groups of who has connected to a Unix socket, his own and all others he is in.

    Only his own of one who is in more than 256, or where that cannot be told.
    """
    found = {_credentials(sock)[1]} - {-1}
    with contextlib.suppress(OSError):  # ERANGE, or a kernel before 4.13
        more = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024)
        found.update(struct.unpack(f"={len(more) // 4}I", more))
    return found


def _credentials(sock: socket.SocketType) -> tuple[int, int]:
    try:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    except (OSError, AttributeError):  # not Linux's
        return -1, -1
    _, uid, gid = struct.unpack("=iII", credentials)
    return uid, gid


def bind_all(
    endpoints: Iterable[str | Endpoint] = (),
    *,
    backlog: int = 2048,
    allowed_clients: AllowedClients | None = None,
    on_exposed: Callable[[str], object] | None = None,
) -> list[Listener]:
    """Listen on all `endpoints`, or on none of them.

    With no endpoints: on the socket inherited on descriptor 0 (FastCGI 1.0, section 2.2), else on
    systemd's, else on `DEFAULT`. A socket that other machines can reach is refused unless
    `allowed_clients` names some; the explanation goes to `on_exposed` instead, where it is given.
    Raises ConfigError, BindError.
    """
    chosen = [Endpoint.parse(e) if isinstance(e, str) else e for e in endpoints]
    if not chosen:
        chosen = [_default_endpoint()]

    listeners: list[Listener] = []
    try:
        for endpoint in chosen:
            check_exposed(endpoint, allowed_clients, on_exposed)
        for endpoint in chosen:
            bound = endpoint.bind(backlog)
            listeners += bound
            if not allowed_clients and endpoint.kind != "tcp":
                for listener in bound:
                    if listener.exposed:
                        _warn(f"{endpoint} is {listener.label}, which", on_exposed)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def check_exposed(
    endpoint: Endpoint,
    allowed_clients: AllowedClients | None = None,
    on_exposed: Callable[[str], object] | None = None,
) -> None:
    """Refuse a TCP endpoint that other machines reach, as `bind_all` does. Raises ConfigError."""
    if not allowed_clients and endpoint.exposed():
        _warn(str(endpoint), on_exposed)


def _warn(what: str, on_exposed: Callable[[str], object] | None) -> None:
    text = (
        f"{what} would let every machine that can connect run requests here: name the web servers"
        " in allowed_clients, or listen on a Unix socket or on 127.0.0.1"
    )
    if on_exposed is None:
        raise ConfigError(text)
    on_exposed(text)


def spoken(endpoint: str) -> str:
    """Give the name of what is spoken at an endpoint, for a sentence."""
    return PROTOCOLS[Endpoint.parse(endpoint).protocol]


def _default_endpoint() -> Endpoint:
    if inherited_on_stdin():
        return Endpoint("fd", fd=0)
    if systemd_sockets(take=False):
        return Endpoint("systemd")
    return Endpoint.parse(DEFAULT)


def _did_you_mean(text: str) -> str:
    if text.startswith(("/", "./")):
        return f"; did you mean 'unix:{text}'?"
    if re.fullmatch(r"(\[[^\]]+\]|[^:/]+):[0-9]+", text):
        return f"; did you mean 'tcp:{text}'?"
    return ""
