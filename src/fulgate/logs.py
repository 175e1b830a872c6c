"""The logs: Fulgate's own, by stdlib logging under "fulgate", and one line for each request.

What came from outside is escaped and never used as a format, so that no request can forge a line.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import re
import stat
import threading
import time

from fulgate.config import Config
from fulgate.errors import ConfigError
from fulgate.exchange import Exchange
from fulgate.spawned import had_standard

__all__ = ["AccessLog", "LogFile", "Logs", "escape", "request_id", "request_line"]

logger = logging.getLogger("fulgate")

_special = re.compile(r"[^ !#-\[\]-~]")  # all but printable ASCII without quote and backslash
_short = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_control = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


def _escape_one(match: re.Match[str]) -> str:
    char = match[0]
    code = ord(char)
    return _short.get(char) or (f"\\x{code:02x}" if code < 256 else f"\\U{code:08x}")


def escape(text: str) -> str:
    r"""Make text fit to stand between quotes on one line of a log: `\xNN`, `\"`, `\\`.

    Text of CGI variables is latin-1 (PEP 3333), so what stands there are the bytes that came.
    """
    return _special.sub(_escape_one, text)


def _value(exchange: Exchange, name: str) -> str:
    # The application may have put anything there: the params are its environ.
    value = exchange.params.get(name, "")
    return value if isinstance(value, str) else ""


def _uri(exchange: Exchange) -> str:
    uri = _value(exchange, "REQUEST_URI")
    if not uri:
        uri = _value(exchange, "SCRIPT_NAME") + _value(exchange, "PATH_INFO")
        query = _value(exchange, "QUERY_STRING")
        if query:
            uri += "?" + query
    return uri


def request_line(exchange: Exchange) -> str:
    """Give the request's line, such as "GET /a?b HTTP/1.1", escaped for a log."""
    method = _value(exchange, "REQUEST_METHOD") or "-"
    protocol = _value(exchange, "SERVER_PROTOCOL")
    return escape(f"{method} {_uri(exchange) or '-'} {protocol}".rstrip())


def _new_run() -> None:
    global _run, _numbers
    _run = os.urandom(8).hex()
    _numbers = itertools.count(1)


_run = ""
_numbers = itertools.count(1)
_new_run()
os.register_at_fork(after_in_child=_new_run)  # else two processes would give the same ids


def request_id(exchange: Exchange) -> str:
    """Give the request's id: its param REQUEST_ID or UNIQUE_ID, else one made here, which stays.

    nginx: `fastcgi_param REQUEST_ID $request_id`; Apache's mod_unique_id sends UNIQUE_ID.
    """
    params = exchange.params
    value = params.get("REQUEST_ID") or params.get("UNIQUE_ID") or params.get("fulgate.request_id")
    if isinstance(value, str):
        return value
    made = f"{_run}{next(_numbers):08x}"
    params["fulgate.request_id"] = made
    return made


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

    def write(self, line: bytes) -> None:
        """Append a line; its end included."""
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


class _Formatter(logging.Formatter):
    """One record, one line; what follows (a traceback) is indented and so cannot pass for one."""

    default_msec_format = None
    default_time_format = "%Y-%m-%d %H:%M:%S %z"

    def format(self, record: logging.LogRecord) -> str:
        text = _control.sub(_escape_one, super().format(record))
        return text.replace("\n", "\n  ")


class _Handler(logging.Handler):
    def __init__(self, file: LogFile) -> None:
        super().__init__()
        self.file = file
        self.setFormatter(
            _Formatter("[%(asctime)s] [%(process)d] [%(levelname)s] [%(threadName)s] %(message)s")
        )

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception as error:
            text = f"[{record.levelname}] a record that cannot be formatted: {error!r}: " + escape(
                repr(record.msg)
            )
        self.file.write((text + "\n").encode("utf-8", "backslashreplace"))


class AccessLog:
    """One line for each request, `format` "combined" or "json". Never raises.

    Combined is Apache's format, followed by seconds, id, thread and how it ended::

        10.0.0.9 - - [23/Nov/2026:08:51:35 +0000] "GET / HTTP/1.1" 200 12 "-" "curl/8.5.0"
        0.000213 id=5f1c thread=fulgate-1 ok
    """

    def __init__(self, file: LogFile, format: str) -> None:
        self.file = file
        self._format = self._json if format == "json" else self._combined
        self._stamp = (0, "")  # the last second, and how it is written

    def __call__(self, exchange: Exchange) -> None:
        """Write the line of an exchange that has ended."""
        file = self.file
        before = file.problem
        began = exchange.began
        duration = time.monotonic() - began if began else 0.0
        file.write(self._format(exchange, duration))
        if (before is None) != (file.problem is None):  # say so once, not for each line
            if file.problem is not None:
                logger.error("cannot write the access log %s: %s", file.path, file.problem.strerror)
            else:
                logger.warning("the access log is written again; %d lines were lost", file.lost)

    def _combined(self, exchange: Exchange, duration: float) -> bytes:
        agent = escape(_value(exchange, "HTTP_USER_AGENT")) or "-"
        referer = escape(_value(exchange, "HTTP_REFERER")) or "-"
        address = _word(_value(exchange, "REMOTE_ADDR"))
        user = _word(_value(exchange, "REMOTE_USER"))
        thread = _word(threading.current_thread().name)
        text = (
            f'{address} - {user} [{self._time(duration)}] "{request_line(exchange)}"'
            f' {_word(exchange.status[:3])} {exchange.sent} "{referer}" "{agent}"'
            f" {duration:.6f} id={_word(request_id(exchange))} thread={thread} {_end(exchange)}\n"
        )
        return text.encode("ascii")

    def _time(self, duration: float) -> str:
        second = int(time.time() - duration)
        known, text = self._stamp
        if known != second:
            t = time.localtime(second)
            text = time.strftime(f"%d/{_months[t.tm_mon - 1]}/%Y:%H:%M:%S %z", t)
            self._stamp = (second, text)
        return text

    def _json(self, exchange: Exchange, duration: float) -> bytes:
        start = time.time() - duration
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(start))
        status = exchange.status[:3]
        line = {
            "time": f"{text}.{int(start % 1 * 1000):03d}Z",
            "id": _text(request_id(exchange)),
            "remote_addr": _text(_value(exchange, "REMOTE_ADDR")),
            "remote_user": _text(_value(exchange, "REMOTE_USER")),
            "method": _text(_value(exchange, "REQUEST_METHOD")),
            "host": _text(_value(exchange, "HTTP_HOST")),
            "uri": _text(_uri(exchange)),
            "protocol": _text(_value(exchange, "SERVER_PROTOCOL")),
            "status": int(status) if status.isascii() and status.isdigit() else None,
            "bytes": exchange.sent,
            "received": exchange.received,
            "duration": round(duration, 6),
            "referer": _text(_value(exchange, "HTTP_REFERER")),
            "user_agent": _text(_value(exchange, "HTTP_USER_AGENT")),
            "pid": os.getpid(),
            "thread": _text(threading.current_thread().name),
            "end": _end(exchange),
        }
        return (json.dumps(line, separators=(",", ":")) + "\n").encode("ascii")


def _word(text: str) -> str:
    return escape(text).replace(" ", "\\x20") or "-"


def _text(value: str) -> str:
    """What the bytes behind a CGI variable say in UTF-8, else in latin-1."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        # A lone surrogate is no JSON that others can read.
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _end(exchange: Exchange) -> str:
    if exchange.refused is not None:
        return "refused"
    if exchange.aborted:
        return "aborted"
    return "broken" if exchange.broken else "ok"


class Logs:
    """The logs that a configuration asks for, set up until `close`. Raises ConfigError.

    `access` is for the driver: None when there is no access log.
    """

    def __init__(self, config: Config) -> None:
        self.access: AccessLog | None = None
        self._files = [LogFile(config.error_logfile, 2)]
        if config.access_logfile:
            try:
                self._files.append(LogFile(config.access_logfile, 1))
            except ConfigError:
                self._files[0].close()
                raise
            self.access = AccessLog(self._files[1], config.access_log_format)
        self._handler = _Handler(self._files[0])
        self._before = (logger.level, logger.propagate)
        logger.setLevel(config.log_level.upper())
        logger.propagate = False
        logger.addHandler(self._handler)

    def reopen(self) -> None:
        """Open the files by their names again, after log rotation. Never raises."""
        for file in self._files:
            try:
                file.reopen()
            except OSError as error:
                logger.error("cannot reopen the log file %s: %s", file.path, error.strerror)

    def give_to(self, uid: int, gid: int) -> None:
        """Let a user have the files, before the process becomes that user. Raises ConfigError."""
        for file in self._files:
            try:
                file.give_to(uid, gid)
            except OSError as error:
                raise ConfigError(f"log file {file.path}: {error.strerror}") from error

    def close(self) -> None:
        """Put logging back as it was."""
        logger.removeHandler(self._handler)
        level, logger.propagate = self._before
        logger.setLevel(level)
        for file in self._files:
            with contextlib.suppress(OSError):
                file.close()
