"""Server-sent streams that last; the application notes when it was told that a client had gone."""

from __future__ import annotations

import json
import time
from typing import Any

gone: dict[str, float] = {}  # when, by time.monotonic()
running: set[str] = set()


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    _, kind, *rest = scope["path"].split("/")
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if kind != "stream":
        body = json.dumps(gone) if kind == "gone" else str(len(running))
        await send({"type": "http.response.body", "body": body.encode()})
        return
    (name,) = rest
    running.add(name)
    await send({"type": "http.response.body", "body": b"data: 0\n\n", "more_body": True})
    while (await receive())["type"] != "http.disconnect":
        pass
    gone[name] = time.monotonic()
    running.discard(name)
