"""What compiled coroutines await.

What mypyc makes of an `await` throws by the signature of type, value and traceback. Python 3.12 has
deprecated it, and where warnings are errors the warning would be raised in the place of what is
thrown: CancelledError, or what a thread has raised. So this is not compiled, and throws as is due.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

__all__ = ["Awaited", "in_thread", "open_in_thread"]

T = TypeVar("T")


class Awaited(Generator[Any, Any, T]):
    """Awaits something else, for a coroutine that is compiled; to be awaited once."""

    __slots__ = ("_steps",)

    def __init__(self, awaitable: Awaitable[T]) -> None:
        self._steps = awaitable.__await__()

    def __await__(self) -> Generator[Any, Any, T]:
        return self

    def __next__(self) -> Any:
        return next(self._steps)

    def send(self, value: Any) -> Any:
        return self._steps.send(value)

    def throw(self, kind: Any, value: Any = None, traceback: TracebackType | None = None) -> Any:
        return self._steps.throw(kind if value is None else value)

    def close(self) -> None:
        self._steps.close()


def in_thread(function: Callable[..., T], *arguments: object) -> Awaited[T]:
    """Call something that blocks, in a thread of the loop's pool; to be awaited."""
    return Awaited(asyncio.get_running_loop().run_in_executor(None, function, *arguments))


def open_in_thread(function: Callable[..., BinaryIO], *arguments: object) -> Awaited[BinaryIO]:
    """Open a file in a thread of the loop's pool. Who is cancelled meanwhile leaves none open."""
    return Awaited(_opened(function, arguments))


async def _opened(function: Callable[..., BinaryIO], arguments: tuple[object, ...]) -> BinaryIO:
    opening = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close)
        raise


def _close(opening: asyncio.Future[BinaryIO]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
