"""An ASGI 3 application that hands requests to a FastCGI application, as a web server does."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes, urlsplit

import fulgate
from fulgate.client.aio import AsyncConnection, Pool
from fulgate.client.asked import HeadOf, connectable
from fulgate.client.head import Head
from fulgate.client.params import HOP_BY_HOP, BadRequest, header_params, locate
from fulgate.endpoint import Endpoint
from fulgate.errors import ConfigError, FulgateError, ProtocolError, Refused
from fulgate.protocols.fastcgi_client import Request, encode_pairs
from fulgate.protocols.fastcgi_records import OVERLOADED

__all__ = ["BrokenAnswer", "FastCGIProxy", "Receive", "Scope", "Send", "send_text"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

logger = logging.getLogger("fulgate.proxy")

# RFC 9110, section 9.2.2: these may be sent again. Others never go over a connection that the
# application may be closing at this moment, since nobody could tell whether they were carried out.
IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})

REPLAY: Final = 65536  # bytes of a body that are kept for a second try
LOGGED: Final = 65536  # characters of FCGI_STDERR that are logged of one request,
A_LINE: Final = 64  # with this for each line of it


class BrokenAnswer(FulgateError):
    """The answer broke after it had begun.

    It is raised through the ASGI server, which can then only close the HTTP connection: so the
    client learns of it.
    """


class FastCGIProxy:
    """An ASGI application; each HTTP request goes to the FastCGI application at `endpoint`.

    Without `root` the whole path below the mount point is PATH_INFO, and SCRIPT_NAME is the mount
    point. With `root` the path chooses a script file there, as PHP wants it: see
    `fulgate.client.params.locate` for `index` and `split_path`.

    `params` are added to each request, and replace what the request says. `keep_alive` is the
    count of idle connections kept, each for `keep_alive_timeout` seconds; 0 keeps none (with
    PHP-FPM each of them occupies a child). `read_timeout` is in seconds without any progress
    until 504; 0 waits for ever.

    Raises ConfigError for an endpoint that one cannot connect to, or a root that is no folder.
    """

    def __init__(
        self,
        endpoint: str | Endpoint,
        *,
        root: str = "",
        index: str = "index.php",
        split_path: Sequence[str] = (".php",),
        params: Mapping[str, str] | None = None,
        keep_alive: int = 8,
        keep_alive_timeout: float = 15.0,
        connect_timeout: float = 5.0,
        read_timeout: float = 60.0,
    ) -> None:
        # A folder that is not there now would turn into a surprise when somebody makes it later.
        if root and not os.path.isdir(root):
            raise ConfigError(f"the root {root!r} is no folder")
        if isinstance(split_path, str):
            split_path = (split_path,)
        self.pool = Pool(connectable(endpoint), keep_alive, keep_alive_timeout, connect_timeout)
        self.read_timeout = read_timeout
        self._root = root
        self._index = index
        self._split_path = tuple(split_path)
        self._params = dict(params or {})
        try:
            encode_pairs(self._params.items())
        except UnicodeEncodeError as error:
            raise ConfigError(f"params have to be latin-1: {error}") from None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await self._websocket(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            raise ValueError(f"the scope {scope['type']!r} is not served")

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            from fulgate.client.proxy_websocket import relay

            scheme = "https" if scope.get("scheme") == "wss" else "http"
            params = self.params({**scope, "method": "GET", "scheme": scheme})
            if params is not None:
                await relay(self.pool, params, scope, receive, send)
                return
        except (ImportError, OSError, ProtocolError, BadRequest) as error:
            logger.error("%s: a WebSocket: %s", self.pool.endpoint, error)
        await send({"type": "websocket.close", "code": 1011, "reason": ""})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                self.pool.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            params = self.params(scope)
        except BadRequest as error:
            _log(logging.WARNING, scope, str(error))
            await send_text(send, 400, "Bad Request", scope["method"])
            return
        if params is None:
            await send_text(send, 404, "File not found", scope["method"])
            return
        await _Relay(self.pool, params, self.read_timeout, scope, receive, send).run()

    def params(self, scope: Scope) -> dict[str, str] | None:
        """Make the CGI variables of a request (RFC 3875, section 4.1).

        None when there is a root, and the path chooses no script in it. Raises BadRequest.
        """
        uri, path = _paths(scope)
        mount = scope.get("root_path", "").rstrip("/").encode()
        if path.startswith(mount + b"/") or path == mount:
            path = path[len(mount) :]
        query = scope.get("query_string", b"")
        host, port = scope.get("server") or ("localhost", None)
        secure = scope.get("scheme", "http") == "https"
        version = scope.get("http_version", "1.1")
        params = {
            "GATEWAY_INTERFACE": "CGI/1.1",
            "SERVER_SOFTWARE": f"fulgate/{fulgate.__version__}",
            "SERVER_PROTOCOL": "HTTP/" + (version if "." in version else version + ".0"),
            "SERVER_NAME": host,
            "SERVER_PORT": str(port or (443 if secure else 80)),
            "REQUEST_METHOD": scope["method"],
            "REQUEST_SCHEME": "https" if secure else "http",
            "REQUEST_URI": _text(uri + (b"?" + query if query else b"")),
            "QUERY_STRING": _text(query),
            "SCRIPT_NAME": _text(mount),
            "PATH_INFO": _text(path),
        }
        if secure:
            params["HTTPS"] = "on"
        if scope.get("client"):
            params["REMOTE_ADDR"] = scope["client"][0]
            params["REMOTE_PORT"] = str(scope["client"][1])
        if self._root:
            script = locate(self._root, path or b"/", self._index, self._split_path)
            if script is None:
                return None
            params["SCRIPT_NAME"] = _text(mount + script.name)
            params["PATH_INFO"] = _text(script.path_info)
            params["SCRIPT_FILENAME"] = _text(script.filename)
            params["DOCUMENT_ROOT"] = _text(script.root)
            params["REDIRECT_STATUS"] = "200"  # php-cgi refuses to run without it
        params.update(header_params(scope["headers"]))
        params.update(self._params)
        return params


class _Relay:
    """One request on its way there, and its answer on the way back."""

    def __init__(
        self,
        pool: Pool,
        params: dict[str, str],
        timeout: float,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self.pool = pool
        self.params = params
        self.timeout = timeout
        self.scope = scope
        self.receive = receive
        self.send = send
        self.started = False  # the answer's head has gone to the client
        self.kept: list[bytes] | None = []  # the body so far, for a second try; None: too long
        self.kept_size = 0
        self.body_ended = not _has_body(scope)
        self.logged = 0  # of FCGI_STDERR
        self.released = False  # the connection has been given back

    async def run(self) -> None:
        method = self.scope["method"]
        try:
            if await self._try(fresh=method not in IDEMPOTENT):
                await self._try(fresh=True)
        except (OSError, ProtocolError) as error:  # TimeoutError is an OSError
            status, reason = 502, "Bad Gateway"
            if isinstance(error, TimeoutError):
                status, reason = 504, "Gateway Timeout"
            elif isinstance(error, Refused) and error.protocol_status == OVERLOADED:
                status, reason = 503, "Service Unavailable"
            _log(logging.ERROR, self.scope, f"{self.pool.endpoint}: {error or 'timed out'}")
            if self.started:
                raise BrokenAnswer(str(error)) from None
            await send_text(self.send, status, reason, method)

    async def _try(self, *, fresh: bool) -> bool:
        """Make the request and pass the answer on; true if it is to be made again."""
        connection = await self.pool.acquire(fresh=fresh)
        connection.on_stderr = self._stderr
        no_body = self.body_ended and not self.kept
        request = connection.begin(self.params.items(), self.pool.keep, no_body=no_body)
        upload = asyncio.create_task(self._upload(connection, request))
        answer = asyncio.create_task(self._answer(connection, request))
        try:
            await asyncio.wait((upload, answer), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                upload.result()  # the client has gone, or `receive` raised
                return False
            if not answer.exception():
                answer.result()
                return False
            if (
                connection.reused
                and request.cut
                and not connection.answered
                and self.kept is not None
            ):
                return True
            answer.result()
            return False
        finally:
            try:
                await _cancel(upload, answer)
            finally:  # also when this is cancelled while it cancels
                if not self.released:
                    self.pool.release(connection)

    async def _upload(self, connection: AsyncConnection, request: Request) -> None:
        """Pass the body on; return when the client has gone."""
        for piece in self.kept or ():
            connection.write(request.send(piece))
        if self.body_ended and not request.stdin_ended:
            connection.write(request.end())
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                return
            if self.body_ended:
                await asyncio.sleep(0.05)  # an ASGI server that has no more to tell, and tells it
                continue
            # What the message said is noted before the first wait, which may be cancelled.
            self.body_ended = not message.get("more_body", False)
            if body := message.get("body", b""):
                self._keep(body)
                connection.write(request.send(body))
            if self.body_ended:
                connection.write(request.end())
            await connection.drain()

    def _keep(self, body: bytes) -> None:
        self.kept_size += len(body)
        if self.kept is not None and self.kept_size <= REPLAY:
            self.kept.append(body)
        else:
            self.kept = None

    async def _answer(self, connection: AsyncConnection, request: Request) -> None:
        """Pass the answer on, to its end."""
        head, data = await self._head(connection, request)
        self.kept = None
        bare = self.scope["method"] == "HEAD" or head.status in (204, 304)
        length = head.get("Content-Length")
        left = int(length) if length and not bare else -1
        start = {"type": "http.response.start", "status": head.status, "headers": _headers(head)}
        self.started = True
        await self.send(start)
        while True:
            if left >= 0:
                left -= len(data)
                if left < 0:
                    raise ProtocolError(f"the body is longer than its Content-Length, {length}")
            last = request.ended and not request.stdout
            if last and not request.whole:
                raise Refused(request.protocol_status)
            if last and left > 0:
                raise ProtocolError(f"the body is shorter than its Content-Length, {length}")
            if last and request.stdin_ended:
                # Before the client can have the end, and ask for more: that may use it again.
                self.pool.release(connection)
                self.released = True
            if last or (data and not bare):
                body = b"" if bare else data
                await self.send({"type": "http.response.body", "body": body, "more_body": not last})
            if last:
                return
            data = await connection.receive(self.timeout)

    async def _head(self, connection: AsyncConnection, request: Request) -> tuple[Head, bytes]:
        reader = HeadOf(request)
        while (found := reader.feed(await connection.receive(self.timeout))) is None:
            pass
        return found

    def _stderr(self, data: bytes) -> None:
        for line in data.decode("utf-8", "backslashreplace").splitlines():
            if self.logged > LOGGED:
                return
            self.logged += len(line) + A_LINE
            if self.logged > LOGGED:
                _log(logging.ERROR, self.scope, "stderr: what follows is not logged")
            elif line:
                _log(logging.ERROR, self.scope, f"stderr: {line}")


async def send_text(send: Send, status: int, text: str, method: str = "GET") -> None:
    """Answer with one line of text."""
    body = text.encode() + b"\n"
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})


def _paths(scope: Scope) -> tuple[bytes, bytes]:
    """Give the path as the request's line has it, and the path decoded, as bytes."""
    path: str = scope["path"]
    raw: bytes = scope.get("raw_path") or quote(path).encode()
    if not raw.startswith(b"/") and raw != b"*":
        # The absolute form (RFC 9112, section 3.2.2).
        parts = urlsplit(raw)
        if not parts.scheme or not parts.netloc:
            raise BadRequest("the target of the request is no path")
        raw = parts.path or b"/"
        path = unquote_to_bytes(raw).decode("utf-8", "replace")
    decoded = unquote_to_bytes(raw)
    if decoded.decode("utf-8", "replace") != path:
        decoded = path.encode()  # whoever called us changed it, and means it
    if b"\0" in decoded:
        raise BadRequest("NUL in the path")
    return raw, decoded


def _has_body(scope: Scope) -> bool:
    """May a body follow? Only of HTTP/1 the headers tell (RFC 9112, section 6.3)."""
    if not scope.get("http_version", "1.1").startswith("1"):
        return True
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0"))
        for name, value in scope["headers"]
    )


def _headers(head: Head) -> list[tuple[bytes, bytes]]:
    dropped = set(HOP_BY_HOP) - {b"proxy-authenticate"}
    dropped.update(token.strip().encode() for token in head.get("Connection").lower().split(","))
    named = [(name.lower(), value) for name, value in head.headers]
    return [(name, value) for name, value in named if name not in dropped]


def _text(data: bytes) -> str:
    return data.decode("latin-1")


def _log(level: int, scope: Scope, text: str) -> None:
    line = f"{scope['method']} {scope['path']}: {text}"
    logger.log(level, "%s", "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))


async def _cancel(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
