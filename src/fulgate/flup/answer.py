"""An application's answer with what flup adds to WSGI: text, and the server's page for errors."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fulgate.errors import Aborted

__all__ = ["Pieces", "encoded", "text_start_response"]

log = logging.getLogger("fulgate")


def encoded(piece: Any) -> bytes:
    """Give a piece of a body as bytes: flup takes text too, as latin-1."""
    return piece.encode("latin-1") if isinstance(piece, str) else piece


def _text(value: Any) -> Any:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def text_start_response(start_response: Callable[..., Any]) -> Callable[..., Any]:
    """Give a start_response that takes bytes too, and a `write` that takes text too."""

    def start(status: Any, headers: Any, exc_info: Any = None) -> Callable[[Any], object]:
        if isinstance(headers, list):
            headers = [(_text(name), _text(value)) for name, value in headers]
        extra = (exc_info,) if exc_info else ()
        write = start_response(_text(status), headers, *extra)
        return lambda data: write(encoded(data))

    return start


class Pieces:
    """The body of one answer. Iterating gives what the application gave, or the error page.

    `release` is called once it is over.
    """

    def __init__(
        self,
        server: Any,
        environ: dict[str, Any],
        start_response: Callable[..., Any],
        release: Callable[[], object] | None,
    ) -> None:
        self._server = server
        self._environ = environ
        self._plain_start = start_response
        self._release = release
        self._sent = False
        self._result: Any = ()
        self._pieces: Iterator[Any] = iter(())

    def of_application(self) -> Iterable[bytes]:
        """Call the application. A short answer is given as it is, so that its length is known."""
        try:
            self._result = self._server.application(self._environ, self._start)
            if type(self._result) in (list, tuple):
                pieces: list[bytes] = [encoded(piece) for piece in self._result]
                self._over()
                return pieces
            self._pieces = iter(self._result)
        except BaseException as error:
            self._failed(error)
        return self

    def of_handler(self) -> None:
        """Call a handler that the program has overridden."""
        server = self._server
        try:
            once = self._environ.get("wsgi.run_once")
            kind = server.cgirequest_class if once else server.request_class
            request = kind(server, self._environ, self._noting(self._plain_start))
            statuses = server.handler(request)
            if statuses and statuses[0] and not self._sent:
                self._plain_start("503 Service Unavailable", [])
        except BaseException as error:
            self._failed(error)

    def _start(self, status: Any, headers: Any, exc_info: Any = None) -> Callable[[Any], object]:
        write: Callable[[Any], object]
        write = text_start_response(self._noting(self._plain_start))(status, headers, exc_info)
        return write

    def _noting(self, start_response: Callable[..., Any]) -> Callable[..., Any]:
        """Note what leaves by `write`."""

        def start(*args: Any) -> Callable[[bytes], object]:
            write = start_response(*args)

            def noting_write(data: bytes) -> None:
                self._sent = self._sent or len(data) > 0
                write(data)

            return noting_write

        return start

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            piece = encoded(next(self._pieces))
        except StopIteration:
            raise
        except BaseException as error:
            self._failed(error)
            return next(self)
        if piece:
            self._sent = True
        return piece

    def close(self) -> None:
        """Close what the application gave."""
        try:
            close = getattr(self._result, "close", None)
            self._result = ()
            if close is not None:
                close()
        finally:
            self._over()

    def _over(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()

    def _failed(self, error: BaseException) -> None:
        """Have the server's `error` make the answer, if nothing of it has left. Or raise again."""
        environ = self._environ
        gone = isinstance(error, Aborted) or environ["fulgate.aborted"]()
        if self._sent or gone or not isinstance(error, Exception):
            self._over()
            raise error
        method, path = environ.get("REQUEST_METHOD", ""), environ.get("PATH_INFO", "")
        environ["wsgi.errors"].write(
            f"{method} {path}: the application raised\n{traceback.format_exc()}"
        )
        written: list[bytes] = []

        def start(*args: Any) -> Callable[[bytes], object]:
            self._plain_start(*args)
            return written.append

        try:
            request = self._server.request_class(
                self._server, environ, start, (type(error), error, error.__traceback__)
            )
            self._server.error(request)
            if not request.stdout.started:
                raise RuntimeError("error() did not write an answer")
        except BaseException:
            log.exception("the server's error() failed")
            self._over()
            raise error from None
        self._pieces = iter(written)
