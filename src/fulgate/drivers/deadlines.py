"""Requests that take long in the application: tell of them, and end those that are late."""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Final

from fulgate.config import Config
from fulgate.drivers.phases import FOREVER
from fulgate.drivers.worker import Worker
from fulgate.exchange import Exchange
from fulgate.logs import request_id, request_line

__all__ = ["LATE", "Deadlines"]

LATE: Final = "request_timeout"  # why such a request has failed

log = logging.getLogger("fulgate")

PACKAGE: Final = os.path.dirname(os.path.dirname(__file__))
OURS: Final = [os.path.join(PACKAGE, name, "") for name in ("drivers", "gateways")]


class Deadlines:
    """Holds threads to request_slowlog_timeout and request_timeout. For the control thread only."""

    def __init__(self, config: Config) -> None:
        self._slow = config.request_slowlog_timeout or FOREVER
        self._timeout = config.request_timeout or FOREVER
        self._none = self._slow == self._timeout == FOREVER
        self.due = FOREVER  # when to look again, at the latest

    def look(self, workers: Sequence[Worker], now: float) -> bool:
        """See to what has taken too long. Returns whether a request had to be given up."""
        if self._none:
            return False
        due = FOREVER
        gave_up = False
        for worker in workers:
            exchange, connection = worker.exchange, worker.connection
            if exchange is None or connection is None or exchange is worker.late:
                continue
            if exchange is not worker.seen:  # new: the last tick has not found it yet
                due = min(due, now + min(self._slow, self._timeout))
                continue
            lasted = now - worker.began
            if lasted >= self._timeout and exchange is not worker.late:
                self._say(worker, exchange, lasted, "gave up a request")
                worker.late = exchange
                gave_up = True
                exchange.error = LATE
                connection.time_out(exchange)
                if worker.cell is not None:  # its thread may never get to say so
                    worker.cell.note(exchange, lasted)
                continue
            if lasted >= self._slow and exchange is not worker.slow:
                self._say(worker, exchange, lasted, "slow")
                worker.slow = exchange
            limit = self._timeout if exchange is worker.slow else min(self._slow, self._timeout)
            due = min(due, worker.began + limit)
        self.due = due
        return gave_up

    def _say(self, worker: Worker, exchange: Exchange, lasted: float, what: str) -> None:
        """Log a request with the stack of its thread; nothing if it has just ended."""
        line, id = request_line(exchange), request_id(exchange)
        frame = sys._current_frames().get(worker.ident or 0)
        stack = _stack(frame) if frame is not None else ""
        if worker.exchange is not exchange:
            return  # the stack may be that of the next one
        name = worker.thread.name if worker.thread is not None else "?"
        log.warning(
            '%s: %.1f s so far: "%s" id=%s thread=%s\n%s',
            what,
            lasted,
            line,
            id,
            name,
            stack.rstrip(),
        )


def _stack(frame: FrameType) -> str:
    """Give the stack of a thread, from the application on, where it is in that."""
    frames = traceback.extract_stack(frame)
    ours = (threading.__file__, *OURS)
    begin = next((n for n, one in enumerate(frames) if not one.filename.startswith(ours)), 0)
    return "".join(traceback.format_list(frames[begin:]))
