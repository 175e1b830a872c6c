"""How an ASGI application starts and ends, and its requests with it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import fulgate
from fulgate import ConfigError, Server, StartupFailed
from tests.asgi import Make, Message, Receive, Send, hello, raw, serve
from tests.driver_suite.kit import END, Flag, Log
from tests.raw import PATIENCE, Raw, head
from tests.test_drivers import log

__all__ = ["log", "serve"]


class Lifetime:
    def __init__(self, *says: str) -> None:
        self.says = list(says)
        self.done: list[str] = []

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            assert scope["state"] == {"answer": 42}
            scope["state"]["mine"] = 1
            return await hello(scope, receive, send)
        scope["state"]["answer"] = 42
        for said in self.says:
            message = await receive()
            if said == "raise":
                raise LookupError("no lifespan")
            self.done.append(message["type"])
            await send({"type": f"{message['type']}.{said}", "message": "the reason"})
        return None


def test_lifespan(serve: Make) -> None:
    app = Lifetime("complete", "complete")
    server = serve(app)
    assert app.done == ["lifespan.startup"]
    with raw(server) as client:
        for _ in range(2):
            assert client.request().body == b"hello\n"
    assert server.stop()
    assert app.done == ["lifespan.startup", "lifespan.shutdown"]


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_a_startup_that_fails_ends_the_server(serve: Make, mode: str) -> None:
    with pytest.raises(StartupFailed, match="the reason"):
        serve(Lifetime("failed"), lifespan=mode)


def test_an_application_may_have_no_lifespan(serve: Make) -> None:
    with raw(serve(hello)) as client:
        assert client.request().body == b"hello\n"
    with pytest.raises(StartupFailed, match="AssertionError"):
        serve(hello, lifespan="on")


def test_a_shutdown_that_hangs_is_cancelled(serve: Make, log: Log) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await asyncio.sleep(3600)

    server = serve(app)
    assert server.stop(0.2)
    assert [line for line in log.lines() if "shutdown took longer" in line]


def test_work_after_the_answer_may_end(serve: Make) -> None:
    done = Flag()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await hello(scope, receive, send)
        if scope["path"] == "/after":
            await asyncio.sleep(0.1)
            done.set()

    server = serve(app, lifespan="off")
    with raw(server) as client:
        client.request("/after")
        assert client.request().body == b"hello\n"  # meanwhile
        assert server.stop(PATIENCE)
    assert done.is_set()


def test_what_does_not_end_is_cancelled(serve: Make, log: Log) -> None:
    ready, cancelled = Flag(), Flag()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        ready.set()
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    server = serve(app, lifespan="off")
    with raw(server) as client:
        client.expect()
        client.send(head(), END)
        ready.come()
        assert server.stop(0.1) is False
    cancelled.come()
    assert [line for line in log.lines() if "1 requests unfinished" in line]


def test_an_application_may_stop_its_server(serve: Make) -> None:
    servers: list[Server] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        servers[0].stop(5.0)
        await hello(scope, receive, send)

    servers.append(serve(app, lifespan="off"))
    with raw(servers[0]) as client:
        assert client.request().body == b"hello\n"
        assert client.closed()


def test_in_a_loop_that_runs(folder: Path) -> None:
    app = Lifetime("complete", "complete")

    def ask(path: str) -> bytes:
        with Raw(path) as client:
            return client.request().body

    async def main() -> None:
        path = str(folder / "a.sock")
        serving = asyncio.create_task(fulgate.aio.serve(app, bind=f"unix:{path}"))
        while not app.done:
            await asyncio.sleep(0.01)
        assert await asyncio.to_thread(ask, path) == b"hello\n"
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        async with fulgate.aio.Server(hello, bind=("tcp:127.0.0.1:0",)) as server:
            assert server.endpoints[0].startswith("tcp:")
        with pytest.raises(ConfigError):
            await fulgate.aio.serve(lambda environ, start: [])

    asyncio.run(main())
    assert app.done == ["lifespan.startup", "lifespan.shutdown"]
