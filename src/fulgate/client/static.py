"""Static files for development: an ASGI 3 application over one folder.

In production the web server does this, and does it better.
"""

from __future__ import annotations

import asyncio
import mimetypes
import os
import re
import stat
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from typing import BinaryIO, Final
from urllib.parse import quote

from fulgate.client.proxy import Receive, Scope, Send, send_text
from fulgate.errors import ConfigError

__all__ = ["StaticFiles", "parse_static"]

CHUNK: Final = 262144

# The system's own tables differ from machine to machine: not read.
_types = mimetypes.MimeTypes(filenames=())
for _type, _extensions in {
    "application/json": ".json .map",
    "application/wasm": ".wasm",
    "font/otf": ".otf",
    "font/ttf": ".ttf",
    "font/woff": ".woff",
    "font/woff2": ".woff2",
    "image/avif": ".avif",
    "image/svg+xml": ".svg",
    "image/webp": ".webp",
    "image/x-icon": ".ico",
    "text/javascript": ".js .mjs",
    "text/markdown": ".md",
}.items():
    for _extension in _extensions.split():
        _types.add_type(_type, _extension)

_range = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})").fullmatch


def parse_static(text: str) -> tuple[str, str]:
    """Read `/PREFIX=FOLDER`; give the prefix without its last slash, and the folder.

    Raises ConfigError, also when the folder is not there.
    """
    prefix, equals, folder = text.partition("=")
    if not equals or not prefix.startswith("/") or not folder:
        raise ConfigError(f"static {text!r}: write /PREFIX=FOLDER, such as /static=assets")
    if not os.path.isdir(folder):
        raise ConfigError(f"static {text!r}: {folder!r} is no folder")
    return prefix.rstrip("/"), folder


class StaticFiles:
    """Serves the files below `folder`; a folder's `index.html` for a path that ends in "/".

    Names that begin with "." are hidden. Symbolic links are followed as far as they stay inside.
    """

    def __init__(self, folder: str) -> None:
        self._root = os.path.realpath(folder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an `http` scope, its path below `root_path`."""
        method = scope["method"]
        mount = scope.get("root_path", "").rstrip("/")
        path: str = scope["path"].removeprefix(mount)
        raw: bytes = scope.get("raw_path") or b""
        if method not in ("GET", "HEAD"):
            await _send_empty(send, 405, [(b"allow", b"GET, HEAD")])
            return
        # %2F is a character of a name, and no file has such a name.
        filename = None if b"%2f" in raw.lower() else self._find(path)
        if filename is not None and os.path.isdir(filename):
            # Relative, so that no path can make it lead to another host.
            name = quote(path.rsplit("/", 1)[-1]).encode()
            await _send_empty(send, 301, [(b"location", b"./" + name + b"/")])
            return
        try:
            file = None if filename is None else open(filename, "rb")  # noqa: SIM115
        except OSError:
            file = None
        if file is None or filename is None:
            await send_text(send, 404, "Not Found", method)
            return
        with file:
            await _serve(file, filename, scope, receive, send)

    def _find(self, path: str) -> str | None:
        """Give the real path of the file or folder that `path` names, or None."""
        if "\0" in path or not path.startswith("/"):
            return None
        segments = path[1:].split("/")
        if segments[-1] == "":
            segments[-1] = "index.html"
        if any(not segment or segment.startswith(".") for segment in segments):
            return None
        try:
            filename = os.path.realpath(os.path.join(self._root, *segments))
            inside = filename.startswith(self._root.rstrip("/") + "/")
            mode = os.stat(filename).st_mode if inside else 0
        except (OSError, ValueError):  # ValueError: a surrogate that has no bytes
            return None
        return filename if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else None


async def _serve(file: BinaryIO, filename: str, scope: Scope, receive: Receive, send: Send) -> None:
    status = os.fstat(file.fileno())
    size = status.st_size
    etag = f'"{status.st_mtime_ns:x}-{size:x}"'
    modified = datetime.fromtimestamp(int(status.st_mtime), UTC)
    asked = {
        name.lower().decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
    }
    headers = [
        (b"etag", etag.encode()),
        (b"last-modified", format_datetime(modified, usegmt=True).encode()),
        (b"accept-ranges", b"bytes"),
        (b"cache-control", b"no-cache"),  # keep it, but ask each time: files change here
    ]
    if _is_fresh(asked, etag, modified):
        await _send_empty(send, 304, headers)
        return
    first, last, code = 0, size - 1, 200
    if "range" in asked and _may_range(asked, etag, modified):
        bounds = _bounds(asked["range"], size)
        if bounds is not None:
            first, last = bounds
            code = 206
            if first > last:
                await _send_empty(send, 416, [(b"content-range", b"bytes */%d" % size)])
                return
            headers.append((b"content-range", b"bytes %d-%d/%d" % (first, last, size)))
    headers += [
        (b"content-type", _content_type(filename).encode()),
        (b"content-length", b"%d" % (last - first + 1)),
        (b"x-content-type-options", b"nosniff"),
    ]
    await send({"type": "http.response.start", "status": code, "headers": headers})
    left = 0 if scope["method"] == "HEAD" else last - first + 1
    file.seek(first)
    while left > 0:
        data = await asyncio.to_thread(file.read, min(CHUNK, left))
        if not data:
            raise EOFError(f"{filename} became shorter while it was sent")
        left -= len(data)
        await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _is_fresh(asked: dict[str, str], etag: str, modified: datetime) -> bool:
    """Does the client have it already (RFC 9110, section 13.2.2)?"""
    if "if-none-match" in asked:
        tags = [tag.strip().removeprefix("W/") for tag in asked["if-none-match"].split(",")]
        return "*" in tags or etag in tags
    since = _date(asked.get("if-modified-since", ""))
    return since is not None and modified <= since


def _may_range(asked: dict[str, str], etag: str, modified: datetime) -> bool:
    """Does If-Range allow a part (RFC 9110, section 13.1.5)?"""
    condition = asked.get("if-range")
    return condition is None or condition == etag or _date(condition) == modified


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _bounds(text: str, size: int) -> tuple[int, int] | None:
    """Give first and last byte of a single range; first > last when it cannot be satisfied.

    None for what is no single range of bytes, which is then ignored (RFC 9110, section 14.2).
    """
    match = _range(text.replace(" ", ""))
    if match is None or match[0] == "bytes=-":
        return None
    start, end = match[1], match[2]
    if not start:
        return max(size - int(end), 0) if int(end) else size, size - 1
    first = int(start)
    last = min(int(end), size - 1) if end else size - 1
    if end and int(end) < first:
        return None
    return first, last


def _content_type(filename: str) -> str:
    kind, encoding = _types.guess_type(filename, strict=True)
    if encoding is not None:
        return {"gzip": "application/gzip"}.get(encoding, "application/octet-stream")
    if kind is None:
        return "application/octet-stream"
    text = kind.startswith("text/") or kind in ("application/json", "image/svg+xml")
    return kind + "; charset=utf-8" if text else kind


async def _send_empty(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    if status != 304:
        headers = [*headers, (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
