"""Where lines of a log go: a file, syslog, or systemd's journal. None of them stops who writes."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import socket
import stat
import struct
import time
from collections.abc import Sequence
from typing import Any

from fulgate.errors import ConfigError
from fulgate.spawned import had_standard

__all__ = ["FACILITIES", "INFO", "Journal", "LogFile", "Syslog", "address_of_syslog"]

INFO = 6  # syslog's severity of that name (RFC 5424, section 6.2.1)
FACILITIES = {
    "kern": 0, "user": 1, "mail": 2, "daemon": 3, "auth": 4, "syslog": 5, "lpr": 6, "news": 7,
    "uucp": 8, "cron": 9, "authpriv": 10, "ftp": 11, "local0": 16, "local1": 17, "local2": 18,
    "local3": 19, "local4": 20, "local5": 21, "local6": 22, "local7": 23,
}  # fmt: skip
JOURNAL = "/run/systemd/journal/socket"
PATIENCE = 0.1  # seconds for a receiver to take a datagram, as long as it took the one before

Address = str | tuple[str, int]


class LogFile:
    """A file that lines are appended to. Raises ConfigError where it cannot be opened.

    `path` "-" is the descriptor `standard`, or nothing if that was closed when the process began. A
    line is written by one write(2) in append mode, so processes may share the file. `write` never
    raises: what cannot be written is counted in `lost`.
    """

    def __init__(self, path: str, standard: int) -> None:
        if path == "-" and not had_standard(standard):
            path = os.devnull
        self.path = path
        self.lost = 0  # lines, in all
        self.problem: OSError | None = None  # of the last write, if that failed
        self._torn = False
        self._own = path != "-"
        self._standard = not self._own
        # reopen would go to another file after chdir
        self._absolute = os.path.abspath(path) if self._own else path
        self._fd = standard
        if self._own:
            try:
                self._fd = self._open()
            except OSError as error:
                raise ConfigError(f"cannot open the log file {path}: {error.strerror}") from error

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
        return os.open(self._absolute, flags, 0o640)

    def write(
        self, line: bytes, priority: int = INFO, fields: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Append a line; its end included. A file keeps no priority and no fields."""
        rest = line if not self._torn else b"\n" + line
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            self.lost += 1
            self.problem = error
            # A part of it may be there: the next line must not be glued to it.
            self._torn = self._torn or len(rest) != len(line)
        else:
            self.problem = None
            self._torn = False

    def keep_standard(self) -> None:
        """Keep to where the standard stream leads now, as it may lead elsewhere later."""
        if self._standard:
            self._standard = False
            self._fd = os.dup(self._fd)

    def reopen(self) -> None:
        """Open the file by its name again. Raises OSError, and then goes on with the old one."""
        if self._own:
            fd = self._open()
            try:
                # The number stays, so a write in another thread hits the old file or the new one.
                os.dup2(fd, self._fd, inheritable=False)
            finally:
                os.close(fd)

    def give_to(self, uid: int, gid: int) -> None:
        """Let a user have the file, who will have to reopen it. -1 leaves as is. Raises OSError."""
        status = os.fstat(self._fd)
        # Not /dev/null, and not what somebody else made on purpose.
        if self._own and stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
            os.fchown(self._fd, uid, gid)

    def close(self) -> None:
        """Close the file; standard streams stay open."""
        if self._own:
            self._own = False
            os.close(self._fd)
            self._fd = -1


class _Datagrams(LogFile):
    """A socket that each line is sent to, as one datagram.

    A receiver that is stuck is waited for once; from then on lines are lost until it takes one.
    """

    _standard = False

    def __init__(self, name: str, address: Address) -> None:
        self.path = name
        self.lost = 0
        self.problem = None
        self._address = address
        self._socket: socket.socket | None = None
        try:
            self._socket = self._connected()
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"cannot reach {name} at {_shown(address)}: {reason}") from error

    def _connected(self) -> socket.socket:
        address: Any = self._address
        family = socket.AF_UNIX
        if isinstance(address, tuple):
            host, port = address
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        sock.setblocking(False)
        return sock

    def _datagram(self, text: bytes, priority: int, fields: Sequence[tuple[str, str]]) -> bytes:
        raise NotImplementedError

    def write(
        self, line: bytes, priority: int = INFO, fields: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Send a line. Never raises."""
        data = self._datagram(line.rstrip(b"\n"), priority, fields)
        try:
            try:
                self._send(data)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EMSGSIZE, errno.ENOBUFS):
                    raise
                self._again()  # it was started anew, so its socket is another
                self._send(data)
        except OSError as error:
            self.lost += 1
            self.problem = error
        else:
            self.problem = None

    def _again(self) -> None:
        before, self._socket = self._socket, self._connected()
        if before is not None:
            before.close()

    def _send(self, data: bytes) -> None:
        sock = self._socket
        if sock is None:
            raise OSError(errno.ENOTCONN, "it was closed")
        try:
            sock.send(data)
        except BlockingIOError:
            poll = select.poll()
            poll.register(sock.fileno(), select.POLLOUT)
            if self.problem is not None or not poll.poll(PATIENCE * 1000):
                raise
            sock.send(data)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            self._send_large(sock, data)

    def _send_large(self, sock: socket.socket, data: bytes) -> None:
        # What is left of it says more than nothing.
        sock.send(data[:1024])

    def reopen(self) -> None:
        """Connect again. Raises OSError."""
        self._again()

    def give_to(self, uid: int, gid: int) -> None:
        """Nothing: a socket is anybody's who has it."""

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Syslog(_Datagrams):
    """syslog, by its own protocol: RFC 3164 to a local socket, RFC 5424 to another machine.

    `address` is as `address_of_syslog` gives it, `facility` one of FACILITIES. Raises ConfigError.
    """

    def __init__(self, address: Address, facility: str, ident: str, rfc: str = "auto") -> None:
        super().__init__("syslog", address)
        self._facility = FACILITIES[facility] << 3
        self._ident = ident
        self._old = rfc == "3164" or (rfc == "auto" and isinstance(address, str))
        self._host = re.sub(r"[^!-~]", "_", socket.gethostname())[:255] or "-"

    def _datagram(self, text: bytes, priority: int, fields: Sequence[tuple[str, str]]) -> bytes:
        now = time.time()
        pid = os.getpid()
        if self._old:
            t = time.localtime(now)
            stamp = (
                f"{_MONTHS[t.tm_mon - 1]} {t.tm_mday:2} {t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}"
            )
            # The local syslogd knows its host, and syslog(3) does not send it.
            host = "" if isinstance(self._address, str) else f"{self._host} "
            head = f"<{self._facility | priority}>{stamp} {host}{self._ident}[{pid}]: "
        else:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
            stamp += f".{int(now % 1 * 1_000_000):06}Z"
            head = f"<{self._facility | priority}>1 {stamp} {self._host} {self._ident} {pid} - - "
        return head.encode("ascii", "replace") + text


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Journal(_Datagrams):
    """systemd's journal, by its native protocol. Raises ConfigError.

    See https://systemd.io/JOURNAL_NATIVE_PROTOCOL/. Fields have names of capitals and digits.
    """

    def __init__(self, ident: str, address: str = JOURNAL) -> None:
        super().__init__("journald", address)
        self._ident = ident

    def _datagram(self, text: bytes, priority: int, fields: Sequence[tuple[str, str]]) -> bytes:
        data = _entry("MESSAGE", text) + b"PRIORITY=%d\n" % priority
        data += _entry("SYSLOG_IDENTIFIER", self._ident.encode())
        for name, value in fields:
            data += _entry(name, value.encode("utf-8", "backslashreplace"))
        return data

    def _send_large(self, sock: socket.socket, data: bytes) -> None:
        """What is too large for a datagram goes as the descriptor of a sealed memory file."""
        fd = os.memfd_create("fulgate", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.write(fd, data)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
            socket.send_fds(sock, [b""], [fd])
        finally:
            os.close(fd)


def _entry(name: str, value: bytes) -> bytes:
    if b"\n" in value:
        return name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
    return name.encode() + b"=" + value + b"\n"


def address_of_syslog(text: str) -> Address:
    """Read "/dev/log" or "udp:HOST:PORT" (IPv6 as udp:[::1]:514). Raises ConfigError."""
    if text.startswith("/"):
        return text
    match = re.fullmatch(
        r"udp:(?:\[([0-9A-Fa-f:.]+)\]|([\w.-]+))(?::([0-9]{1,5}))?", text, re.ASCII
    )
    if match is None or int(match[3] or 514) > 65535:
        raise ConfigError(f"{text!r}: write a path, such as /dev/log, or udp:HOST:PORT")
    return (match[1] or match[2], int(match[3] or 514))


def _shown(address: Address) -> str:
    return address if isinstance(address, str) else f"{address[0]}:{address[1]}"
