"""A FastCGI client: the web server's side. docs/client.md shows it.

`Client` is for threads, `AsyncClient` for asyncio; each keeps a pool of connections to one
application. What is used is imported, and nothing else: asyncio only with `AsyncClient`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fulgate.errors import AnswerCut, ConnectFailed, ProtocolError, Refused, TimedOut
from fulgate.exchange import Role

if TYPE_CHECKING:
    from fulgate.client.asynchronous import AsyncAnswer, AsyncClient
    from fulgate.client.blocking import Client, StreamedAnswer
    from fulgate.client.connection import Answer, Connection, call

__all__ = [
    "Answer",
    "AnswerCut",
    "AsyncAnswer",
    "AsyncClient",
    "Client",
    "ConnectFailed",
    "Connection",
    "ProtocolError",
    "Refused",
    "Role",
    "StreamedAnswer",
    "TimedOut",
    "call",
]

_HOMES = {
    "Answer": "connection",
    "AsyncAnswer": "asynchronous",
    "AsyncClient": "asynchronous",
    "Client": "blocking",
    "Connection": "connection",
    "StreamedAnswer": "blocking",
    "call": "connection",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
