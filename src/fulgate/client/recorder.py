"""The recorder: a proxy that passes bytes on, and writes down what passes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Final

from fulgate.client.aio import connect
from fulgate.client.recording import (
    CLOSED_BY_APP,
    CLOSED_BY_WEB,
    OPENED,
    TO_APP,
    TO_WEB,
    Writer,
)
from fulgate.endpoint import Endpoint, Listener

__all__ = ["record"]

CHUNK: Final = 65536


async def record(
    listeners: Sequence[Listener],
    endpoint: Endpoint,
    writer: Writer,
    connections: int,
    say: Callable[[str], object],
) -> int:
    """Pass on what comes to the listeners, until SIGINT, SIGTERM or that many connections ended.

    `connections` 0 is no limit. Gives the count of connections.
    """
    recorder = _Recorder(endpoint, writer, connections, say)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, recorder.stop.set)
    accepting = [asyncio.create_task(recorder.accept(listener)) for listener in listeners]
    for listener in listeners:
        say(f"records {endpoint} on {listener.label}")
    await recorder.stop.wait()
    for task in [*accepting, *recorder.tasks]:
        task.cancel()
    await asyncio.gather(*accepting, *recorder.tasks, return_exceptions=True)
    return recorder.count


class _Recorder:
    def __init__(
        self,
        endpoint: Endpoint,
        writer: Writer,
        connections: int,
        say: Callable[[str], object],
    ) -> None:
        self.count = 0
        self.stop = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        self._endpoint = endpoint
        self._writer = writer
        self._most = connections
        self._say = say

    async def accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while not self._most or self.count < self._most:
            sock, _ = await loop.sock_accept(listener)
            self.count += 1
            task = asyncio.create_task(self._serve(sock, self.count))
            self.tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if self._most and self.count >= self._most and not self.tasks:
            self.stop.set()

    async def _serve(self, web: socket.socket, number: int) -> None:
        """Pass one connection on, to its end."""
        with web:
            web.setblocking(False)
            self._writer.add(number, OPENED)
            try:
                app = await connect(self._endpoint)
            except OSError as error:
                self._say(f"cannot connect to {self._endpoint}: {error.strerror or error}")
                self._writer.add(number, CLOSED_BY_APP)
                return
            with app:
                await asyncio.gather(
                    self._pass(web, app, number, TO_APP, CLOSED_BY_WEB),
                    self._pass(app, web, number, TO_WEB, CLOSED_BY_APP),
                )

    async def _pass(
        self, source: socket.socket, to: socket.socket, number: int, what: str, closed: str
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(source, CHUNK):
                self._writer.add(number, what, data)
                await loop.sock_sendall(to, data)
        except ConnectionError:
            pass  # whichever side it was, the other's end comes, too
        self._writer.add(number, closed)
        # Each side learns that the other sends no more; a web server that closed is gone for good.
        for sock, how in ((to, socket.SHUT_WR), (source, socket.SHUT_RD)):
            with contextlib.suppress(OSError):
                sock.shutdown(how)
        if closed == CLOSED_BY_APP:
            with contextlib.suppress(OSError):
                source.shutdown(socket.SHUT_RDWR)
                to.shutdown(socket.SHUT_RDWR)
