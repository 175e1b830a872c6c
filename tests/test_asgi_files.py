"""Files that an ASGI application has sent: by their path, or by X-Sendfile."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.asgi import START, Make, Message, Receive, Send, body, raw, serve
from tests.driver_suite.kit import Log
from tests.test_drivers import log

__all__ = ["log", "serve"]


def test_a_file_by_its_path(serve: Make, folder: Path) -> None:
    data = bytes(range(256)) * 4096
    (folder / "a b").write_bytes(data)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.pathsend", "path": str(folder / "a b")})

    for settings in ({}, {"x_sendfile": "accel", "x_sendfile_root": (f"{folder}=/inside/",)}):
        server = serve(app, lifespan="off", **settings)
        with raw(server) as client:
            found = client.request()
            if settings:
                assert b"X-Accel-Redirect: /inside/a%20b" in found.head
                assert found.body == b""
                assert b"Content-Length" not in found.head
            else:
                assert found.body == data
                assert b"Content-Length: 1048576" in found.head
            assert client.request(REQUEST_METHOD="HEAD").body == b""


@pytest.mark.parametrize(
    ("roots", "uri"),
    [
        (("/=/all/",), "/all{folder}/sub/%FF~b"),
        (("{folder}=/out/", "{folder}/sub=/in/"), "/in/%FF~b"),  # the longest
        (("{folder}/other=/in/",), ""),
    ],
)
def test_the_uri_of_a_file_by_its_path(
    serve: Make, folder: Path, roots: tuple[str, ...], uri: str
) -> None:
    (folder / "sub").mkdir()
    path = os.fsdecode(os.fsencode(folder) + b"/sub/\xff~b")
    Path(path).write_bytes(b"data")

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.pathsend", "path": path})

    named = tuple(root.format(folder=folder) for root in roots)
    with raw(serve(app, lifespan="off", x_sendfile="accel", x_sendfile_root=named)) as client:
        found = client.request()
        assert found.body == (b"" if uri else b"data")
        line = f"X-Accel-Redirect: {uri.format(folder=folder)}".encode()
        assert (line in found.head) == bool(uri)


def test_a_file_that_is_named_takes_the_place_of_the_body(
    serve: Make,
    folder: Path,
    log: Log,
) -> None:
    (folder / "named").write_bytes(b"named\n")
    (folder / "empty").touch()
    (folder / "sub").mkdir()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        path = f"{folder}{scope['path']}".encode()
        headers = [(b"content-length", b"4"), (b"x-sendfile", path), (b"x-a", b"1")]
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        if scope["query_string"] == b"raise":
            raise LookupError("it broke")
        if scope["query_string"] == b"pathsend":
            await send({"type": "http.response.pathsend", "path": "/etc/passwd"})
        else:
            await send(body(b"bo", True))
            await send(body(b"dy"))
        await send(body(b"too late"))

    for how, root in (("serve", str(folder)), ("accel", f"{folder}=/inside/")):
        server = serve(app, lifespan="off", x_sendfile=how, x_sendfile_root=(root,))
        with raw(server) as client:
            for query in ("", "pathsend"):
                found = client.request("/named", query)
                if how == "serve":
                    assert found.head == [b"Status: 201 Created", b"x-a: 1", b"Content-Length: 6"]
                    assert found.body == b"named\n"
                else:
                    assert found.head[1:] == [b"x-a: 1", b"X-Accel-Redirect: /inside/named"]
                    assert found.body == b""
            assert client.request("/named", REQUEST_METHOD="HEAD").body == b""
            assert client.request("/named", "raise").status == "500 Internal Server Error"
            refused = client.request("/../secret")
            assert (refused.status, refused.body) == ("403 Forbidden", b"403 Forbidden\n")
            if how == "serve":
                assert client.request("/empty").body == b""
                for missing in ("/none", "/sub"):
                    assert client.request(missing).status == "404 Not Found"
    assert [line for line in log.lines() if "X-Sendfile: 403 Forbidden" in line]


def test_a_file_is_sent_as_far_as_its_length(serve: Make, folder: Path) -> None:
    """One that grows meanwhile, as a log does, and one of which the application wants a part."""
    path = folder / "log"
    path.write_bytes(b"line\n" * 100_000)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", scope["query_string"])] if scope["query_string"] else []
        await send({**START, "headers": headers})
        task = asyncio.ensure_future(
            send({"type": "http.response.pathsend", "path": str(folder / "log")})
        )
        growing = 0 if scope["query_string"] else 20
        while not task.done():
            if growing:
                growing -= 1
                with path.open("ab") as file:
                    file.write(b"line\n" * 100_000)
            await asyncio.sleep(0)
        await task

    with raw(serve(app, lifespan="off")) as client:
        assert client.request("/", "5").body == b"line\n"
        assert client.request("/", "500001").status == "500 Internal Server Error"
        answer = client.request()
        length = int(dict(line.split(b": ") for line in answer.head)[b"Content-Length"])
        assert length == len(answer.body) >= 500_000
