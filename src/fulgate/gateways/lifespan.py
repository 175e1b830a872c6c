"""The application's start and end (ASGI 3.0, "Lifespan Protocol", version 2.0)."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from fulgate.errors import StartupFailed
from fulgate.gateways.asgi_scope import Application, Message

__all__ = ["Lifespan"]

logger = logging.getLogger("fulgate")


class Lifespan:
    """Runs an application's lifespan in a task of its own.

    `mode` is "off": not at all; "auto": an application that raises has none, which is no error;
    "on": one that raises has failed. `state` is what the application puts there at its start.
    """

    def __init__(self, app: Application, mode: str) -> None:
        self.state: dict[str, Any] | None = None
        self._app = app
        self._mode = mode
        self._task: asyncio.Task[None] | None = None
        self._events: asyncio.Queue[Message] | None = None
        self._started: asyncio.Future[str] | None = None  # "" or why it failed
        self._stopped: asyncio.Future[str] | None = None
        self._error: BaseException | None = None

    async def startup(self) -> None:
        """Start the application. Raises StartupFailed with its message."""
        if self._mode == "off":
            return
        loop = asyncio.get_running_loop()
        self._events = asyncio.Queue()
        self._started = loop.create_future()
        self._stopped = loop.create_future()
        self.state = {}
        self._task = loop.create_task(self._run())
        self._events.put_nowait({"type": "lifespan.startup"})
        either: list[asyncio.Future[Any]] = [self._started, self._task]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self._started.done():
            if message := self._started.result():
                raise StartupFailed(f"the application's startup failed: {message}")
            return
        if self._mode == "on":
            error = self._error
            why = repr(error) if error is not None else "it returned without a message"
            raise StartupFailed(f"the application's startup failed: {why}") from error
        if self._error is not None:
            logger.debug("the application has no lifespan: %r", self._error)
        self._task = self.state = None

    async def shutdown(self, timeout: float) -> None:
        """Have the application end; what is not over after `timeout` seconds is cancelled."""
        task, self._task = self._task, None
        if task is None or self._events is None or self._stopped is None:
            return
        self._events.put_nowait({"type": "lifespan.shutdown"})
        either: list[asyncio.Future[Any]] = [self._stopped, task]
        await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if self._stopped.done():
            if message := self._stopped.result():
                logger.error("the application's shutdown failed: %s", message)
        elif not task.done():
            logger.warning("the application's shutdown took longer than %.1f s", timeout)
        if not task.done():
            await asyncio.wait([task], timeout=0.1)
            task.cancel()
            await asyncio.wait([task], timeout=0.1)

    async def _run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        try:
            await self._app(scope, self._receive, self._send)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._error = error
            if self._started is not None and self._started.done() and not self._started.result():
                logger.error("the application's lifespan raised", exc_info=error)

    async def _receive(self) -> Message:
        assert self._events is not None
        return await self._events.get()

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        where, _, what = kind.rpartition(".")
        future = {"lifespan.startup": self._started, "lifespan.shutdown": self._stopped}.get(where)
        if future is None or what not in ("complete", "failed"):
            raise RuntimeError(f"{kind} is no message of a lifespan")
        if future.done():
            raise RuntimeError(f"{kind} came twice")
        future.set_result((message.get("message") or "no reason given") if what == "failed" else "")
