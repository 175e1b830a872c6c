"""Listening sockets: made, or inherited from whoever started the process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import ipaddress
import os
import pwd
import socket
import stat
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fulgate.errors import BindError, ConfigError
from fulgate.quiesce import quiesce

__all__ = [
    "FASTCGI",
    "Listener",
    "PassOn",
    "adopt",
    "bind_tcp",
    "bind_unix",
    "inherited_on_stdin",
    "ip_address",
    "is_loopback",
    "look_up",
    "systemd_sockets",
]

FASTCGI = "fastcgi"  # what is spoken where nothing else is said
LOCK_PATIENCE = 10.0  # seconds to wait for others who start in the same folder
SYSTEMD_FIRST = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)

PassOn = Callable[[socket.socket, str], None]
"""Takes an accepted connection between requests, and the protocol that is spoken on it."""


class Listener(socket.socket):
    """A listening socket, not blocking, not inheritable.

    `protocol` is what its peers speak, such as "fastcgi" or "scgi".
    `close` also removes the file of a Unix socket, if this process made it and it is still ours.
    """

    protocol = FASTCGI
    bound_by = 0  # the process that bound it to its address of TCP
    _remove: weakref.finalize[[str, int, int, int], Listener] | None = None

    @property
    def label(self) -> str:
        """The endpoint as it came out: "tcp:127.0.0.1:9000" with the real port.

        What is not FastCGI's says so: "scgi+unix:/run/app.sock".
        """
        name = self.getsockname()
        before = "" if self.protocol == FASTCGI else self.protocol + "+"
        if self.family == socket.AF_UNIX:
            return f"{before}unix:{os.fsdecode(name)}"
        host, port = name[:2]
        return f"{before}tcp:[{host}]:{port}" if ":" in host else f"{before}tcp:{host}:{port}"

    @property
    def exposed(self) -> bool:
        """Can other machines reach it?"""
        return self.family != socket.AF_UNIX and not is_loopback(self.getsockname()[0])

    def owns(self, path: str, status: os.stat_result) -> None:
        """Remove the file `path` at close, or when the process exits."""
        self._remove = weakref.finalize(
            self, _remove_socket, path, status.st_dev, status.st_ino, os.getpid()
        )

    def speaking(self, protocol: str) -> Listener:
        """Give another one on the same socket, on which `protocol` is spoken.

        It owns the socket's file from now on. Raises OSError.
        """
        other = Listener(fileno=os.dup(self.fileno()))
        os.set_inheritable(other.fileno(), False)
        other.protocol = protocol
        other.bound_by = self.bound_by
        owned = self._remove.detach() if self._remove is not None else None
        if owned is not None:
            _, remove, arguments, _ = owned
            other._remove = weakref.finalize(other, remove, *arguments)
        return other

    def quiesce(self) -> None:
        """Before the close: have nobody connect any more. Who has can still be accepted.

        Only for who bound it: others may have it, and go on. It takes a round trip, at most 0.2 s.
        """
        if self._remove is not None:
            self._remove()  # a path that is gone leads nobody here
        elif self.bound_by == os.getpid():
            quiesce(self)

    def close(self) -> None:
        # First the file: while the socket is open, no other file can get its inode number.
        if self._remove is not None:
            self._remove()
        super().close()


def ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Read an address as sockets give it, with a scope or mapped into IPv6. Raises ValueError."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def is_loopback(text: str) -> bool:
    """Is it an address that only this machine reaches?"""
    return ip_address(text).is_loopback


# Unix sockets


def bind_unix(
    path: str, backlog: int, *, mode: int = 0o660, owner: str = "", group: str = ""
) -> Listener:
    """Listen on a Unix socket with these permissions; a stale socket's file is replaced.

    Raises BindError and OSError; ConfigError for an owner or group that does not exist.
    """
    path = os.path.abspath(path)  # chdir must not change what `close` removes
    uid, gid = look_up(owner, group)
    listener = Listener(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        with _locked_folder(path, LOCK_PATIENCE):
            _clear(path)
            umask = os.umask(0o777 & ~mode)
            try:
                listener.bind(path)
            finally:
                os.umask(umask)
            listener.owns(path, os.lstat(path))
            if uid != -1 or gid != -1:
                os.chown(path, uid, gid, follow_symlinks=False)
            # Nobody can connect before this, so nobody slips in before the owner is right; and
            # whoever waits for the lock will find somebody listening.
            listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def look_up(owner: str, group: str) -> tuple[int, int]:
    """Give the numbers of a socket file's owner and group; -1 for "". Raises ConfigError."""
    return _uid(owner) if owner else -1, _gid(group) if group else -1


def _uid(name: str) -> int:
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ConfigError(f"the socket's owner: there is no user {name!r}") from None


def _gid(name: str) -> int:
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f"the socket's group: there is no group {name!r}") from None


@contextlib.contextmanager
def _locked_folder(path: str, patience: float) -> Iterator[None]:
    """Keep out others who start, or stop, in the same folder. The lock leaves no file behind."""
    fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BindError("another process has locked its folder (flock)") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(fd)


def _clear(path: str) -> None:
    """Remove a stale socket's file. Raises BindError if it is anything else."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise BindError("there is a file that is not a socket; it was left alone")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(path)
    if code == errno.ECONNREFUSED:
        os.unlink(path)
    elif code in (0, errno.EAGAIN, errno.EPROTOTYPE):
        raise BindError("another process listens there")
    elif code != errno.ENOENT:
        raise BindError("cannot tell whether somebody listens there: " + os.strerror(code))


def _remove_socket(path: str, device: int, inode: int, pid: int) -> None:
    if os.getpid() != pid:
        return  # a forked child: the file is its parent's
    # What cannot be removed is left: as a stale socket it is in nobody's way.
    with contextlib.suppress(OSError, BindError), _locked_folder(path, 1.0):
        status = os.lstat(path)
        if (status.st_dev, status.st_ino) == (device, inode):
            os.unlink(path)


# TCP


def bind_tcp(addresses: Iterable[tuple[socket.AddressFamily, Any]], backlog: int) -> list[Listener]:
    """Listen on all addresses, those apart that this machine does not have. Raises OSError.

    With port 0 only on the first, since two families would get two ports.
    """
    listeners: list[Listener] = []
    missing: OSError | None = None
    try:
        for family, address in addresses:
            try:
                listeners.append(_bind_tcp(family, address, backlog))
            except OSError as error:
                # "localhost" is two addresses, also where one family is switched off.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error
            else:
                if not address[1]:
                    break
        if not listeners and missing is not None:
            raise missing
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _bind_tcp(family: socket.AddressFamily, address: Any, backlog: int) -> Listener:
    listener = Listener(family, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.bound_by = os.getpid()
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


# Inherited sockets


def inherited_on_stdin() -> bool:
    """Is descriptor 0 a listening socket? (FastCGI 1.0, section 2.2.)"""
    return _is_listening(0)


def adopt(fd: int) -> Listener:
    """Make an inherited listening socket our own. Raises BindError if it is none."""
    if not _is_listening(fd):
        raise BindError(f"descriptor {fd} is not a listening stream socket")
    if fd <= 2:
        # Closing 0, 1 or 2 would give the number to whatever is opened next.
        standard, fd = fd, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, standard)
        os.close(null)
    listener = Listener(fileno=fd)
    os.set_inheritable(fd, False)
    listener.setblocking(False)
    return listener


def _is_listening(fd: int) -> bool:
    """FastCGI 1.0, section 2.2: getpeername gives ENOTCONN. The rest tells a stray socket apart."""
    try:
        copy = os.dup(fd)
    except OSError:
        return False
    try:
        sock = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return False
    with sock:
        try:
            sock.getsockname()
            if sock.family not in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
                return False
            if sock.type != socket.SOCK_STREAM or not sock.getsockopt(
                socket.SOL_SOCKET, socket.SO_ACCEPTCONN
            ):
                return False
        except OSError:
            return False
        try:
            sock.getpeername()
        except OSError as error:
            return error.errno == errno.ENOTCONN
    return False


_systemd: list[tuple[int, str]] = []  # what systemd passed and nobody has taken yet


def systemd_sockets(name: str = "", *, take: bool = True) -> list[int]:
    """Give the descriptors that systemd passed, all or those of one name: sd_listen_fds(3).

    Its variables are unset, so that no child takes them for its own. What is taken is not given
    again.
    """
    pid = os.environ.get("LISTEN_PID", "")
    count = os.environ.get("LISTEN_FDS", "")
    if pid.isdecimal() and int(pid) == os.getpid() and count.isdecimal():
        names = os.environ.get("LISTEN_FDNAMES", "").split(":")
        for n in range(int(count)):
            its_name = names[n] if n < len(names) else ""
            _systemd.append((SYSTEMD_FIRST + n, its_name or "unknown"))
        for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
            os.environ.pop(variable, None)
    found = [fd for fd, its_name in _systemd if name in ("", its_name)]
    if take:
        _systemd[:] = [pair for pair in _systemd if pair[0] not in found]
    return found
