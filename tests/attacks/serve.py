"""The server under attack: `python -m tests.attacks.serve DRIVER [ENDPOINT]`.

Its application reads the whole body, and answers with the parameters, a line each, and with how
much of a body there was. What README.md says of the application is said of this one.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any

from fulgate import Server, serve

LIMIT = 16 << 20
TEXT = [("Content-Type", "text/plain")]


def told(environ: dict[str, Any], size: int) -> bytes:
    params = environ["fulgate.params"]() if "fulgate.params" in environ else []
    names = dict.fromkeys(name for name, _ in params if name in environ)
    lines = [f"{name}={environ[name]}"[:200] for name in names]
    return "\n".join([*lines, f"body {size}", ""]).encode("latin-1", "replace")


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    size = 0
    while piece := environ["wsgi.input"].read(65536):
        size += len(piece)
    start_response("200 OK", TEXT)
    return [told(environ, size)]


async def asgi_app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    pairs = [
        pair
        for pair in scope["extensions"]["fulgate.params"]["pairs"]()
        if not pair[0].startswith("HTTP_")  # of which headers are made, or not
    ]
    for name, value in scope["headers"]:
        pairs.append((f"HEADER {name.decode('latin-1')}", value.decode("latin-1")))
    lines = [f"{name}={value}"[:200] for name, value in pairs]
    body = "\n".join([*lines, f"body {size}", ""]).encode("latin-1", "replace")
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def run(driver: str, endpoints: list[str]) -> int:
    bind = tuple(endpoints)
    if driver == "threads":
        return serve(app, bind=bind, limit_request_body=LIMIT, threads=2)
    if driver == "aio":
        return serve(asgi_app, bind=bind, limit_request_body=LIMIT)
    if driver == "inline":
        server = Server(app, bind=bind, limit_request_body=LIMIT)
        server.bind()
        server.inline().run()
        return 0
    if driver == "stdio":
        return serve(app, limit_request_body=LIMIT)
    if driver == "tx":
        return run_twisted(endpoints[0])
    raise SystemExit(f"no such driver: {driver}")


def run_twisted(endpoint: str) -> int:
    from twisted.internet import reactor

    from fulgate.twisted import FastCGIFactory

    loop: Any = reactor
    protocol, plus, rest = endpoint.rpartition("+")
    factory = FastCGIFactory(
        app, protocol=protocol if plus else "fastcgi", reactor=loop, limit_request_body=LIMIT
    )
    loop.listenUNIX(rest.removeprefix("unix:"), factory, 2048)
    loop.run()
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    sys.exit(run(sys.argv[1], sys.argv[2:]))
