"""Handlers of twisted.web and of Klein that are coroutines, for tests under twistd."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from pathlib import Path
from typing import Any

from klein import Klein
from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from fulgate.twisted import deferring

reactor: Any = installed
name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="")


def later(value: Any = None) -> Deferred[Any]:
    return deferLater(reactor, 0.01, lambda: value)


async def deferreds(request: Any) -> bytes:
    found = [await later(1), await succeed(2), await deferToThread(int, "3")]
    with contextlib.suppress(LookupError):
        await fail(LookupError("of a deferred"))
    with contextlib.suppress(ZeroDivisionError):
        await later().addCallback(lambda _: 1 // 0)
    request.setHeader("X-Async", "yes")
    return repr(found).encode()


async def both(request: Any) -> bytes:
    """Awaits what is asyncio's and what is Twisted's, in turn and in one another."""
    name.set("both")
    loop = asyncio.get_running_loop()
    await asyncio.sleep(0.01)
    await asyncio.sleep(0)
    found = [await later(1), await asyncio.wait_for(later(2).asFuture(loop), 30)]
    event = asyncio.Event()
    reactor.callLater(0.01, event.set)
    await event.wait()
    future = loop.create_future()
    reactor.callLater(0.01, future.set_result, 3)
    found += [await future, await Deferred.fromFuture(asyncio.ensure_future(asyncio.sleep(0, 4)))]
    found += await asyncio.gather(later(5).asFuture(loop), asyncio.sleep(0.01, 6))
    cancelled: list[Any] = []
    try:
        async with asyncio.timeout(0.05):
            await Deferred(cancelled.append)
    except TimeoutError:
        found.append(len(cancelled))
    with contextlib.suppress(LookupError):
        await fail(LookupError("of a deferred"))
    with contextlib.suppress(ZeroDivisionError):
        await later().addCallback(lambda _: 1 // 0)
    assert name.get() == "both"
    assert asyncio.current_task() is not None
    return repr(found).encode()


async def sleep(request: Any) -> bytes:
    await asyncio.sleep(0.01)
    return b"slept"


async def event(request: Any) -> bytes:
    await asyncio.Event().wait()
    return b""


async def turn(request: Any) -> bytes:
    await asyncio.sleep(0)
    return b"turned"


async def foreign(request: Any) -> bytes:
    loop = asyncio.new_event_loop()
    try:
        await loop.create_future()
    finally:
        loop.close()
    return b""


async def fails(request: Any) -> bytes:
    await later()
    raise LookupError("in a coroutine")


async def text(request: Any) -> Any:
    await later()
    return "text"


async def breaks(request: Any) -> bytes:
    request.write(b"x" * 100_000)
    await later()
    raise LookupError("in the middle")


async def itself(request: Any) -> Any:
    """Ends its answer, and goes on."""
    request.write(b"by ")
    await later()
    request.write(b"itself")
    request.finish()
    await later()
    return NOT_DONE_YET if request.args else b"too late"


async def gone(request: Any) -> bytes:
    """Notes by what it was ended, and what it may still await."""
    report = Path(request.args[b"report"][0].decode())
    waits = request.args[b"waits"][0]
    try:
        Path(f"{report}.began").write_text("began")
        await (asyncio.sleep(60) if waits == b"asyncio" else Deferred())
    except BaseException as error:
        await later()
        report.write_text(f"{type(error).__module__}.{type(error).__name__}")
        if b"fails" in request.args:
            raise LookupError("when it cleaned up") from error
        raise
    return b""


PAGES = (deferreds, both, sleep, event, turn, foreign, fails, text, breaks, itself, gone)


class Page(Resource):
    isLeaf = True

    def render_GET(self, request: Any) -> Any:
        (page,) = [page for page in PAGES if page.__name__.encode() == request.path[1:]]
        return page(request)


klein = Klein()
for page in PAGES:
    klein.route(f"/{page.__name__}")(deferring(page))
