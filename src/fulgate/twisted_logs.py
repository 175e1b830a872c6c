"""Has what is logged by `logging`, and our access log, end in twistd's log."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator, Sequence

from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from fulgate.logs import LogFile
from fulgate.targets import INFO

__all__ = ["AccessLines", "log_as_before", "log_to_twisted"]


class AccessLines(LogFile):
    """Lines of the access log, which go to twistd's log as the namespace "fulgate.access"."""

    def __init__(self) -> None:
        super().__init__("-", -1)
        self._log = Logger(namespace="fulgate.access")

    def write(
        self, line: bytes, priority: int = INFO, fields: Sequence[tuple[str, str]] = ()
    ) -> None:
        self._log.info("{text}", text=line.decode("utf-8", "replace").rstrip("\n"))


class _ToTwisted(logging.Handler):
    """Hands records of the standard library's logging to twisted.logger."""

    def __init__(self) -> None:
        super().__init__()
        self._here = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(self._here, "emitting", False):
            return  # an observer of Twisted's that logs by `logging` brought it back
        self._here.emitting = True
        try:
            failure = None
            if record.exc_info and record.exc_info[1] is not None:
                kind, error, traceback = record.exc_info
                failure = Failure(error, kind, traceback)
            # The text is a value, and no format of its own: requests put braces into it.
            Logger(namespace=record.name).emit(
                LogLevel.levelWithName(_level_name(record.levelno)),
                "{text}\n{trace}" if failure else "{text}",
                text=record.getMessage(),
                trace=failure.getTraceback().rstrip() if failure else "",
            )
        except Exception:
            self.handleError(record)
        finally:
            self._here.emitting = False


def _level_name(number: int) -> str:
    for limit, name in ((50, "critical"), (40, "error"), (30, "warn"), (20, "info")):
        if number >= limit:
            return name
    return "debug"


# Several services in one process share the handler: it comes with the first and goes with the last.
_users = 0
_handler = _ToTwisted()
_level_before = logging.NOTSET


def log_to_twisted(level: str) -> None:
    """Have `logging`, ours and the application's, end in twistd's log; ours from `level` on."""
    global _users, _level_before
    _users += 1
    if _users > 1:
        return
    ours = logging.getLogger("fulgate")
    _level_before = ours.level
    if not ours.level:
        ours.setLevel(level.upper())
    _follow_standard_streams()
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(_handler)
    elif not any(_stream(handler) in (sys.stdout, sys.stderr) for handler in root.handlers):
        # The application's logging goes where it has been set up to go; ours to both.
        ours.addHandler(_handler)


def log_as_before() -> None:
    """Take one user's share of `log_to_twisted` back."""
    global _users
    _users -= 1
    if not _users:
        ours = logging.getLogger("fulgate")
        ours.setLevel(_level_before)
        for logger in (logging.getLogger(), ours):
            logger.removeHandler(_handler)


def _stream(handler: logging.Handler) -> object:
    if isinstance(handler, logging.StreamHandler):
        stream: object = handler.stream
        return stream
    return None


def _follow_standard_streams() -> None:
    """twistd replaces sys.stdout and sys.stderr, and a daemon's descriptors 1 and 2 lead nowhere:
    logging that was set up before, in a .tac file, would be lost.
    """
    for handler in _handlers():
        if isinstance(handler, logging.StreamHandler):
            if handler.stream is sys.__stderr__:
                handler.setStream(sys.stderr)
            elif handler.stream is sys.__stdout__:
                handler.setStream(sys.stdout)


def _handlers() -> Iterator[logging.Handler]:
    root = logging.getLogger()
    for logger in (root, *list(root.manager.loggerDict.values())):
        if isinstance(logger, logging.Logger):
            yield from list(logger.handlers)
