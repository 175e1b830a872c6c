"""A client of FastCGI, and of SCGI, for threads, with a pool of connections to one application."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from fulgate.client.asked import SPOKEN, Asked, HeadOf, Pairs, check_body, check_size, speakable
from fulgate.client.connection import CUT, Answer, Connection
from fulgate.client.head import HasHead
from fulgate.endpoint import Endpoint
from fulgate.errors import AnswerCut, BindError, ConnectFailed, ProtocolError, TimedOut
from fulgate.exchange import Buffer, Role
from fulgate.protocols.fastcgi_client import Request

__all__ = ["Client", "StreamedAnswer"]


class Client:
    """Makes requests to one application, over connections that are kept. Several threads may.

    `timeout` is how long nothing may move, in seconds, and `connect_timeout` how long a connection
    may take. At most `max_idle` connections wait for their next request, each for `idle_timeout`
    seconds; with 0 the application is asked to close after each answer. `max_body` is how many
    bytes of a body `request` gathers; what is streamed has no limit. Raises ConfigError for an
    endpoint that one cannot connect to.

    `request` and `stream` raise ConnectFailed, TimedOut, AnswerCut, Refused and ProtocolError,
    all of them FulgateError; BadRequest for a path that is none. An answer with any status is an
    answer.
    """

    def __init__(
        self,
        endpoint: str | Endpoint,
        *,
        timeout: float = 30.0,
        connect_timeout: float = 5.0,
        max_idle: int = 8,
        idle_timeout: float = 15.0,
        max_body: int | None = None,
    ) -> None:
        self.endpoint = speakable(endpoint)
        self.timeout = timeout
        self.max_body = max_body
        self.connect_timeout = connect_timeout
        self._max_idle = max_idle
        self._idle_timeout = idle_timeout
        self._idle: list[tuple[float, Connection]] = []  # until when each may be used
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that are idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def get(
        self,
        target: str,
        *,
        headers: Pairs = (),
        params: Pairs = (),
        script_filename: str = "",
        deadline: float | None = None,
    ) -> Answer:
        """Make a GET request. See `request`."""
        return self.request(
            "GET",
            target,
            headers=headers,
            params=params,
            script_filename=script_filename,
            deadline=deadline,
        )

    def request(
        self,
        method: str,
        target: str,
        body: bytes | Iterable[bytes] = b"",
        *,
        headers: Pairs = (),
        params: Pairs = (),
        script_filename: str = "",
        role: Role = Role.RESPONDER,
        data: bytes = b"",
        deadline: float | None = None,
    ) -> Answer:
        """Make a request and give its whole answer. See `stream` for what is given."""
        with self.stream(
            method,
            target,
            body,
            headers=headers,
            params=params,
            script_filename=script_filename,
            role=role,
            data=data,
            deadline=deadline,
        ) as answer:
            whole = answer.read(self.max_body)
        return Answer(answer.head, whole, answer.stderr, answer.app_status, 0)

    def stream(
        self,
        method: str,
        target: str,
        body: bytes | Iterable[bytes] = b"",
        *,
        headers: Pairs = (),
        params: Pairs = (),
        script_filename: str = "",
        role: Role = Role.RESPONDER,
        data: bytes = b"",
        deadline: float | None = None,
    ) -> StreamedAnswer:
        """Make a request, and give its answer as soon as the head is there.

        `target` is a path with its query. `headers` are the HTTP client's; `params` are CGI
        variables, and replace what would be sent; `script_filename` names the script for PHP-FPM.
        A `body` that is iterable has no length, and is sent piece by piece while the answer is
        read; b"" among the pieces waits for something of the answer. `data` is a Filter's file.
        `deadline` is in seconds, for the whole answer.

        What is idempotent is sent again, once, when a kept connection turns out to be closed.
        """
        length = len(body) if isinstance(body, bytes) else None
        asked = Asked.of(method, target, headers, params, script_filename, length, role)
        return self.ask(asked, body, data, deadline)

    def ask(
        self,
        asked: Asked,
        body: bytes | Iterable[bytes] = b"",
        data: bytes = b"",
        deadline: float | None = None,
    ) -> StreamedAnswer:
        """Do what `stream` does, with CGI variables that are there already."""
        asked.check(self.endpoint, body)
        until = float("inf") if deadline is None else time.monotonic() + deadline
        fresh = False
        while True:
            connection = None if fresh else self._take()
            reused = connection is not None
            if connection is None:
                connection = self.connect(until)
            connection.deadline = until
            connection.timeout = self.timeout
            answer = StreamedAnswer(self, connection, asked)
            try:
                answer.begin(body, data)
                return answer
            except AnswerCut:
                if not (reused and asked.replayable and answer.untouched):
                    raise
                fresh = True

    def _take(self) -> Connection | None:
        """Take the connection that was used last, if one is there that can be used again."""
        with self._lock:
            if os.getpid() != self._pid:  # the parent's go on to be the parent's
                self._idle = []
                self._pid = os.getpid()
            now = time.monotonic()
            stale = [one for until, one in self._idle if until <= now]
            self._idle = [pair for pair in self._idle if pair[0] > now]
            found = None
            while self._idle and found is None:
                _, connection = self._idle.pop()
                if connection.usable:
                    found = connection
                else:
                    stale.append(connection)
        for connection in stale:
            connection.close()
        return found

    def connect(self, until: float) -> Connection:
        """Make a connection, up to a time of time.monotonic. Raises ConnectFailed, TimedOut."""
        left = until - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            sock = self.endpoint.connect(min(self.connect_timeout, left))
        except TimeoutError:
            raise TimedOut(f"{self.endpoint} takes no connection") from None
        except (OSError, BindError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConnectFailed(f"cannot connect to {self.endpoint}: {reason}") from error
        return Connection(sock, self.timeout, SPOKEN[self.endpoint.protocol])

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose request went all the way. For `StreamedAnswer`."""
        with self._lock:
            if len(self._idle) < self._max_idle and os.getpid() == self._pid:
                self._idle.append((time.monotonic() + self._idle_timeout, connection))
                return
        connection.close()

    @property
    def keep(self) -> bool:
        """Is the application asked to keep connections?"""
        return self._max_idle > 0


class StreamedAnswer(HasHead):
    """An answer that is read while it comes: iterate over it, within `with` or to its end.

    What is not read waits in the application. Leaving early gives the request up.
    """

    def __init__(self, client: Client, connection: Connection, asked: Asked) -> None:
        self.stderr = b""  # what has come of FCGI_STDERR
        self._client = client
        self._connection = connection
        self._asked = asked
        self._pieces: Iterator[bytes] | None = None  # of the body, to be sent
        self._data = b""
        self._request: Request | None = None
        self._first = b""  # what came of the body with the head
        self._size = 0
        self._done = False

    def begin(self, body: bytes | Iterable[bytes], data: bytes) -> None:
        """Send the request, and wait for the head of its answer."""
        self._data = data
        try:
            self._request, out = self._connection.protocol.begin(
                self._asked.params.items(), self._asked.role, self._client.keep
            )
            if body == b"":  # not an iterator, whose b"" means something else
                out += self._end(self._request)  # all of it in one write
            else:
                self._pieces = iter((body,)) if isinstance(body, bytes) else iter(body)
            self._connection.put([b"".join(out)])
            reader = HeadOf(self._request)
            while (found := reader.feed(self._receive())) is None:
                pass
            self.head, self._first = found
        except BaseException:
            self.close()
            raise

    @property
    def untouched(self) -> bool:
        """Has nothing at all come of the answer?"""
        request = self._request
        return request is None or not (request.received or self.stderr or request.stderr)

    @property
    def app_status(self) -> int:
        """END_REQUEST's appStatus, once the answer has ended."""
        return self._request.app_status if self._request else 0

    def __iter__(self) -> Iterator[bytes]:
        """Give the pieces of the body as they come. Raises as `Client` says."""
        if self._done:
            return
        try:
            data, self._first = self._first, b""
            while data or (data := self._receive()):
                self._size += len(data)
                yield data
                data = b""
            assert self._request is not None
            check_body(self.head, self._size, self._request, self._asked.bare)
            self._finish()
        finally:
            self.close()

    def read(self, limit: int | None = None) -> bytes:
        """Give the rest of the body. Raises ProtocolError beyond `limit` bytes of it."""
        pieces: list[bytes] = []
        for piece in self:
            pieces.append(piece)
            check_size(self._size, limit)
        return b"".join(pieces)

    def _receive(self) -> bytes:
        """Wait for a piece of STDOUT, and send the body meanwhile; b"" at the end."""
        request = self._request
        assert request is not None
        while True:
            if request.stderr:
                self.stderr += request.take_stderr()
            if data := request.take():
                return data
            if request.ended:
                return b""
            if request.cut:
                raise AnswerCut(CUT)
            if self._pieces is None or self._connection.behind:
                self._pump(request)
            elif (piece := next(self._pieces, None)) is not None:
                if piece:
                    self._connection.put(request.send(piece))
                else:
                    self._pump(request)
            else:
                self._pieces = None
                self._connection.put(self._end(request))

    def _pump(self, request: Request) -> None:
        try:
            self._connection.pump()
        except ProtocolError:
            # What follows the end of an answer is not a part of it; but the connection is spoilt.
            if not request.ended:
                raise
            self._connection.ended = True

    def _end(self, request: Request) -> list[Buffer]:
        out = request.end()
        if self._asked.role is Role.FILTER:
            out += request.send_data(self._data) + request.end_data()
        return out

    def _finish(self) -> None:
        # With a body that was not all sent, the next request would be taken for its rest.
        assert self._request is not None
        self._done = True
        if self._pieces is None and self._client.keep and self._connection.usable:
            self._client.give_back(self._connection)
        else:
            self._connection.close()

    def close(self) -> None:
        """Give the rest up, if there is any."""
        if not self._done:
            self._done = True
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
