"""The asyncio driver in a thread with a loop of its own: what a Server starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import socket
import threading
from collections.abc import Callable, Sequence

from fulgate.config import Config
from fulgate.drivers.acceptor import Allowed
from fulgate.drivers.aio import Aio
from fulgate.drivers.aio_connection import AsyncGateway
from fulgate.drivers.aio_watch import Watch
from fulgate.drivers.worker import Score
from fulgate.errors import ConfigError, NoThreads
from fulgate.exchange import Exchange, ServerProtocol
from fulgate.listener import PassOn

__all__ = ["AioThread", "loop_factory"]


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Give what makes a loop: `auto` takes uvloop where it is installed. Raises ConfigError."""
    if name != "asyncio":
        try:
            factory: Callable[[], asyncio.AbstractEventLoop]
            factory = importlib.import_module("uvloop").new_event_loop
        except ImportError as error:
            if name == "uvloop":
                raise ConfigError("loop: uvloop is not installed: fulgate[uvloop]") from error
        else:
            return factory
    return asyncio.new_event_loop


class AioThread:
    """Serves listening sockets in a loop in a thread. The arguments are those of `Threads`."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        make_protocol: Callable[[socket.socket], ServerProtocol],
        gateway: AsyncGateway,
        config: Config,
        ended: Callable[[Exchange], None] | None = None,
        allowed: Allowed | None = None,
        score: Score | None = None,
        shared: bool = False,
    ) -> None:
        self._factory = loop_factory(config.loop)
        self.aio = Aio(listeners, make_protocol, gateway, config, ended, allowed, score, shared)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = threading.Event()
        self._over: asyncio.Event | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fulgate-loop", daemon=True)

    @property
    def watch(self) -> Watch:
        """What sees to requests that take long, and tells of all."""
        return self.aio.watch

    def start(self) -> None:
        """Start the thread, and wait until the application's lifespan has started.

        Raises StartupFailed, and NoThreads where the system gives no thread.
        """
        try:
            self._thread.start()
        except RuntimeError as error:
            raise NoThreads(str(error)) from error
        self._started.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=self._factory) as runner:
            self._loop = runner.get_loop()
            try:
                runner.run(self._serve())
            except BaseException as error:
                self._error = error
        self._started.set()

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        await self.aio.start()
        self._started.set()
        await self._over.wait()

    def adopt(self, sock: socket.socket, protocol: ServerProtocol) -> None:
        """Serve a connection that another process has accepted."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.aio.adopt, sock, protocol)

    def stop(self, timeout: float, pass_on: PassOn | None = None) -> bool:
        """Stop as `Aio.stop` does. Called in the loop's own thread, it does not wait for that."""
        if self._loop is None or self._over is None or not self._thread.is_alive():
            return True
        stopping = asyncio.run_coroutine_threadsafe(self._stop(timeout, pass_on), self._loop)
        if threading.current_thread() is self._thread:
            self.aio.stop_accepting()  # whoever called closes the listening sockets
            return False
        clean = stopping.result()
        self._thread.join()
        return clean

    async def _stop(self, timeout: float, pass_on: PassOn | None) -> bool:
        assert self._over is not None
        try:
            return await self.aio.stop(timeout, pass_on)
        finally:
            self._over.set()

    def cut(self) -> None:
        """Have a `stop` that waits give up waiting."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(self.aio.cut)

    def lose(self) -> None:
        """In a forked child: close the descriptors that belong to the parent."""
        for connection in list(self.aio.connections):
            with contextlib.suppress(OSError):
                os.close(connection.socket.fileno())
        self.aio.connections.clear()
