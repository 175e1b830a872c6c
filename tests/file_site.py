"""An application that answers with files of the folder that its environment names."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

FOLDER = os.environ.get("FILE_SITE", "")


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """/file/NAME by wsgi.file_wrapper, /x/PATH by X-Sendfile, as it stands."""
    _, kind, name = environ["PATH_INFO"].split("/", 2)
    path = f"{FOLDER}/{name}"
    headers = [("Content-Type", "text/plain")]
    if kind == "x":
        body = b"only for a server without X-Sendfile\n"
        more = [("X-Sendfile", path), ("X-Kept", "yes"), ("Content-Length", str(len(body)))]
        start_response("200 OK", [*headers, *more])
        return [body]
    start_response("200 OK", headers)
    wrapper: Iterable[bytes] = environ["wsgi.file_wrapper"](open(path, "rb"))  # noqa: SIM115
    return wrapper


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """/x/PATH by X-Sendfile, /path/PATH by http.response.pathsend, as it stands."""
    assert scope["type"] == "http"
    _, kind, name = scope["path"].split("/", 2)
    path = f"{FOLDER}/{name}".encode()
    headers = [(b"content-type", b"text/plain"), (b"x-kept", b"yes")]
    body = b"only for a server without X-Sendfile\n"
    if kind == "x":
        headers += [(b"x-sendfile", path), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if kind == "x":
        await send({"type": "http.response.body", "body": body[:10], "more_body": True})
        await send({"type": "http.response.body", "body": body[10:]})
    else:
        await send({"type": "http.response.pathsend", "path": os.fsdecode(path)})
