"""X-Sendfile: the application names a file, and somebody else sends it.

A layer of WSGI round the application; `asgi_http.py` does the same for ASGI. Only what the
application answers is looked at, never what a client sends. What may be named stands below one of
the roots, also once links are followed.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO
from urllib.parse import quote

from fulgate.exchange import Headers

__all__ = ["XSendfile", "named_file", "open_below", "refused_file", "split_root", "uri_of"]

logger = logging.getLogger("fulgate")

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
StartResponse = Callable[..., Callable[[bytes], object]]


class XSendfile:
    """Has answers with X-Sendfile sent, by `how`: "serve" by us, "accel" by nginx.

    `roots` are folders, absolute; for "accel" FOLDER=/URI/, where the URI is an internal location
    of nginx's (X-Accel-Redirect).
    """

    def __init__(self, app: Application, how: str, roots: Sequence[str]) -> None:
        self._app = app
        self._accel = how == "accel"
        self._roots = [split_root(root) for root in roots]

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        head = _Head(start_response)
        result = self._app(environ, head.start)
        try:
            if not head.started:  # a generator: its first piece has it start
                pieces = iter(result)
                first = next(pieces, None)
                if head.path is None:
                    return _Rest(first, pieces, result)
            if head.path is None:
                return result
        except BaseException:
            _close(result)
            raise
        _close(result)
        return self._answer(environ, start_response, head)

    def _answer(
        self, environ: dict[str, Any], start_response: StartResponse, head: _Head
    ) -> Iterable[bytes]:
        path, headers = head.path or "", head.headers
        if self._accel:
            uri = uri_of(path, self._roots)
            if uri is None:
                return _refuse(start_response, path, PermissionError())
            start_response(head.status, [*headers, ("X-Accel-Redirect", uri)])
            return []
        try:
            file = open_below(path, [root for root, _ in self._roots])
        except OSError as error:
            return _refuse(start_response, path, error)
        start_response(head.status, headers)
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](file)
        return wrapped


class _Head:
    """What the application answers; it is passed on at once, unless a file is to be sent."""

    def __init__(self, start_response: StartResponse) -> None:
        self._start_response = start_response
        self.started = False
        self.status = ""
        self.headers: Headers = []
        self.path: str | None = None

    def start(self, status: str, headers: Headers, exc_info: Any = None) -> Any:
        self.started = True
        kept, path = named_file(headers)
        if self.path is None and path is None:
            if exc_info is None:
                return self._start_response(status, headers)
            return self._start_response(status, headers, exc_info)
        if self.path is not None and exc_info is None:
            raise RuntimeError("start_response was called again without exc_info")
        if path is None:  # an error, after all
            self.path = None
            return self._start_response(status, headers)
        self.status = status
        self.path = path
        self.headers = kept
        return _ignore


class _Rest:
    """An application's pieces, of which the first was taken already."""

    def __init__(
        self, first: bytes | None, pieces: Iterator[bytes], result: Iterable[bytes]
    ) -> None:
        self._first = first
        self._pieces = pieces
        self._result = result

    def __iter__(self) -> Iterator[bytes]:
        if self._first is not None:
            yield self._first
            yield from self._pieces

    def close(self) -> None:
        _close(self._result)


def _ignore(data: bytes) -> None:
    """The body that an application sends beside X-Sendfile is for nobody."""


def _close(result: Iterable[bytes]) -> None:
    close = getattr(result, "close", None)
    if close is not None:
        close()


def _refuse(start_response: StartResponse, path: str, error: OSError) -> list[bytes]:
    status = refused_file(path, error)
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [status.encode() + b"\n"]


def named_file(headers: Headers) -> tuple[Headers, str | None]:
    """Give the headers that go with the file which they name, and its path; None for no file."""
    paths = [value for name, value in headers if name.lower() == "x-sendfile"]
    if not paths:
        return headers, None
    body = ("x-sendfile", "content-length", "transfer-encoding")
    return [item for item in headers if item[0].lower() not in body], paths[-1]


def refused_file(path: str, error: OSError) -> str:
    """Log why a file is not sent, and give the status to answer with."""
    status = "403 Forbidden" if isinstance(error, PermissionError) else "404 Not Found"
    logger.error("X-Sendfile: %s: %r", status, path)
    return status


def split_root(text: str) -> tuple[str, str]:
    """Give a root's folder and URI; the URI is "" where there is none."""
    folder, sign, uri = text.partition("=")
    return (folder.rstrip("/") or "/", uri.rstrip("/") + "/" if sign else "")


def uri_of(path: str, roots: Sequence[tuple[str, str]]) -> str | None:
    """Give the URI of a path, by the longest root that it is below; None below none.

    The path is what it says: `..` leads nowhere. Links are nginx's affair (disable_symlinks).
    """
    parts = path.split("/")
    if not path.startswith("/") or ".." in parts or "\0" in path:
        return None
    path = "/" + "/".join([part for part in parts if part not in ("", ".")])
    best = ("", "")
    for folder, uri in roots:
        if path.startswith(folder.rstrip("/") + "/") and len(folder) > len(best[0]):
            best = (folder, uri)
    if not best[1]:
        return None
    rest = path[len(best[0].rstrip("/")) + 1 :]
    return best[1] + quote(rest.encode("latin-1"), safe="/~!$&'()*+,;=:@")


def open_below(path: str, roots: Sequence[str]) -> BinaryIO:
    """Open a regular file that is below one of the roots, with all links followed.

    `path` is absolute, in latin-1 as a header has it. Raises PermissionError for what is below no
    root, or may not be read, and another OSError for what is no file.
    """
    if not path.startswith("/") or "\0" in path:
        raise PermissionError(f"{path!r} is no absolute path")
    real = os.path.realpath(path.encode("latin-1"))
    for root in roots:
        base = os.path.realpath(os.fsencode(root))
        prefix = base if base.endswith(b"/") else base + b"/"
        if real.startswith(prefix):
            return _open_plainly(base, real[len(prefix) :].split(b"/"))
    raise PermissionError(f"{path!r} is below no root")


def _open_plainly(base: bytes, names: list[bytes]) -> BinaryIO:
    """Open `names` below `base` and follow no link: one that came since is not what was checked."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(base, flags | os.O_DIRECTORY)
    try:
        for name in names[:-1]:
            inner = os.open(name, flags | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = inner
        # Of a FIFO nobody may ever be the other end.
        inner = os.open(names[-1], flags | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=fd)
        os.close(fd)
        fd = inner
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FileNotFoundError("it is no regular file")
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise
