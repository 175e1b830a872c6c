"""A Starlette site: a form with a file, a stream, links, a file by its path, and a lifespan."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

FOLDER = Path(os.environ.get("FULGATE_TEST_FOLDER", "."))


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    yield {"greeting": "Hello"}
    (FOLDER / "ended").touch()


async def index(request: Request) -> Response:
    text = f"{request.state.greeting}, {request.client}! See {request.url_for('links', name='x')}"
    return PlainTextResponse(text)


async def upload(request: Request) -> Response:
    sha256 = hashlib.sha256()
    size = 0
    async for piece in request.stream():
        sha256.update(piece)
        size += len(piece)
    return JSONResponse({"size": size, "sha256": sha256.hexdigest()})


async def numbers(request: Request) -> Response:
    async def lines() -> AsyncIterator[str]:
        for n in range(1000):
            yield f"{n}\n"

    return StreamingResponse(lines(), media_type="text/plain")


async def links(request: Request) -> Response:
    shown = {"name": request.path_params["name"], "url": str(request.url)}
    return JSONResponse({**shown, "query": dict(request.query_params)})


async def file(request: Request) -> Response:
    return FileResponse(FOLDER / "file.bin")


async def events(request: Request) -> Response:
    async def ticks() -> AsyncIterator[str]:
        (FOLDER / "opened").touch()
        try:
            while True:
                yield "data: tick\n\n"
                await asyncio.sleep(0.05)
        finally:
            (FOLDER / "missed").touch()

    headers = {"X-Accel-Buffering": "no"}
    return StreamingResponse(ticks(), media_type="text/event-stream", headers=headers)


async def broken(request: Request) -> Response:
    raise LookupError("broken")


app = Starlette(
    routes=[
        Route("/", index),
        Route("/upload", upload, methods=["POST"]),
        Route("/numbers", numbers),
        Route("/links/{name}", links, name="links"),
        Route("/file", file),
        Route("/events", events),
        Route("/broken", broken),
    ],
    lifespan=lifespan,
)
