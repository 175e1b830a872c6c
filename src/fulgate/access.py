"""The access log: one line for each request, in the format that the configuration asks for."""

from __future__ import annotations

import json
import logging
import os
import resource
import threading
import time
from collections.abc import Callable
from typing import Any

from fulgate.exchange import Carrier, Exchange, SyncGateway
from fulgate.lines import end, escape, request_id, request_line, text, uri, value, word
from fulgate.logformat import Field, parse
from fulgate.targets import INFO, Journal, LogFile

__all__ = ["AccessLog"]

logger = logging.getLogger("fulgate")

_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_PAGE = resource.getpagesize()

Render = Callable[["_Line"], str]


class _Line:
    """What a line is written of: an exchange that has ended, and how long it took."""

    __slots__ = ("cpu", "duration", "exchange", "log", "now")

    def __init__(self, exchange: Exchange, log: AccessLog) -> None:
        began = exchange.began
        self.exchange = exchange
        self.log = log
        self.duration = max(time.monotonic() - began, 0.0) if began else 0.0
        self.now = time.time()
        self.cpu = log.cpu_of(exchange)  # seconds, user and system

    @property
    def status(self) -> str:
        return self.exchange.status[:3]


class AccessLog:
    """One line for each request. Never raises; raises ConfigError for a format that is none.

    `format` is "combined", "json", or what `fulgate.logformat.parse` reads. `limit` is for the
    bytes of a line, 0 for none. Combined is Apache's format, followed by seconds, id, thread and
    how it ended::

        10.0.0.9 - - [23/Nov/2026:08:51:35 +0000] "GET / HTTP/1.1" 200 12 "-" "curl/8.5.0"
        0.000213 id=5f1c thread=fulgate-1 ok

    Where `wants_cpu`, gateways are to be wrapped by `timed`.
    """

    def __init__(self, file: LogFile, format: str, limit: int = 0, pool: str = "-") -> None:
        self.file = file
        self.pool = pool
        self.wants_cpu = False
        self._limit = limit
        self._stamp = (0, "")  # the last second, and how it is written
        self._cpu = threading.local()
        self._format: Callable[[_Line], bytes]
        if format == "json":
            self._format = self._json
        elif format == "combined":
            self._format = self._combined
        else:
            fields = parse(format)
            self.wants_cpu = any(
                isinstance(field, Field) and field.name in ("cpu", "cpu_percent")
                for field in fields
            )
            quote = _in_json if format.startswith("{") else _in_text
            self._parts = [_literal(f) if isinstance(f, str) else quote(f) for f in fields]
            self._format = self._own

    def __call__(self, exchange: Exchange) -> None:
        """Write the line of an exchange that has ended."""
        file = self.file
        before = file.problem
        line = self._format(_Line(exchange, self))
        if self._limit and len(line) > self._limit and self._format != self._json:
            line = line[: max(self._limit - 4, 0)] + b"...\n"
        file.write(line, INFO, _journal_fields(exchange) if isinstance(file, Journal) else ())
        if (before is None) != (file.problem is None):  # say so once, not for each line
            if file.problem is not None:
                logger.error("cannot write the access log %s: %s", file.path, file.problem.strerror)
            else:
                logger.warning("the access log is written again; %d lines were lost", file.lost)

    def timed(self, gateway: SyncGateway) -> SyncGateway:
        """Give the gateway with the CPU time measured of the thread that a request runs in."""
        mine = self._cpu

        def measured(exchange: Exchange, carrier: Carrier) -> None:
            user, system = _thread_cpu()
            try:
                gateway(exchange, carrier)
            finally:
                after = _thread_cpu()
                mine.exchange = exchange
                mine.used = (after[0] - user, after[1] - system)

        return measured

    def cpu_of(self, exchange: Exchange) -> tuple[float, float]:
        """Give the CPU seconds, user and system, of an exchange that ran in this thread."""
        mine = self._cpu
        if getattr(mine, "exchange", None) is not exchange:
            return (0.0, 0.0)
        mine.exchange = None
        used: tuple[float, float] = mine.used
        return used

    def stamp(self, seconds: float) -> str:
        """Give a time as Apache writes it: 23/Nov/2026:08:51:35 +0000."""
        second = int(seconds)
        known, shown = self._stamp
        if known != second:
            t = time.localtime(second)
            shown = time.strftime(f"%d/{_MONTHS[t.tm_mon - 1]}/%Y:%H:%M:%S %z", t)
            self._stamp = (second, shown)
        return shown

    def _own(self, line: _Line) -> bytes:
        return ("".join([part(line) for part in self._parts]) + "\n").encode("utf-8", "replace")

    def _combined(self, line: _Line) -> bytes:
        exchange, duration = line.exchange, line.duration
        agent = escape(value(exchange, "HTTP_USER_AGENT")) or "-"
        referer = escape(value(exchange, "HTTP_REFERER")) or "-"
        address = word(value(exchange, "REMOTE_ADDR"))
        user = word(value(exchange, "REMOTE_USER"))
        thread = word(threading.current_thread().name)
        shown = (
            f'{address} - {user} [{self.stamp(line.now - duration)}] "{request_line(exchange)}"'
            f' {word(line.status)} {exchange.sent} "{referer}" "{agent}"'
            f" {duration:.6f} id={word(request_id(exchange))} thread={thread} {end(exchange)}\n"
        )
        return shown.encode("ascii")

    def _json(self, line: _Line) -> bytes:
        exchange, duration = line.exchange, line.duration
        start = line.now - duration
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(start))
        found: dict[str, Any] = {
            "time": f"{stamp}.{int(start % 1 * 1000):03d}Z",
            "id": text(request_id(exchange)),
            "remote_addr": text(value(exchange, "REMOTE_ADDR")),
            "remote_user": text(value(exchange, "REMOTE_USER")),
            "method": text(value(exchange, "REQUEST_METHOD")),
            "host": text(value(exchange, "HTTP_HOST")),
            "uri": text(uri(exchange)),
            "protocol": text(value(exchange, "SERVER_PROTOCOL")),
            "status": int(line.status) if _is_number(line.status) else None,
            "bytes": exchange.sent,
            "received": exchange.received,
            "duration": round(duration, 6),
            "referer": text(value(exchange, "HTTP_REFERER")),
            "user_agent": text(value(exchange, "HTTP_USER_AGENT")),
            "pid": os.getpid(),
            "thread": text(threading.current_thread().name),
            "end": end(exchange),
        }
        return _fitting(found, self._limit)


def _fitting(found: dict[str, Any], limit: int) -> bytes:
    """Write an object on a line; texts in it are cut where it would be longer than `limit`."""
    share = limit
    while True:
        line = (json.dumps(found, separators=(",", ":")) + "\n").encode("ascii")
        share //= 2
        if not limit or len(line) <= limit or share < 8:
            return line
        for name, one in found.items():
            if isinstance(one, str) and len(one) > share:
                found[name] = one[: share - 3] + "..."


def _is_number(status: str) -> bool:
    return status.isascii() and status.isdigit()


def _thread_cpu() -> tuple[float, float]:
    usage = resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF))
    return usage.ru_utime, usage.ru_stime


def _rss() -> int:
    """Bytes of memory that the process has; the most that it had, where there is no proc(5)."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _journal_fields(exchange: Exchange) -> list[tuple[str, str]]:
    return [
        ("REQUEST_ID", request_id(exchange)),
        ("REQUEST_METHOD", value(exchange, "REQUEST_METHOD")),
        ("REQUEST_URI", text(uri(exchange))),
        ("HTTP_STATUS", exchange.status[:3]),
        ("REMOTE_ADDR", value(exchange, "REMOTE_ADDR")),
        ("THREAD_NAME", threading.current_thread().name),
    ]


# ---------------------------------------------------------------- fields of a format string


def _literal(shown: str) -> Render:
    return lambda line: shown


def _in_text(field: Field) -> Render:
    find = _finder(field)
    if field.name in ("began", "ended", "question"):
        return find  # our own text
    if field.quoted:
        return lambda line: escape(find(line)) or "-"
    return lambda line: word(find(line))


def _in_json(field: Field) -> Render:
    find = _finder(field)
    # Without the quotes, which stand in the format.
    return lambda line: json.dumps(text(find(line)))[1:-1]


def _finder(field: Field) -> Render:
    """Give what finds a field's value, not escaped yet."""
    name, argument = field.name, field.argument
    if name in _TIMED:
        return _TIMED[name](argument)
    if name == "param":
        return lambda line: value(line.exchange, argument)
    if name == "answer":
        return lambda line: ", ".join(
            held for key, held in line.exchange.headers if key.lower() == argument
        )
    if name == "bytes" and argument:
        return lambda line: str(line.exchange.sent) if line.exchange.sent else argument
    if name == "pid" and argument:
        return lambda line: f"<{os.getpid()}>"
    return _PLAIN[name]


def _path(line: _Line) -> str:
    return uri(line.exchange).partition("?")[0]


def _length(line: _Line) -> str:
    return value(line.exchange, "CONTENT_LENGTH") or "0"


_PLAIN: dict[str, Render] = {
    "address": lambda line: value(line.exchange, "REMOTE_ADDR"),
    "bytes": lambda line: str(line.exchange.sent),
    "cpu": lambda line: f"{sum(line.cpu):.6f}",
    "dash": lambda line: "-",
    "end": lambda line: end(line.exchange),
    "host": lambda line: value(line.exchange, "HTTP_HOST"),
    "id": lambda line: request_id(line.exchange),
    "length": _length,
    "line": lambda line: _raw_line(line.exchange),
    "method": lambda line: value(line.exchange, "REQUEST_METHOD"),
    "parent": lambda line: str(os.getppid()),
    "path": _path,
    "pid": lambda line: str(os.getpid()),
    "pool": lambda line: line.log.pool,
    "protocol": lambda line: value(line.exchange, "SERVER_PROTOCOL"),
    "query": lambda line: value(line.exchange, "QUERY_STRING"),
    "question": lambda line: "?" if value(line.exchange, "QUERY_STRING") else "",
    "received": lambda line: str(line.exchange.received),
    "script": lambda line: value(line.exchange, "SCRIPT_FILENAME"),
    "status": lambda line: line.status,
    "thread": lambda line: threading.current_thread().name,
    "uri": lambda line: uri(line.exchange),
    "user": lambda line: value(line.exchange, "REMOTE_USER"),
}


def _raw_line(exchange: Exchange) -> str:
    method = value(exchange, "REQUEST_METHOD") or "-"
    return f"{method} {uri(exchange) or '-'} {value(exchange, 'SERVER_PROTOCOL')}".rstrip()


def _duration(unit: str) -> Render:
    if unit == "whole":
        return lambda line: str(int(line.duration))
    if unit == "milliseconds":
        return lambda line: str(int(line.duration * 1e3))
    if unit == "microseconds":
        return lambda line: str(int(line.duration * 1e6))
    if unit == "fraction":
        return lambda line: f"{line.duration * 1e3:.3f}"
    return lambda line: f"{line.duration:.{3 if unit == 'php' else 6}f}"


def _cpu_percent(part: str) -> Render:
    def shown(line: _Line) -> str:
        used = {"user": line.cpu[0], "system": line.cpu[1]}.get(part, sum(line.cpu))
        return f"{100 * used / line.duration if line.duration else 0.0:.2f}"

    return shown


def _memory(unit: str) -> Render:
    size = {"kilobytes": 1024, "megabytes": 1048576}.get(unit, 1)
    return lambda line: str(_rss() // size)


def _time_of(ended: bool) -> Callable[[str], Render]:
    def finder(format: str) -> Render:
        def shown(line: _Line) -> str:
            seconds = line.now if ended else line.now - line.duration
            if format and format != "[]":
                return time.strftime(format, time.localtime(seconds))
            stamp = line.log.stamp(seconds)
            return f"[{stamp}]" if format else stamp

        return shown

    return finder


_TIMED: dict[str, Callable[[str], Render]] = {
    "duration": _duration,
    "cpu_percent": _cpu_percent,
    "rss": _memory,
    "began": _time_of(False),
    "ended": _time_of(True),
}
