"""A Quart site: a session, a form with a file, and a stream."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

from quart import Quart, Response, redirect, request, session, url_for

app = Quart(__name__)
app.secret_key = "for tests only"


@app.get("/")
async def index() -> str:
    return f"Hello, {session.get('name', 'stranger')}! Log in at {url_for('login')}"


@app.post("/login")
async def login() -> Any:
    session["name"] = (await request.form)["name"]
    return redirect(url_for("index"))


@app.post("/upload")
async def upload() -> Any:
    data = (await request.files)["file"].read()
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@app.get("/numbers")
async def numbers() -> Response:
    async def lines() -> AsyncIterator[str]:
        for n in range(1000):
            yield f"{n}\n"

    return Response(lines(), mimetype="text/plain")
