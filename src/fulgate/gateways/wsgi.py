"""Have a WSGI application (PEP 3333) answer exchanges."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final

from fulgate.cgi import repair
from fulgate.errors import Aborted, LimitExceeded
from fulgate.exchange import Carrier, Exchange, Headers
from fulgate.gateways.files import stretch
from fulgate.gateways.head import (
    ANY_BODY,
    CONTENT_LENGTH,
    NO_BODY,
    check_length,
    check_name,
    check_status,
    check_value,
    known_names,
    known_statuses,
)
from fulgate.gateways.streams import Errors, FileWrapper, Input, printable, to_stderr
from fulgate.logs import log_refusal, request_line

__all__ = ["WSGI", "Application", "exit_status"]

logger = logging.getLogger("fulgate")

ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

# Several chunks of a list are joined to one answer up to this many bytes.
JOIN_BELOW: Final = 65536

# A file this small is read, and leaves with the head: cheaper than a descriptor of its own.
READ_BELOW: Final = 65536


class Answer:
    """The application's answer to one exchange: start_response and what follows from it."""

    _status_body = ANY_BODY
    _bodiless = False
    _length = -1  # what the application's Content-Length says
    _left = -1  # of it; -1 when there is nothing to count
    _cut = False  # there was more

    def __init__(self, exchange: Exchange, carrier: Carrier, errors: Errors) -> None:
        self._exchange = exchange
        self._carrier = carrier
        self._errors = errors

    def start_response(
        self, status: str, headers: Headers, exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        """Take status and headers, as PEP 3333 has it.

        Raises TypeError or ValueError for a head that would break the answer, RuntimeError when
        called again without `exc_info`, Aborted when the request was given up, and the exception of
        `exc_info` when the head is gone.
        """
        exchange = self._exchange
        if exc_info is not None:
            try:
                if exchange.head_sent and exc_info[1] is not None:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # no cycle through this frame
        elif exchange.aborted:  # perhaps another has answered for it, after a deadline
            raise Aborted("the request was given up")
        elif exchange.status:
            raise RuntimeError("start_response was called again without exc_info")
        try:
            body = known_statuses[status]
        except KeyError:
            body = check_status(status)
        if not isinstance(headers, list):
            raise TypeError(f"the headers are not a list, but {type(headers).__name__}")
        length = -1
        for name, value in headers:
            try:
                kind = known_names[name]
            except KeyError:
                kind = check_name(name)
            if type(value) is not str or not (value.isascii() and value.isprintable()):
                check_value(name, value)
            if kind == CONTENT_LENGTH:
                length = check_length(value, length)
        self._status_body = body
        self._bodiless = body == NO_BODY or exchange.params.get("REQUEST_METHOD") == "HEAD"
        self._length = length
        self._left = -1 if self._bodiless else length
        if body == NO_BODY and length >= 0 and status[:3] == "204":
            # RFC 9110, section 8.6: none in a 204
            headers = [item for item in headers if item[0].lower() != "content-length"]
        else:
            headers = headers[:]  # what was checked is what is sent
        exchange.start(status, headers)
        return self.write

    def write(self, data: bytes) -> None:
        """Send a piece of the body at once; the first that is not empty takes the head along."""
        if not isinstance(data, bytes):
            raise TypeError(f"a piece of the body is not bytes, but {type(data).__name__}")
        exchange = self._exchange
        if not exchange.status:
            raise RuntimeError("start_response was not called before the body came")
        if exchange.refused is not None:
            raise Aborted("the request was refused")
        if not data:
            return
        if self._bodiless:
            if not exchange.head_sent:
                self._carrier.send(exchange, b"")
            elif exchange.aborted:
                raise Aborted("the request was given up by the web server")
            return
        if self._left >= 0:
            if len(data) > self._left:
                self._cut = True
                data = data[: self._left]
            self._left -= len(data)
            if not data:
                return
        self._carrier.send(exchange, data)

    def finish(self, data: bytes, app_status: int = 0) -> None:
        """Send the last piece, which is the only one when nothing was sent before."""
        exchange = self._exchange
        if not exchange.status:
            raise RuntimeError("start_response was not called")
        if exchange.refused is not None:
            raise Aborted("the request was refused")
        if self._bodiless:
            if data and self._length < 0 and not self._status_body and not exchange.head_sent:
                exchange.headers.append(("Content-Length", str(len(data))))
            data = b""
        elif self._left >= 0:
            if len(data) > self._left:
                self._cut = True
                data = data[: self._left]
            self._left -= len(data)
            if self._left:
                self._too_short()
                return
        elif not exchange.head_sent and not self._status_body:
            exchange.headers.append(("Content-Length", str(len(data))))
        if self._errors.unfinished:
            self._errors.flush()  # while there still is a way to the web server's log
        self._carrier.finish(exchange, data, app_status)
        if self._cut:
            logger.error(
                "%s: the body was cut at its Content-Length of %d bytes",
                request_line(exchange), self._length,
            )  # fmt: skip

    def _too_short(self) -> None:
        exchange = self._exchange
        logger.error(
            "%s: the body is %d bytes shorter than its Content-Length of %d",
            request_line(exchange), self._left, self._length,
        )  # fmt: skip
        if exchange.head_sent:
            self._carrier.fail(exchange)
        else:
            _answer_plainly(exchange, self._carrier, "500 Internal Server Error")

    def body(self, result: Iterable[bytes]) -> None:
        """Send what the application returned."""
        if isinstance(result, (list, tuple)):
            if len(result) == 1:
                data = result[0]
            elif _size(result) <= JOIN_BELOW:
                data = b"".join(result)
            else:
                self._long_list(result)
                return
            if not isinstance(data, bytes):
                raise TypeError(f"a piece of the body is not bytes, but {type(data).__name__}")
            self.finish(data)
            return
        if type(result) is FileWrapper and self._file(result):
            return
        for piece in result:
            self.write(piece)
            if self._cut:
                break  # perhaps there is no end
        self.finish(b"")

    def _long_list(self, pieces: list[bytes] | tuple[bytes, ...]) -> None:
        """Send many or large pieces, of which the whole length is known, one after the other."""
        exchange = self._exchange
        if (
            self._length < 0
            and not self._status_body
            and exchange.status
            and not exchange.head_sent
        ):
            exchange.headers.append(("Content-Length", str(_size(pieces))))
        for piece in pieces[:-1]:
            self.write(piece)
        self.finish(pieces[-1])

    def _file(self, wrapper: FileWrapper) -> bool:
        """Send the rest of a regular file; False when it has to be read piece by piece.

        As much of it as Content-Length says, where that is there.
        """
        exchange = self._exchange
        part = stretch(wrapper.file)
        if part is None or not exchange.status or exchange.refused is not None:
            return False
        size = part.size
        if self._length < 0 and not self._status_body and not exchange.head_sent:
            exchange.headers.append(("Content-Length", str(size)))
            self._length = size
            self._left = -1 if self._bodiless else size
        elif 0 <= self._left < size:
            size = self._left
        if self._bodiless:
            self.finish(b"")
        elif size < self._left:
            self._left -= size
            self._too_short()
        elif size <= READ_BELOW:
            self.finish(wrapper.file.read(size))
        elif self._carrier.sends_files and exchange.frame_size:
            try:
                fd = os.dup(part.fd)
            except OSError:
                return False
            self._errors.flush()
            self._carrier.finish_file(exchange, fd, part.offset, size)
        else:
            return False
        return True

    def aborted(self) -> bool:
        """`fulgate.aborted`: did the web server give the request up?"""
        self._carrier.look(self._exchange)
        return self._exchange.aborted

    def after(self, function: Callable[[], object]) -> None:
        """`fulgate.after`: call `function` once the client has the whole answer."""
        if not callable(function):
            raise TypeError("fulgate.after takes a function without arguments")
        exchange = self._exchange
        if exchange.after is None:
            exchange.after = []
        exchange.after.append(function)


class WSGI:
    """A SyncGateway: the WSGI application `app` answers exchanges of the Responder role.

    `path`, `script_name` and `repeated_params` are those of `fulgate.cgi.repair`. `stderr` sends
    tracebacks and `wsgi.errors` to the web server's log too (FCGI_STDERR). `multithread`,
    `multiprocess` and `run_once` are what environ says of the server.

    Beside PEP 3333's, environ has "wsgi.input_terminated" (True), "fulgate.params" (a function:
    the parameters in order, as they came), "fulgate.aborted" (a function: did the web server give
    the request up?) and "fulgate.after" (a function that takes a function: what to do when the
    client has the answer).
    """

    def __init__(
        self,
        app: Application,
        path: str = "auto",
        script_name: str = "",
        repeated_params: str = "refuse",
        stderr: bool = False,
        multithread: bool = True,
        multiprocess: bool = False,
        run_once: bool = False,
    ) -> None:
        self._app = app
        self._path = path
        self._script_name = script_name
        self._repeated_params = repeated_params
        self._stderr = stderr
        self._base: dict[str, Any] = {
            "wsgi.version": (1, 0),
            "wsgi.multithread": multithread,
            "wsgi.multiprocess": multiprocess,
            "wsgi.run_once": run_once,
            "wsgi.file_wrapper": FileWrapper,
            "wsgi.input_terminated": True,
        }

    def __call__(self, exchange: Exchange, carrier: Carrier) -> None:
        """Answer one exchange, whatever the application does. Raises nothing."""
        environ = exchange.params
        if exchange.refused is None:
            repair(exchange, self._path, self._script_name, self._repeated_params)
        if exchange.refused is not None:
            self._refuse(exchange, carrier, exchange.refused)
            return
        errors = Errors(exchange if self._stderr else None, carrier)
        answer = Answer(exchange, carrier, errors)
        environ.update(self._base)
        environ["wsgi.input"] = Input(exchange, carrier)
        environ["wsgi.errors"] = errors
        environ["fulgate.params"] = exchange.pairs
        environ["fulgate.aborted"] = answer.aborted
        environ["fulgate.after"] = answer.after
        try:
            result = self._app(environ, answer.start_response)
            if type(result) is list:  # what has nothing to close
                answer.body(result)
            else:
                try:
                    answer.body(result)
                finally:
                    close = getattr(result, "close", None)
                    if close is not None:
                        close()
        except BaseException as error:  # SystemExit in an application does not end the server
            self._failed(exchange, carrier, error)
        if errors.unfinished:
            errors.flush()

    # What goes wrong

    def _refuse(self, exchange: Exchange, carrier: Carrier, refused: LimitExceeded) -> None:
        """Answer what is refused, before the application or while it read the body."""
        log_refusal(exchange)
        self._end(exchange, carrier, refused.status, 0)

    def _failed(self, exchange: Exchange, carrier: Carrier, error: BaseException) -> None:
        """Log why the application did not answer, and answer instead of it."""
        if exchange.refused is not None and not exchange.ended:
            if not _is_aborted(error):
                self._log_traceback(exchange, carrier, error)
            self._refuse(exchange, carrier, exchange.refused)
            return
        if _is_aborted(error) and (exchange.aborted or isinstance(error, Aborted)):
            logger.debug("%s: aborted by the web server", request_line(exchange))
        else:
            self._log_traceback(exchange, carrier, error)
        self._end(exchange, carrier, "500 Internal Server Error", exit_status(error))

    def _log_traceback(self, exchange: Exchange, carrier: Carrier, error: BaseException) -> None:
        exchange.error = type(error).__name__
        logger.error("%s: the application raised", request_line(exchange), exc_info=error)
        if self._stderr:
            text = "".join(traceback.format_exception(error))
            lines = [printable(line) for line in text.split("\n")]
            to_stderr(exchange, carrier, "\n".join(lines))

    def _end(self, exchange: Exchange, carrier: Carrier, status: str, app_status: int) -> None:
        """End the exchange: with `status` when nothing was sent, as a broken answer otherwise."""
        if exchange.ended or exchange.aborted:
            return
        try:
            if exchange.head_sent:
                carrier.fail(exchange)
            else:
                _answer_plainly(exchange, carrier, status, app_status)
        except Aborted:
            logger.debug("%s: aborted by the web server", request_line(exchange))


def _answer_plainly(exchange: Exchange, carrier: Carrier, status: str, app_status: int = 0) -> None:
    """Send a whole small answer of our own."""
    text = (status + "\n").encode("latin-1")
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(text)))]
    exchange.start(status, headers)
    head_only = exchange.params.get("REQUEST_METHOD") == "HEAD"
    carrier.finish(exchange, b"" if head_only else text, app_status)


def _is_aborted(error: BaseException) -> bool:
    """Is it Aborted, or what an application made of that?"""
    seen = 0
    cause: BaseException | None = error
    while cause is not None and seen < 100:
        if isinstance(cause, Aborted):
            return True
        cause = cause.__cause__ or cause.__context__
        seen += 1
    return False


def exit_status(error: BaseException) -> int:
    """Give the appStatus that a process would have ended with."""
    if isinstance(error, SystemExit):
        code = error.code
        if code is None:
            return 0
        return code if isinstance(code, int) else 1
    return 1


def _size(pieces: list[bytes] | tuple[bytes, ...]) -> int:
    size = 0
    for piece in pieces:
        if not isinstance(piece, bytes):
            raise TypeError(f"a piece of the body is not bytes, but {type(piece).__name__}")
        size += len(piece)
    return size
