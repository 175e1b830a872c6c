"""What an ASGI request does and keeps while its application waits."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import BinaryIO

import pytest

from fulgate.gateways.awaited import open_in_thread
from tests.asgi import START, Make, Message, Receive, Send, body, raw, serve
from tests.driver_suite.kit import END, Flag, until
from tests.raw import head
from tests.test_drivers import log

__all__ = ["log", "serve"]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_each_task_that_waits_is_told(serve: Make, loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    waiting, over = Flag(), Flag()
    told: list[str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        await send(body(b"data: 1\n\n", True))
        assert (await receive())["body"] == b""

        async def wait() -> None:
            told.append((await receive())["type"])

        tasks = [asyncio.create_task(wait()) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await tasks[1]
        # One that comes when another has been cancelled, and gives up by its own timeout.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await receive()
        waiting.set()
        await asyncio.wait(tasks)
        over.set()

    server = serve(app, lifespan="off", loop=loop)
    with raw(server) as client:
        client.send(head(), END)
        waiting.come()
    over.come()
    assert told == ["http.disconnect"] * 2


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_what_a_thread_has_raised_is_raised_by_send(serve: Make, loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        try:
            await send({"type": "http.response.pathsend", "path": "/not/there"})
        except FileNotFoundError:
            await send(body(b"not there"))

    with raw(serve(app, lifespan="off", loop=loop)) as client:
        assert client.request().body == b"not there"


def test_requests_that_wait_share_the_names_of_their_params(serve: Make) -> None:
    exchanges = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        exchanges.append(scope["extensions"]["fulgate.params"]["pairs"].__self__)
        await receive()
        await receive()

    server = serve(app, lifespan="off")
    with raw(server) as one, raw(server) as other:
        for client in (one, other):
            client.send(head(HTTP_X_SHARED="a"), END)
        until(lambda: len(exchanges) == 2, "a request did not begin")
        first, second = exchanges
        assert "HTTP_X_SHARED" in first.params
        assert [*first.params.items()] == [*second.params.items()]
        until(
            lambda: {id(name) for name in first.params} == {id(name) for name in second.params},
            "each has its own names",
        )


def test_a_file_that_nobody_waits_for_any_more_is_closed() -> None:
    opened: list[BinaryIO] = []
    asked, go_on = threading.Event(), threading.Event()

    def slowly(path: str) -> BinaryIO:
        asked.set()
        go_on.wait(20)
        opened.append(open(path, "rb"))  # noqa: SIM115 - the caller closes it
        return opened[0]

    async def main() -> None:
        async def wait() -> None:
            await open_in_thread(slowly, __file__)

        task = asyncio.create_task(wait())
        while not asked.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        while not opened or not opened[0].closed:
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(main(), 20))
