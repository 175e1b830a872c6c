"""A blocking FastCGI client over one connection, for tests and tools."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from fulgate.client.head import Head, HeadReader
from fulgate.endpoint import Endpoint
from fulgate.errors import ProtocolError
from fulgate.exchange import Buffer, Role
from fulgate.protocols.fastcgi_client import FastCGIClient, Params, Request

__all__ = ["Answer", "Connection", "call"]

CHUNK: Final = 262144


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. `app_status` and `protocol_status` are those of END_REQUEST (5.5)."""

    head: Head
    body: bytes
    stderr: bytes
    app_status: int
    protocol_status: int

    @property
    def status(self) -> int:
        return self.head.status

    def header(self, name: str, default: str = "") -> str:
        return self.head.get(name, default)


class Connection:
    """One connection to an application. Not for several threads at once.

    `endpoint` is its text form, an Endpoint, or a connected socket, which is then owned. `timeout`
    is in seconds, for connecting and for each wait. Raises OSError when nobody listens,
    ConfigError for an endpoint that one cannot connect to.
    """

    def __init__(self, endpoint: str | Endpoint | socket.socket, timeout: float = 30.0) -> None:
        if isinstance(endpoint, str):
            endpoint = Endpoint.parse(endpoint)
        if isinstance(endpoint, Endpoint):
            endpoint = endpoint.connect(timeout)
        self.socket = endpoint
        self.timeout = timeout
        self.protocol = FastCGIClient()
        self.ended = False  # the application closed the connection
        self._unsent: list[Buffer] = []
        self.socket.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.socket, selectors.EVENT_READ)

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; requests on it are aborted by that."""
        self._selector.close()
        self.socket.close()

    def call(
        self,
        params: Params | Mapping[str, str],
        body: bytes | Iterable[bytes] = b"",
        *,
        role: Role = Role.RESPONDER,
        data: bytes = b"",
        keep: bool = True,
    ) -> Answer:
        """Make a request and wait for its whole answer, while the body is sent.

        `data` is a Filter's FCGI_DATA. Raises ProtocolError for an answer that is malformed, cut
        or a refusal, TimeoutError when nothing moved for `timeout` seconds.
        """
        request = self.begin(params, role=role, keep=keep)
        for piece in (body,) if isinstance(body, bytes) else body:
            self.send(request.send(piece))
        self.send(request.end())
        if role is Role.FILTER:
            self.send(request.send_data(data) + request.end_data())
        return self.answer(request)

    def begin(
        self,
        params: Params | Mapping[str, str],
        *,
        role: Role = Role.RESPONDER,
        keep: bool = True,
        id: int = 0,
    ) -> Request:
        """Send BEGIN_REQUEST and PARAMS. See `FastCGIClient.begin`."""
        pairs: Params = params.items() if isinstance(params, Mapping) else params
        request, out = self.protocol.begin(pairs, role, keep, id)
        self.send(out)
        return request

    def send(self, out: list[Buffer]) -> None:
        """Send bytes that a Request gave. What comes meanwhile is received.

        When the application closed the connection the rest is dropped: its answer may be there.
        """
        self._unsent = [piece for piece in out if len(piece)]
        while self._unsent and not self.ended:
            self.pump()

    def answer(self, request: Request) -> Answer:
        """Wait for the end of a request. Raises as `call`."""
        while not request.ended and not request.cut:
            self.pump()
        if request.cut:
            raise ProtocolError("the connection was closed before END_REQUEST came")
        if not request.whole and not request.aborted:
            raise ProtocolError(f"the request was refused: status {request.protocol_status}")
        found = HeadReader().feed(request.take())
        if found is None:
            raise ProtocolError("the answer ended inside its head")
        head, body = found
        return Answer(
            head, body, request.take_stderr(), request.app_status, request.protocol_status
        )

    def stream(self, request: Request) -> Iterator[bytes]:
        """Give the pieces of STDOUT as they come, head included, to the end of the request.

        Raises ProtocolError when the answer is cut.
        """
        while True:
            if data := request.take():
                yield data
            elif request.ended:
                return
            elif request.cut:
                raise ProtocolError("the connection was closed before END_REQUEST came")
            else:
                self.pump()

    def get_values(
        self, names: Iterable[str] = ("FCGI_MAX_CONNS", "FCGI_MAX_REQS", "FCGI_MPXS_CONNS")
    ) -> dict[str, str]:
        """Ask for values (4.1). Raises ProtocolError when the connection closes instead."""
        self.send(self.protocol.get_values(names))
        while self.protocol.values is None:
            if self.ended:
                raise ProtocolError("the connection was closed before GET_VALUES_RESULT came")
            self.pump()
        return dict(self.protocol.values)

    def pump(self, timeout: float | None = None) -> list[Request]:
        """Wait until something can be sent or received, do it, and give what MOVED.

        Raises TimeoutError after `timeout` seconds (default: the connection's), ProtocolError.
        """
        if self.ended:
            return []
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        self._selector.modify(self.socket, events)
        ready = self._selector.select(self.timeout if timeout is None else timeout)
        if not ready:
            raise TimeoutError("the application neither sent nor took anything")
        moved: list[Request] = []
        if ready[0][1] & selectors.EVENT_READ:
            moved = self._receive()
        if ready[0][1] & selectors.EVENT_WRITE and not self.ended:
            self._send_some()
        return moved

    def _receive(self) -> list[Request]:
        try:
            data = self.socket.recv(CHUNK)
        except BlockingIOError:
            return []
        except ConnectionError:
            data = b""
        if data:
            return self.protocol.feed(data)
        self.ended = True
        return self.protocol.eof()

    def _send_some(self) -> None:
        piece = self._unsent[0]
        try:
            sent = self.socket.send(piece)
        except BlockingIOError:
            return
        except ConnectionError:
            # The application closed; an answer that it wrote before may still be read.
            self._unsent = []
            return
        if sent == len(piece):
            del self._unsent[0]
        else:
            self._unsent[0] = memoryview(piece)[sent:]


def call(
    endpoint: str | Endpoint,
    params: Params | Mapping[str, str],
    body: bytes | Iterable[bytes] = b"",
    *,
    timeout: float = 30.0,
) -> Answer:
    """Make one request over a connection of its own, and wait for the whole answer.

    Raises as `Connection` and `Connection.call`.
    """
    with Connection(endpoint, timeout) as connection:
        return connection.call(params, body, keep=False)
