"""An application that shows what it was asked, for curl and `fulgate get` to be held beside."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

__all__ = ["app"]

Environ = dict[str, Any]
Start = Callable[..., object]

SHOWN = (
    "REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "CONTENT_TYPE", "CONTENT_LENGTH",
    "HTTP_ACCEPT", "HTTP_AUTHORIZATION", "HTTP_COOKIE", "HTTP_RANGE", "HTTP_REFERER",
    "HTTP_X_ONE", "HTTP_X_TWO",
)  # fmt: skip
ANSWERS = {
    "/missing": ("404 Not Found", [], b"not here\n"),
    "/broken": ("500 Internal Server Error", [], b"an error\n"),
    "/redirect": ("302 Found", [("Location", "http://localhost/there")], b""),
    "/empty": ("200 OK", [], b""),
    "/none": ("204 No Content", [], b""),
    "/binary": ("200 OK", [], b"a\0b"),
    "/large": ("200 OK", [], bytes(range(1, 250)) * 8000),
}


def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path == "/cut":
        return _cut(start_response)
    if path in ANSWERS:
        status, headers, body = ANSWERS[path]
        length = [] if status.startswith("204") else [("Content-Length", str(len(body)))]
        start_response(status, [("Content-Type", "text/plain"), *length, *headers])
        return [body]
    body = environ["wsgi.input"].read()
    found = {name: environ.get(name, "") for name in SHOWN}
    agent = environ.get("HTTP_USER_AGENT", "none")
    found["HTTP_USER_AGENT"] = re.sub(r"^(curl|fulgate)/.*", "its own", agent)
    if boundary := re.search("boundary=(.*)", found["CONTENT_TYPE"]):
        body = body.replace(boundary[1].encode(), b"BOUNDARY")
        found |= {"CONTENT_TYPE": found["CONTENT_TYPE"].replace(boundary[1], "BOUNDARY")}
        found["CONTENT_LENGTH"] = ""
    found["body"] = body.decode("latin-1")
    text = json.dumps(found, indent=1).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("X-Length", str(len(body)))])
    return [text]


def _cut(start_response: Start) -> Iterator[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "900000")])
    yield bytes(500_000)  # more than nginx reads at a time, which so has seen the head by itself
    raise RuntimeError("on purpose")
