"""Pass a WebSocket on over FastCGI, by lighttpd's convention: what FastCGIProxy does with one.

STDIN carries our frames and does not end; from the application's `Status: 101` on STDOUT carries
its frames. It needs wsproto.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import BytesMessage, CloseConnection, Message, Ping, TextMessage
from wsproto.utilities import LocalProtocolError

from fulgate.client.aio import AsyncConnection, Pool
from fulgate.client.head import Head, HeadReader
from fulgate.protocols.fastcgi_client import Request

__all__ = ["relay"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def handshake(params: dict[str, str], subprotocols: list[str]) -> dict[str, str]:
    """Give the params of the handshake: the client's subprotocols, and no compression."""
    params = {n: v for n, v in params.items() if not n.startswith("HTTP_SEC_WEBSOCKET_")}
    params |= {
        "CONTENT_LENGTH": "0",
        "HTTP_UPGRADE": "websocket",
        "HTTP_CONNECTION": "Upgrade",
        "HTTP_SEC_WEBSOCKET_VERSION": "13",
        "HTTP_SEC_WEBSOCKET_KEY": base64.b64encode(os.urandom(16)).decode(),
    }
    if subprotocols:
        params["HTTP_SEC_WEBSOCKET_PROTOCOL"] = ", ".join(subprotocols)
    return params


async def relay(
    pool: Pool, params: dict[str, str], scope: Any, receive: Receive, send: Send
) -> None:
    """Carry one WebSocket until either side closes it. Raises OSError and ProtocolError."""
    connection = await pool.acquire(fresh=True)
    try:
        params = handshake(params, scope.get("subprotocols", []))
        request = connection.begin(params.items(), False)
        head, rest = await _head(connection)
        if head.status != 101:
            await _deny(connection, request, head, rest, scope, send)
            return
        subprotocol = head.get("Sec-WebSocket-Protocol") or None
        await send({"type": "websocket.accept", "subprotocol": subprotocol})
        frames = Connection(ConnectionType.CLIENT)
        tasks = [
            asyncio.ensure_future(_up(connection, request, frames, receive)),
            asyncio.ensure_future(_down(connection, request, frames, rest, send)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        connection.close()
        pool.release(connection)


async def _head(connection: AsyncConnection) -> tuple[Head, bytes]:
    reader = HeadReader()
    while True:
        data = await connection.receive(0)
        found = reader.feed(data)
        if found is not None:
            return found
        if not data:
            raise ConnectionError("the application closed during the handshake")


async def _deny(
    connection: AsyncConnection, request: Request, head: Head, rest: bytes, scope: Any, send: Send
) -> None:
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(name.lower(), value) for name, value in head.headers]
    kind = "websocket.http.response"
    await send({"type": f"{kind}.start", "status": head.status, "headers": headers})
    data = rest
    while data or not request.ended:
        if data:
            await send({"type": f"{kind}.body", "body": data, "more_body": True})
        data = await connection.receive(0)
    await send({"type": f"{kind}.body", "body": b""})


async def _up(
    connection: AsyncConnection, request: Request, frames: Connection, receive: Receive
) -> None:
    """Pass on what the client says; return when it has gone."""
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            code = message.get("code", 1005)
            data = b""
            if code != 1006:  # which says that there was no close frame
                try:
                    data = frames.send(CloseConnection(code=1000 if code == 1005 else code))
                except LocalProtocolError:  # closed from the other side
                    return
            connection.write(request.send(data) if data else request.end())
            await connection.drain()
            return
        if message.get("bytes") is not None:
            data = frames.send(BytesMessage(data=message["bytes"]))
        else:
            data = frames.send(TextMessage(data=message["text"]))
        connection.write(request.send(data))
        await connection.drain()


async def _down(
    connection: AsyncConnection, request: Request, frames: Connection, data: bytes, send: Send
) -> None:
    """Pass on what the application says; return when it has closed."""
    pieces: list[Any] = []
    while True:
        if data:
            frames.receive_data(data)
        for event in frames.events():
            if isinstance(event, Message):
                text = isinstance(event.data, str)
                pieces.append(event.data if text else bytes(event.data))
                if event.message_finished:
                    whole = ("" if text else b"").join(pieces)
                    pieces = []
                    await send({"type": "websocket.send", "text" if text else "bytes": whole})
            elif isinstance(event, Ping):
                connection.write(request.send(frames.send(event.response())))
            elif isinstance(event, CloseConnection):
                connection.write(request.send(frames.send(event.response())))
                code = 1000 if event.code == 1005 else int(event.code)
                await send({"type": "websocket.close", "code": code, "reason": event.reason or ""})
                return
        data = await connection.receive(0)
        if not data:
            await send({"type": "websocket.close", "code": 1011})
            return
