"""A FastCGI client for asyncio: one connection, and a pool of idle ones for one endpoint."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from typing import Any, Final

from fulgate.client.asked import SPOKEN, speakable
from fulgate.endpoint import Endpoint
from fulgate.errors import AnswerCut, ProtocolError
from fulgate.exchange import Buffer, Role
from fulgate.protocols.fastcgi_client import FastCGIClient, Params, Request

__all__ = ["AsyncConnection", "Pool", "connect"]

CHUNK: Final = 262144
HIGH_WATER: Final = 262144  # bytes of an answer that nobody took yet, beyond which reading stops
WRITE_BEHIND: Final = 65536  # bytes that the application did not take yet, beyond which to wait


class AsyncConnection:
    """One connection to an application, with one request at a time. `Pool.acquire` makes it.

    It has no asyncio transport: that one forgets what can still be read as soon as a write fails,
    and an application may well answer, and close, before it has read the whole body.
    """

    def __init__(
        self, sock: socket.socket, protocol: Callable[[], FastCGIClient] = FastCGIClient
    ) -> None:
        self.protocol = protocol()
        self.request: Request | None = None
        self.reused = False
        self.closed = False  # by either side
        self.answered = False  # something came since the request began
        self.progress = 0.0  # loop time at which something was sent or received last
        self.expiry: asyncio.TimerHandle | None = None
        self.error: ProtocolError | None = None
        self.on_stderr: Callable[[bytes], object] | None = None
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._unsent = bytearray()
        self._deaf = False  # the application does not read any more; it may still write
        self._reading = True  # is the event loop told to read, and to write?
        self._writing = False
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._loop.add_reader(sock, self._receive_some)

    # for the event loop

    def _receive_some(self) -> None:
        try:
            data = self._socket.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._lost(reset=True)
            return
        if not data:
            self._lost()
            return
        self.answered = True
        self.progress = self._loop.time()
        try:
            self.protocol.feed(data)
        except ProtocolError as error:
            self.error = error
            self.close()
        out, self.protocol.out = self.protocol.out, []
        self.write(out)
        request = self.request
        if request is None:
            self.close()  # nothing was asked for
            return
        if request.stderr and self.on_stderr is not None:
            self.on_stderr(request.take_stderr())
        if self._reading and not self.closed and sum(map(len, request.stdout)) > HIGH_WATER:
            self._reading = False
            self._loop.remove_reader(self._socket)
        self._readable.set()

    def _send_some(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._deaf = True
            sent = len(self._unsent)
        del self._unsent[:sent]
        self.progress = self._loop.time()
        if not self._unsent and self._writing:
            self._writing = False
            self._loop.remove_writer(self._socket)
        self._see_room()

    def _see_room(self) -> None:
        if len(self._unsent) + self.protocol.behind <= WRITE_BEHIND:
            self._writable.set()
        else:
            self._writable.clear()

    def _lost(self, reset: bool = False) -> None:
        self.protocol.eof(reset)
        self.close()

    # for the one who asks

    @property
    def usable(self) -> bool:
        """Can another request be sent: has nothing come, not even the end, since the last?"""
        if self.closed or self._deaf or self._unsent or not self.protocol.idle:
            return False
        # What the event loop has not seen yet.
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def begin(
        self,
        params: Params,
        keep: bool,
        *,
        role: Role = Role.RESPONDER,
        no_body: bool = False,
    ) -> Request:
        """Begin a request; with `no_body` its STDIN ends at once, in the same write."""
        request, out = self.protocol.begin(params, role, keep)
        self.request = request
        self.answered = False
        self.progress = self._loop.time()
        self.write(out + request.end() if no_body else out)
        if self.closed:
            self.protocol.eof()
        return request

    def write(self, out: list[Buffer]) -> None:
        """Send what a Request gave; dropped where the application does not read any more."""
        if self.closed or self._deaf:
            return
        if out:
            self._unsent += b"".join(out)
            if not self._writing:
                self._send_some()
                if self._unsent:
                    self._writing = True
                    self._loop.add_writer(self._socket, self._send_some)
        self._see_room()

    async def drain(self) -> None:
        """Wait until the application has taken enough of what was written."""
        await self._writable.wait()
        self.progress = self._loop.time()

    async def receive(self, timeout: float = 0) -> bytes:
        """Wait for a piece of the request's STDOUT and take it; b"" at the end of the answer.

        Raises TimeoutError when nothing was sent or received for `timeout` seconds (0: never),
        ProtocolError when the answer is malformed or cut.
        """
        request = self.request
        assert request is not None
        while True:
            if data := request.take():
                self._resume()
                return data
            if request.ended:
                return b""
            if self.error is not None:
                raise self.error
            if request.cut:
                raise AnswerCut("the connection was closed before the answer had ended")
            self._readable.clear()
            await self._wait(timeout, self._loop.time())

    async def _wait(self, timeout: float, since: float) -> None:
        while True:
            rest = max(since, self.progress) + timeout - self._loop.time()
            if timeout > 0 and rest <= 0:
                raise TimeoutError(f"the application did nothing for {timeout:g} s")
            try:
                async with asyncio.timeout(rest if timeout > 0 else None):
                    await self._readable.wait()
                return
            except TimeoutError:
                continue  # unless something was sent meanwhile, this was the last round

    def _resume(self) -> None:
        if not self._reading and not self.closed:
            self._reading = True
            self._loop.add_reader(self._socket, self._receive_some)

    def close(self) -> None:
        """Close the connection, with ABORT_REQUEST first where a request is running."""
        if self.closed:
            return
        if self.expiry is not None:
            self.expiry.cancel()
        if self.request is not None and not self.request.cut and not self._unsent:
            self.write(self.request.abort())
        self.closed = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._unsent.clear()
        self._readable.set()
        self._writable.set()


class Pool:
    """Connections to one application; idle ones are kept, for one event loop at a time.

    At most `max_idle` wait, each for `idle_timeout` seconds; with 0 none is kept, and the
    application is told to close after each answer. Raises ConfigError for an endpoint that one
    cannot connect to.
    """

    def __init__(
        self,
        endpoint: str | Endpoint,
        max_idle: int = 8,
        idle_timeout: float = 15.0,
        connect_timeout: float = 5.0,
    ) -> None:
        self.endpoint = speakable(endpoint)
        self.keep = max_idle > 0
        self._max_idle = max_idle
        self._idle_timeout = idle_timeout
        self._connect_timeout = connect_timeout
        self._idle: list[AsyncConnection] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    async def acquire(self, *, fresh: bool = False) -> AsyncConnection:
        """Take an idle connection (not if `fresh`), or make one.

        Raises OSError when nobody listens, TimeoutError.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._idle = []  # those of another loop are of no use here
            self._loop = loop
        while self._idle and not fresh:
            connection = self._idle.pop()
            if connection.expiry is not None:
                connection.expiry.cancel()
            if connection.usable:
                connection.reused = True
                return connection
            connection.close()
        async with asyncio.timeout(self._connect_timeout or None):
            sock = await connect(self.endpoint)
            return AsyncConnection(sock, SPOKEN[self.endpoint.protocol])

    def release(self, connection: AsyncConnection) -> None:
        """Give a connection back: to be kept if its request went all the way, else to be closed."""
        request = connection.request
        if (
            request is None
            or not (request.keep and request.whole and request.stdin_ended)
            or len(self._idle) >= self._max_idle
            or not connection.usable
        ):
            connection.close()
            return
        connection.request = connection.on_stderr = None
        connection.error = None
        self._idle.append(connection)
        loop = asyncio.get_running_loop()
        connection.expiry = loop.call_later(self._idle_timeout, self._expire, connection)

    def _expire(self, connection: AsyncConnection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
            connection.close()

    def close(self) -> None:
        """Close the idle connections."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


async def connect(endpoint: Endpoint) -> socket.socket:
    """Connect, and give a socket that does not block. Raises OSError when nobody listens."""
    if endpoint.kind == "unix":
        addresses: list[tuple[int, Any]] = [(socket.AF_UNIX, endpoint.path)]
    else:
        found = await asyncio.get_running_loop().getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM
        )
        addresses = [(family, address) for family, _, _, _, address in found]
    problem: OSError | None = None
    for family, address in addresses:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await _connect_one(sock, address)
        except OSError as error:
            sock.close()
            problem = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise problem or OSError(f"no address for {endpoint}")


async def _connect_one(sock: socket.socket, address: Any) -> None:
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, address)
        return
    while True:
        try:
            sock.connect(address)
            return
        except BlockingIOError:
            # The accept queue is full. The event loop's own sock_connect would take this for a
            # connection in progress, and then for one that succeeded.
            await asyncio.sleep(0.01)
