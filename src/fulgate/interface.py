"""Tell a WSGI application from an ASGI one."""

from __future__ import annotations

import functools
import inspect
from typing import Any

__all__ = ["interface_of"]


def interface_of(app: Any, asked: str = "auto") -> str:
    """Give "wsgi" or "asgi": what was `asked` for, unless that is "auto".

    An application of ASGI 3.0 is a coroutine function, or an object whose `__call__` is one; all
    else is taken for WSGI, so what only returns a coroutine has to be named. Never raises.
    """
    if asked != "auto":
        return asked
    while isinstance(app, functools.partial):
        app = app.func
    if inspect.iscoroutinefunction(app):
        return "asgi"
    call = None if inspect.isclass(app) else getattr(app, "__call__", None)  # noqa: B004
    return "asgi" if inspect.iscoroutinefunction(call) else "wsgi"
