"""Serve an ASGI application in a loop that runs already, beside whatever else lives there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fulgate.config import Config
from fulgate.endpoint import spoken
from fulgate.server import Server as _Server

if TYPE_CHECKING:
    from fulgate.gateways.asgi import Application

__all__ = ["Server", "serve"]

log = logging.getLogger("fulgate")


class Server:
    """Serves an ASGI application in the running loop, as an asynchronous context manager::

        async with Server(app, Config(bind=("tcp:127.0.0.1:0",))) as server:
            print(server.endpoints)

    The arguments are those of `fulgate.Server`; `loop` means nothing here, and no signal handler is
    set. Entering raises ConfigError, BindError and StartupFailed.
    """

    def __init__(self, app: Application, config: Config | None = None, **arguments: Any) -> None:
        self._server = _Server(app, config, **arguments)
        self.config = self._server.config

    @property
    def endpoints(self) -> list[str]:
        """Where it listens, with real ports."""
        return self._server.endpoints

    async def start(self) -> None:
        """Bind, start the application, and accept."""
        try:
            self._driver = self._server.embed()
            await self._driver.start()
        except BaseException:
            self._server.stop(0)
            raise

    async def stop(self, timeout: float | None = None) -> bool:
        """Stop as `fulgate.Server.stop` does, while the loop goes on."""
        try:
            return await self._driver.stop(
                self.config.graceful_timeout if timeout is None else timeout
            )
        finally:
            self._server.stop(0)

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()


async def serve(app: Application, *, bind: str | Iterable[str] = (), **settings: Any) -> None:
    """Serve `app` in the running loop until the task that awaits this is cancelled.

    Then it stops gracefully, within `graceful_timeout`, and the cancellation goes on. `settings`
    are fields of `Config`. Raises ConfigError, BindError and StartupFailed.
    """
    endpoints = (bind,) if isinstance(bind, str) else tuple(bind)
    async with Server(app, bind=endpoints, **settings) as server:
        for endpoint in server.endpoints:
            log.info("serving %s on %s", spoken(endpoint), endpoint)
        await asyncio.Event().wait()
