"""The application of the cases."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

Message = dict[str, Any]


async def app(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Send each message of a WebSocket back; deny the path /denied, with the client's address."""
    assert scope["type"] == "websocket"
    await receive()
    if scope["path"] == "/denied":
        headers = [(b"content-type", b"text/plain")]
        kind = "websocket.http.response"
        await send({"type": f"{kind}.start", "status": 402, "headers": headers})
        await send({"type": f"{kind}.body", "body": repr(scope["client"]).encode()})
        return
    chosen = scope["subprotocols"][0] if scope["subprotocols"] else None
    await send({"type": "websocket.accept", "subprotocol": chosen})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})
