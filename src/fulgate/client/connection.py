"""A blocking FastCGI client over one connection. `fulgate.client.Client` keeps a pool of them."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from fulgate.client.asked import SPOKEN, speakable
from fulgate.client.head import HasHead, Head, HeadReader
from fulgate.endpoint import Endpoint
from fulgate.errors import AnswerCut, ProtocolError, Refused, TimedOut
from fulgate.exchange import Buffer, Role
from fulgate.protocols.ajp_client import AJPClient
from fulgate.protocols.fastcgi_client import FastCGIClient, Params, Request

__all__ = ["Answer", "Connection", "call"]

CHUNK: Final = 262144
CUT: Final = "the connection was closed before the answer had ended"


@dataclass(frozen=True, slots=True)
class Answer(HasHead):
    """A whole answer. `app_status` and `protocol_status` are those of END_REQUEST (5.5)."""

    head: Head
    body: bytes
    stderr: bytes
    app_status: int
    protocol_status: int

    @property
    def text(self) -> str:
        """The body, decoded as UTF-8; what is not UTF-8 is replaced."""
        return self.body.decode("utf-8", "replace")


class Connection:
    """One connection to an application. Not for several threads at once.

    `endpoint` is its text form, an Endpoint, or a connected socket, which is then owned. `timeout`
    is in seconds, for connecting and for each wait. `protocol` is what is spoken over a socket; an
    endpoint says that by itself.
    Raises OSError when nobody listens, ConfigError for an endpoint that one cannot connect to.

    `on_sent` and `on_received`, where they are set, get the bytes that pass.
    """

    on_sent: Callable[[bytes], object] | None = None
    on_received: Callable[[bytes], object] | None = None

    def __init__(
        self,
        endpoint: str | Endpoint | socket.socket,
        timeout: float = 30.0,
        protocol: Callable[[], FastCGIClient] = FastCGIClient,
    ) -> None:
        if not isinstance(endpoint, socket.socket):
            endpoint = speakable(endpoint)
            protocol = SPOKEN[endpoint.protocol]
            endpoint = endpoint.connect(timeout)
        self.socket = endpoint
        self.timeout = timeout
        self.deadline = float("inf")  # of time.monotonic, for all waits together
        self.protocol = protocol()
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
        or a refusal, TimedOut when nothing moved for `timeout` seconds.
        """
        request = self.begin(params, role=role, keep=keep)
        for piece in (body,) if isinstance(body, bytes) else body:
            self.send(request.send(piece))
        self.send(request.end())
        if role is Role.FILTER:
            self.send(request.send_data(data) + request.end_data())
        return self.answer(request)

    @property
    def usable(self) -> bool:
        """Can another request be sent: has nothing come, not even the end, since the last?"""
        if self.ended or self._unsent or not self.protocol.idle:
            return False
        self._selector.modify(self.socket, selectors.EVENT_READ)
        return not self._selector.select(0)

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
        self.put(out)
        while self.behind and not self.ended:
            self.pump()

    def put(self, out: list[Buffer]) -> None:
        """Have bytes that a Request gave sent by the next calls of `pump`."""
        self._unsent += [piece for piece in out if len(piece)]

    @property
    def behind(self) -> bool:
        """Is there enough to send, before more is put?"""
        return bool(self._unsent) or self.protocol.behind > CHUNK

    def answer(self, request: Request) -> Answer:
        """Wait for the end of a request. Raises as `call`."""
        while not request.ended and not request.cut:
            self.pump()
        if request.cut:
            raise AnswerCut(CUT)
        if not request.whole and not request.aborted:
            raise Refused(request.protocol_status)
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
                raise AnswerCut(CUT)
            else:
                self.pump()

    def get_values(
        self, names: Iterable[str] = ("FCGI_MAX_CONNS", "FCGI_MAX_REQS", "FCGI_MPXS_CONNS")
    ) -> dict[str, str]:
        """Ask for values (4.1). Raises ProtocolError when the connection closes instead."""
        self.send(self.protocol.get_values(names))
        while self.protocol.values is None:
            if self.ended:
                raise AnswerCut("the connection was closed before GET_VALUES_RESULT came")
            self.pump()
        return dict(self.protocol.values)

    def ping(self) -> None:
        """Ask an application of AJP whether it is there (CPING), and wait for its answer.

        Raises ValueError where another protocol is spoken, AnswerCut.
        """
        protocol = self.protocol
        if not isinstance(protocol, AJPClient):
            raise ValueError("only AJP has a ping of its own")
        before = protocol.pongs
        self.send(protocol.ping())
        while protocol.pongs == before:
            if self.ended:
                raise AnswerCut("the connection was closed before CPONG came")
            self.pump()

    def pump(self, timeout: float | None = None) -> list[Request]:
        """Wait until something can be sent or received, do it, and give what MOVED.

        Raises TimedOut after `timeout` seconds (default: the connection's), and at the deadline;
        ProtocolError.
        """
        if self.ended:
            return []
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        self._selector.modify(self.socket, events)
        timeout = self.timeout if timeout is None else timeout
        left = self.deadline - time.monotonic()
        ready = self._selector.select(max(min(timeout, left), 0)) if left > 0 else []
        if not ready:
            if left <= timeout:
                raise TimedOut("there was no whole answer within the deadline")
            raise TimedOut(f"the application neither sent nor took anything for {timeout:g} s")
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
            self.ended = True
            return self.protocol.eof(reset=True)
        if data:
            if self.on_received is not None:
                self.on_received(data)
            moved = self.protocol.feed(data)
            self._unsent += self.protocol.out
            self.protocol.out = []
            return moved
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
        if self.on_sent is not None:
            self.on_sent(bytes(piece[:sent]))
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
