"""Answers for the status over HTTP, on a socket of its own, while the application is busy."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import re
import select
import socket
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler
from time import monotonic
from typing import Any, Final

from fulgate.processes.status import Document, Status

__all__ = ["Monitor", "Statsd"]

log = logging.getLogger("fulgate")

MOST: Final = 16  # connections at once
PATIENCE: Final = 10.0  # seconds for a client to ask, and to take the answer
AT_STOP: Final = 2.0  # the same, when we stop
PERIOD: Final = 1.0  # seconds between two reports to statsd
COUNTED: Final = (
    "requests", "errors", "aborted", "refused", "accepted", "sent", "queue_full",
)  # fmt: skip


class Monitor:
    """Serves `status` over HTTP on listening sockets that do not block, in threads of its own.

    Each connection is for one request, and has PATIENCE seconds in all. When there are MOST of
    them, the one that is there for longest makes room: an honest one is over in a moment, so that
    clients that are slow on purpose shut nobody out.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        status: Status,
        allows: Callable[[Any, socket.socket], bool] | None = None,
    ) -> None:
        self.status = status
        self._listeners = listeners
        self._allows = allows
        self._lock = threading.Lock()  # guards what follows, and the closing of its sockets
        self._open: dict[socket.socket, float] = {}  # connections, and when their time is over
        self._ended = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._accept, name="fulgate-status", daemon=True)

    def start(self) -> None:
        """Start answering. Raises RuntimeError where the system gives no thread."""
        self._thread.start()

    def stop(self) -> None:
        """Accept no more, and give who is being answered a moment. The sockets stay open, as other
        processes may have them too.
        """
        self._wake.close()
        self._thread.join(1.0)
        end = monotonic() + AT_STOP
        while self._open and monotonic() < end:
            self._ended.wait(end - monotonic())
            self._ended.clear()

    def _accept(self) -> None:
        poll = select.poll()
        sockets = {sock.fileno(): sock for sock in self._listeners}
        for fd in (*sockets, self._woken.fileno()):
            poll.register(fd, select.POLLIN)
        with self._woken:
            while True:
                ready = [fd for fd, _ in poll.poll(self._end_late())]
                if self._woken.fileno() in ready:
                    return
                for fd in ready:
                    # Another process may have been quicker.
                    with contextlib.suppress(OSError):
                        self._admit(*sockets[fd].accept())

    def _end_late(self) -> float | None:
        """End connections that have had their time; give milliseconds until the next one's is."""
        now = monotonic()
        with self._lock:
            for sock, end in self._open.items():  # in their order
                if end > now:
                    return (end - now) * 1000 + 1
                _shut(sock)
        return 1000 if self._open else None

    def _admit(self, sock: socket.socket, peer: Any) -> None:
        if self._allows is not None and not self._allows(peer, sock):
            sock.close()
            return
        with self._lock:
            if len(self._open) >= 2 * MOST:  # even those that were shut have not ended
                sock.close()
                return
            if len(self._open) >= MOST:
                _shut(list(self._open)[len(self._open) - MOST])
            self._open[sock] = monotonic() + PATIENCE
        try:
            threading.Thread(
                target=self._serve, args=(sock, peer), name="fulgate-status", daemon=True
            ).start()
        except RuntimeError:  # no thread to be had
            self._close(sock)

    def _serve(self, sock: socket.socket, peer: Any) -> None:
        try:
            with contextlib.suppress(OSError):
                sock.settimeout(PATIENCE)
                _Request(sock, peer, self)  # type: ignore[arg-type]
        except Exception:
            log.exception("an error in the server, while it answered for the status")
        finally:
            self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        with self._lock:  # or it would be shut when its number is another's
            del self._open[sock]
            sock.close()
        self._ended.set()


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "Fulgate"
    sys_version = ""
    timeout = PATIENCE
    server: Monitor  # type: ignore[assignment]

    def do_GET(self) -> None:
        if not _is_own_name(self.headers.get("Host", "")):
            # A page of anywhere, whose name leads here, would be allowed to read the answer.
            self.send_error(403, "Ask by address")
            return
        path, _, query = self.path.partition("?")
        reply = self.server.status.answer(path, query, self.headers.get("Accept", ""))
        self.send_response(int(reply.status[:3]), reply.status[4:])
        self.send_header("Content-Type", reply.type)
        self.send_header("Content-Length", str(len(reply.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: who looks each second would fill the log."""


def _is_own_name(host: str) -> bool:
    name = re.sub(r":\d*$", "", host)
    if name in ("", "localhost"):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


class Statsd:
    """Reports to statsd over UDP, each second: counters by what was added, and gauges."""

    def __init__(self, address: tuple[str, int], prefix: str, status: Status) -> None:
        self._address = address
        self._prefix = prefix.rstrip(".") + "." if prefix else ""
        self._status = status
        self._before: dict[str, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fulgate-statsd", daemon=True)

    def start(self) -> None:
        """Start reporting. Raises RuntimeError where the system gives no thread."""
        self._thread.start()

    def stop(self) -> None:
        """Report for the last time, and end."""
        self._over.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        over = False
        while not over:
            over = self._over.wait(PERIOD)
            with contextlib.suppress(OSError):  # the name does not resolve now, or nobody listens
                self._report()

    def _report(self) -> None:
        """Report what was added since the last time, be it by another process that watched."""
        boards = self._status.boards()
        for name, board in boards.items():
            prefix = self._prefix_of(name)
            self._before.update(zip((prefix + c for c in COUNTED), board.reported(), strict=True))
        lines = self.lines(self._status.document(full=False))
        for name, board in boards.items():
            prefix = self._prefix_of(name)
            board.report([int(self._before[prefix + counted]) for counted in COUNTED])
        self._send(lines)

    def _prefix_of(self, pool: str) -> str:
        return f"{self._prefix}{re.sub('[^0-9A-Za-z_-]', '_', pool)}."

    def _send(self, lines: list[str]) -> None:
        family, _, _, _, address = socket.getaddrinfo(
            self._address[0], self._address[1], type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            while lines:
                some, lines = lines[:20], lines[20:]  # a datagram that any network takes
                sock.sendto("\n".join(some).encode(), address)

    def lines(self, document: Document) -> list[str]:
        """Give what to report; counters since the last call."""
        found: list[str] = []
        for pool in document["pools"]:
            prefix = self._prefix_of(pool["name"])
            totals = pool["totals"]
            for name in COUNTED:
                added = totals[name] - self._before.get(prefix + name, 0)
                self._before[prefix + name] = totals[name]
                if added:
                    found.append(f"{prefix}{name}:{added}|c")
            gauges = {
                "workers": pool["workers"]["ready"],
                "threads.busy": pool["threads"]["busy"],
                "threads.idle": pool["threads"]["idle"],
                "queue": pool["queued"],
                "queue_limit": pool["queue_limit"],
                "queue_most": pool["queue_most"],
                "connections": pool["connections"],
                "memory": pool["rss"],
            }
            known = [(name, value) for name, value in gauges.items() if value is not None]
            found += [f"{prefix}{name}:{value}|g" for name, value in known]
        return found
