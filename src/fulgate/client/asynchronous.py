"""A FastCGI client for asyncio, with a pool of connections to one application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from fulgate.client.aio import AsyncConnection, Pool
from fulgate.client.asked import Asked, HeadOf, Pairs, check_body, check_size, speakable
from fulgate.client.connection import Answer
from fulgate.client.head import HasHead
from fulgate.endpoint import Endpoint
from fulgate.errors import AnswerCut, BindError, ConnectFailed, TimedOut
from fulgate.exchange import Role
from fulgate.protocols.fastcgi_client import Request

__all__ = ["AsyncAnswer", "AsyncClient"]

Body = bytes | Iterable[bytes] | AsyncIterable[bytes]


class AsyncClient:
    """Makes requests to one application, over connections that are kept, in one event loop.

    Settings, methods and errors are those of `fulgate.client.Client`.
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
        self._pool = Pool(self.endpoint, max_idle, idle_timeout, connect_timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that are idle."""
        self._pool.close()

    async def get(
        self,
        target: str,
        *,
        headers: Pairs = (),
        params: Pairs = (),
        script_filename: str = "",
        deadline: float | None = None,
    ) -> Answer:
        """Make a GET request. See `Client.request`."""
        return await self.request(
            "GET",
            target,
            headers=headers,
            params=params,
            script_filename=script_filename,
            deadline=deadline,
        )

    async def request(
        self,
        method: str,
        target: str,
        body: Body = b"",
        *,
        headers: Pairs = (),
        params: Pairs = (),
        script_filename: str = "",
        role: Role = Role.RESPONDER,
        data: bytes = b"",
        deadline: float | None = None,
    ) -> Answer:
        """Make a request and give its whole answer. See `Client.stream` for what is given."""
        async with self.stream(
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
            whole = await answer.read(self.max_body)
        return Answer(answer.head, whole, answer.stderr, answer.app_status, 0)

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        target: str,
        body: Body = b"",
        *,
        headers: Pairs = (),
        params: Pairs = (),
        script_filename: str = "",
        role: Role = Role.RESPONDER,
        data: bytes = b"",
        deadline: float | None = None,
    ) -> AsyncIterator[AsyncAnswer]:
        """Make a request, and give its answer as soon as the head is there: `async with`.

        A `body` that is iterable, also asynchronously, is sent while the answer is read.
        """
        length = len(body) if isinstance(body, bytes) else None
        asked = Asked.of(method, target, headers, params, script_filename, length, role)
        asked.check(self.endpoint, body)
        scope = asyncio.timeout(deadline)
        try:
            async with scope:
                answer = await self._begin(asked, body, data)
                try:
                    yield answer
                finally:
                    await answer.close()
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise TimedOut("there was no whole answer within the deadline") from error

    async def _begin(self, asked: Asked, body: Body, data: bytes) -> AsyncAnswer:
        fresh = False
        while True:
            connection = await self._connect(fresh)
            answer = AsyncAnswer(self._pool, connection, asked, self.timeout)
            try:
                await answer.begin(body, data)
                return answer
            except AnswerCut:
                if not (connection.reused and asked.replayable and not connection.answered):
                    raise
                fresh = True

    async def _connect(self, fresh: bool) -> AsyncConnection:
        try:
            return await self._pool.acquire(fresh=fresh)
        except TimeoutError:
            raise TimedOut(f"{self.endpoint} takes no connection") from None
        except (OSError, BindError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConnectFailed(f"cannot connect to {self.endpoint}: {reason}") from error


class AsyncAnswer(HasHead):
    """An answer that is read while it comes: iterate over it with `async for`.

    What is not read waits in the application. Leaving its `async with` gives the rest up.
    """

    def __init__(
        self, pool: Pool, connection: AsyncConnection, asked: Asked, timeout: float
    ) -> None:
        self.stderr = b""  # what has come of FCGI_STDERR
        self._pool = pool
        self._connection = connection
        self._asked = asked
        self._timeout = timeout
        self._request: Request | None = None
        self._sending: asyncio.Task[None] | None = None
        self._first = b""
        self._size = 0
        self._done = False

    async def begin(self, body: Body, data: bytes) -> None:
        """Send the request, and wait for the head of its answer."""
        connection = self._connection
        connection.on_stderr = self._take_stderr
        try:
            self._request = connection.begin(
                self._asked.params.items(),
                self._pool.keep,
                role=self._asked.role,
                no_body=body == b"" and self._asked.role is not Role.FILTER,
            )
            if not self._request.stdin_ended:
                self._sending = asyncio.create_task(self._send(self._request, body, data))
            reader = HeadOf(self._request)
            while (found := reader.feed(await self._receive())) is None:
                pass
            self.head, self._first = found
        except BaseException:
            await self.close()
            raise

    def _take_stderr(self, data: bytes) -> None:
        self.stderr += data

    async def _send(self, request: Request, body: Body, data: bytes) -> None:
        connection = self._connection
        async for piece in _pieces(body):
            if request.ended or request.cut:
                return
            connection.write(request.send(piece))
            await connection.drain()
        if request.ended or request.cut:
            return  # so that it shows that the body was not all sent
        connection.write(request.end())
        if self._asked.role is Role.FILTER:
            connection.write(request.send_data(data))
            await connection.drain()
            connection.write(request.end_data())

    async def _receive(self) -> bytes:
        """Wait for a piece of STDOUT; what goes wrong with the body goes wrong here."""
        sending = self._sending
        if sending is None:
            return await self._next()
        receiving = asyncio.create_task(self._next())
        try:
            await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                self._sending = None
                sending.result()
            return await receiving
        finally:
            if not receiving.done():
                receiving.cancel()
                await asyncio.wait({receiving})

    async def _next(self) -> bytes:
        try:
            return await self._connection.receive(self._timeout)
        except TimeoutError as error:
            raise TimedOut(str(error)) from None

    @property
    def app_status(self) -> int:
        """END_REQUEST's appStatus, once the answer has ended."""
        return self._request.app_status if self._request else 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Give the pieces of the body as they come. Raises as `Client` says."""
        if self._done:
            return
        data, self._first = self._first, b""
        while data or (data := await self._receive()):
            self._size += len(data)
            yield data
            data = b""
        assert self._request is not None
        check_body(self.head, self._size, self._request, self._asked.bare)
        await self._stop_sending()
        self._done = True
        self._pool.release(self._connection)

    async def read(self, limit: int | None = None) -> bytes:
        """Give the rest of the body. Raises ProtocolError beyond `limit` bytes of it."""
        pieces: list[bytes] = []
        async for piece in self:
            pieces.append(piece)
            check_size(self._size, limit)
        return b"".join(pieces)

    async def _stop_sending(self) -> None:
        sending, self._sending = self._sending, None
        if sending is not None:
            sending.cancel()
            await asyncio.wait({sending})
            if not sending.cancelled():
                sending.exception()  # so that nobody complains that it was not looked at

    async def close(self) -> None:
        """Give the rest up, if there is any."""
        await self._stop_sending()
        if not self._done:
            self._done = True
            self._connection.close()


async def _pieces(body: Body) -> AsyncIterator[bytes]:
    if isinstance(body, bytes):
        yield body
    elif isinstance(body, AsyncIterable):
        async for piece in body:
            yield piece
    else:
        for piece in body:
            yield piece
