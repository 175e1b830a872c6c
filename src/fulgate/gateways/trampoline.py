"""Runs a coroutine that awaits Twisted's Deferreds, and asyncio's futures where there is a loop.

A Deferred yields itself, and asyncio's tasks take only futures; a future yields itself, and
Twisted's drivers of coroutines take only Deferreds. In the reactor on asyncio the coroutine runs in
a task, which `asyncio.timeout` and its like need, and what is Twisted's is made a future for it.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final, TypeVar

from twisted.internet import defer
from twisted.internet.defer import Deferred

__all__ = ["deferred_of"]

T = TypeVar("T")

HINT: Final = "asyncio's loop does not run: it needs the reactor on it (twistd --reactor=asyncio)"

_tasks: set[asyncio.Task[Any]] = set()  # a loop itself keeps only weak references


def deferred_of(coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
    """Run a coroutine, and give a Deferred of what it returns; to cancel that cancels it.

    With asyncio's loop the coroutine begins in the loop's next turn, and gets
    `asyncio.CancelledError`; without one it begins at once, and gets what the Deferred that it
    awaits makes of being cancelled. The Deferred given has Twisted's CancelledError either way.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return Deferred.fromCoroutine(_without_loop(coroutine))
    task = loop.create_task(_with_loop(coroutine, loop))
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return Deferred.fromFuture(task).addErrback(_translated)


def _translated(failure: Any) -> Any:
    if failure.check(asyncio.CancelledError):
        raise defer.CancelledError
    return failure


async def _with_loop(coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    def wait(awaited: Any) -> Generator[Any, Any, None]:
        if isinstance(awaited, Deferred):
            yield from _fired(awaited, loop)
        else:
            yield awaited

    return await _run(coroutine, wait)


async def _without_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    def wait(awaited: Any) -> Generator[Any, Any, None]:
        if not isinstance(awaited, Deferred):
            what = "asyncio.sleep(0)" if awaited is None else repr(awaited)
            raise RuntimeError(f"{what} is awaited: {HINT}")
        yield awaited

    try:
        return await _run(coroutine, wait)
    except (AttributeError, RuntimeError) as error:
        if not _wants_loop(error):
            raise
        raise RuntimeError(f"{error}: {HINT}").with_traceback(error.__traceback__) from error


@types.coroutine
def _run(
    coroutine: Coroutine[Any, Any, T], wait: Callable[[Any], Generator[Any, Any, None]]
) -> Generator[Any, Any, T]:
    """Run a coroutine, and have `wait` wait for what it awaits."""
    raised: BaseException | None = None
    while True:
        try:
            awaited = coroutine.send(None) if raised is None else coroutine.throw(raised)
        except StopIteration as end:
            result: T = end.value
            return result
        raised = None
        try:
            yield from wait(awaited)
        except BaseException as error:  # CancelledError, and GeneratorExit, are the coroutine's
            raised = error


def _fired(deferred: Deferred[Any], loop: asyncio.AbstractEventLoop) -> Generator[Any, None, None]:
    """Wait until a Deferred has its result, and leave it there: who awaits it, asks it for that."""
    future = loop.create_future()

    def pass_on(result: Any) -> Any:
        if not future.done():
            future.set_result(None)
        return result

    deferred.addBoth(pass_on)
    try:
        yield from future
    except asyncio.CancelledError:
        deferred.addErrback(_cancelled)
        deferred.cancel()
        raise


def _cancelled(failure: Any) -> None:
    failure.trap(defer.CancelledError)


def _wants_loop(error: BaseException) -> bool:
    """Was it raised since no loop runs? Where asyncio asks for one, or takes None for one."""
    if isinstance(error, RuntimeError) and "no running event loop" in str(error):
        return True
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    module = at.tb_frame.f_globals.get("__name__", "") if at is not None else ""
    return isinstance(error, AttributeError) and module.partition(".")[0] == "asyncio"
