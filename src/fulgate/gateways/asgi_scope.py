"""What an ASGI application is told of a request: the scope, made of repaired CGI variables.

ASGI 3.0, "HTTP & WebSocket ASGI Message Format", version 2.5.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import quote

from fulgate.exchange import Exchange

__all__ = [
    "ASGI_VERSIONS",
    "Application",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "make_scope",
    "share_names",
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
# Not Scope, Receive and Send: each framework has types of its own for them.
Application = Callable[[Any, Any, Any], Awaitable[None]]

ASGI_VERSIONS: Final = {"version": "3.0", "spec_version": "2.5"}
KNOWN_LIMIT: Final = 1024

_names: dict[str, bytes] = {}  # "HTTP_X_Y": b"x-y"
_kept: dict[str, str] = {}  # names of parameters


def make_scope(kind: str, exchange: Exchange) -> dict[str, Any]:
    """Give the scope of a request, "http" or "websocket", whose params were repaired.

    `path` is SCRIPT_NAME and PATH_INFO, which are decoded once, read as UTF-8 (what is none
    becomes U+FFFD; `raw_path` has it). A name of a header is one that CGI leaves: "_" is "-".
    """
    params = exchange.params
    scheme = params["wsgi.url_scheme"]
    if kind == "websocket":
        scheme = "wss" if scheme == "https" else "ws"
    root = _text(params["SCRIPT_NAME"])
    return {
        "type": kind,
        "asgi": dict(ASGI_VERSIONS),
        "http_version": _version(params["SERVER_PROTOCOL"]),
        "scheme": scheme,
        "path": root + _text(params["PATH_INFO"]),
        "raw_path": _raw_path(params),
        "query_string": params["QUERY_STRING"].encode("latin-1"),
        "root_path": root,
        "headers": _headers(params),
        "client": _address(params.get("REMOTE_ADDR"), params.get("REMOTE_PORT")),
        "server": _address(
            params.get("SERVER_ADDR") or params["SERVER_NAME"], params["SERVER_PORT"]
        ),
        "extensions": {"fulgate.params": {"pairs": exchange.pairs}},
    }


def share_names(exchange: Exchange) -> None:
    """Have the names of a request's params be those of others, where it is to last.

    They take as much memory as the values; but to look for each costs more than most requests are
    worth.
    """
    params: dict[str, Any] = {}
    for name, value in exchange.params.items():
        known = _kept.get(name)
        if known is None:
            known = name
            if len(_kept) < KNOWN_LIMIT:
                _kept[name] = name
        params[known] = value
    exchange.params = params


def _text(path: str) -> str:
    return path if path.isascii() else path.encode("latin-1").decode("utf-8", "replace")


def _version(protocol: str) -> str:
    """Give "1.1" for "HTTP/1.1", and "2" for "HTTP/2.0" as well as for "HTTP/2"."""
    version = protocol[5:]
    return version[0] if version in ("2.0", "3.0") else version or "1.0"


def _raw_path(params: dict[str, Any]) -> bytes:
    uri: str = params.get("REQUEST_URI", "")
    if uri[:1] not in ("/", "*"):  # "http://host/path", or nothing
        _, sign, rest = uri.partition("://")
        uri = "/" + rest.partition("/")[2] if sign else ""
    if not uri:
        return quote(params["SCRIPT_NAME"] + params["PATH_INFO"], encoding="latin-1").encode()
    return uri.partition("?")[0].encode("latin-1")


def _headers(params: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    headers: list[tuple[bytes, bytes]] = []
    for name, value in params.items():
        if name.startswith("HTTP_"):
            known = _names.get(name)
            if known is None:
                known = name[5:].replace("_", "-").lower().encode("latin-1")
                if len(_names) < KNOWN_LIMIT:
                    _names[name] = known
            headers.append((known, value.encode("latin-1")))
        elif name == "CONTENT_TYPE":
            headers.append((b"content-type", value.encode("latin-1")))
        elif name == "CONTENT_LENGTH":
            headers.append((b"content-length", value.encode("latin-1")))
    return headers


def _address(host: str | None, port: str | None) -> tuple[str, int] | None:
    """Give host and port; None for a client or a server on a Unix socket ("unix:")."""
    if not host or host.startswith("unix:"):
        return None
    return host, int(port) if port and port.isascii() and port.isdigit() else 0
