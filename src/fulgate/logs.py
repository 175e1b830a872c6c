"""The logs that a configuration asks for: Fulgate's own, by stdlib logging under "fulgate", and the
access log.

What came from outside is escaped and never used as a format, so that no request can forge a line.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time

from fulgate.access import AccessLog
from fulgate.config import Config
from fulgate.errors import ConfigError
from fulgate.exchange import Exchange
from fulgate.lines import escape, escape_one, request_id, request_line
from fulgate.targets import INFO, Journal, LogFile, Syslog, address_of_syslog

__all__ = [
    "AccessLog",
    "LogFile",
    "Logs",
    "access_log",
    "escape",
    "log_refusal",
    "open_log",
    "request_id",
    "request_line",
]

logger = logging.getLogger("fulgate")

_control = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def log_refusal(exchange: Exchange) -> None:
    """Say why the server answers a request instead of the application, if it does."""
    refused = exchange.refused
    if refused is not None:
        logger.warning("%s: %s: %s", request_line(exchange), refused.status, refused)


def open_log(path: str, standard: int, config: Config) -> LogFile:
    """Open what a setting names: a file, "-", "syslog" or "journald". Raises ConfigError."""
    if path == "journald":
        return Journal(config.syslog_ident)
    if path == "syslog":
        address = address_of_syslog(config.syslog_to)
        return Syslog(address, config.syslog_facility, config.syslog_ident, config.syslog_format)
    return LogFile(path, standard)


def access_log(config: Config) -> AccessLog | None:
    """Open the access log, if there is to be one. Raises ConfigError."""
    if not config.access_logfile:
        return None
    file = open_log(config.access_logfile, 1, config)
    return AccessLog(file, config.access_log_format, config.log_limit)


class _Formatter(logging.Formatter):
    """One record, one line; what follows (a traceback) is indented and so cannot pass for one."""

    default_msec_format = None
    default_time_format = "%Y-%m-%d %H:%M:%S %z"

    def format(self, record: logging.LogRecord) -> str:
        text = _control.sub(escape_one, super().format(record))
        return text.replace("\n", "\n  ")


class _Handler(logging.Handler):
    """Writes records to a log: `limit` bytes of a line, `rate` records a second, 0 for no limit."""

    def __init__(self, file: LogFile, limit: int, rate: int) -> None:
        super().__init__()
        self.file = file
        self._limit = limit
        self._rate = rate
        self._second = 0
        self._count = 0
        self._left_out = 0
        stamped = not isinstance(file, (Syslog, Journal))  # these know time, process and level
        head = "[%(asctime)s] [%(process)d] [%(levelname)s] " if stamped else ""
        self.setFormatter(_Formatter(head + "[%(threadName)s] %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if self._rate and not self._may_go():
            return
        try:
            text = self.format(record)
        except Exception as error:
            text = f"[{record.levelname}] a record that cannot be formatted: {error!r}: " + escape(
                repr(record.msg)
            )
        if self._left_out:
            text += f"\n  ({self._left_out} records before this one were left out)"
            self._left_out = 0
        data = text.encode("utf-8", "backslashreplace")
        if self._limit:
            data = b"\n".join(_cut(line, self._limit) for line in data.split(b"\n"))
        self._write(data, record)

    def plain(self, text: str) -> None:
        if self._rate and not self._may_go():
            return
        data = _control.sub(escape_one, text).encode("utf-8", "backslashreplace")
        data = _cut(data, self._limit) if self._limit else data
        self.file.write(data if isinstance(self.file, (Syslog, Journal)) else data + b"\n")

    def _may_go(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._count = second, 0
        self._count += 1
        if self._count > self._rate:
            self._left_out += 1
            return False
        return True

    def _write(self, data: bytes, record: logging.LogRecord) -> None:
        priority = _priority(record.levelno)
        if isinstance(self.file, Journal):
            fields = [("LOGGER", record.name), ("THREAD_NAME", record.threadName or "")]
            fields += [("CODE_FILE", record.pathname), ("CODE_LINE", str(record.lineno))]
            fields += [("CODE_FUNC", record.funcName)]
            self.file.write(data, priority, fields)
        elif isinstance(self.file, Syslog):
            for line in data.split(b"\n"):  # a line feed has no place in RFC 3164
                self.file.write(line, priority)
        else:
            self.file.write(data + b"\n")


def _cut(line: bytes, limit: int) -> bytes:
    return line if len(line) <= limit else line[: max(limit - 3, 0)] + b"..."


def _priority(level: int) -> int:
    for least, priority in ((50, 2), (40, 3), (30, 4), (20, INFO)):
        if level >= least:
            return priority
    return 7


class Logs:
    """The logs that a configuration asks for, set up until `close`. Raises ConfigError.

    `access` is for the driver: None when there is no access log.
    """

    def __init__(self, config: Config) -> None:
        self.access: AccessLog | None = None
        self._files = [open_log(config.error_logfile, 2, config)]
        try:
            self.access = access_log(config)
        except ConfigError:
            self._files[0].close()
            raise
        if self.access is not None:
            self._files.append(self.access.file)
        self._handler = _Handler(self._files[0], config.log_limit, config.log_rate)
        self._before = (logger.level, logger.propagate)
        logger.setLevel(config.log_level.upper())
        logger.propagate = False
        logger.addHandler(self._handler)

    def keep_standard(self) -> None:
        """Have what goes to standard output and error go on there, wherever these lead later."""
        for file in self._files:
            file.keep_standard()

    def plain(self, text: str) -> None:
        """Write a line to the log as it is, but for control characters, and its length."""
        self._handler.plain(text)

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
