"""Fulgate: a FastCGI application server for Python."""

from __future__ import annotations

__version__ = "0.1.0"

import importlib
from types import ModuleType

from fulgate.config import Config
from fulgate.errors import (
    Aborted,
    AppNotFound,
    BindError,
    ConfigError,
    FulgateError,
    LimitExceeded,
    NoThreads,
    ProtocolError,
    StartupFailed,
)
from fulgate.gateways.filters import Filter, Filtered, FilterRequest, filter
from fulgate.gateways.roles import Allow, Authorizer, AuthorizerRequest, Deny, Roles, authorizer
from fulgate.serve import serve
from fulgate.server import Server

__all__ = [
    "Aborted",
    "Allow",
    "AppNotFound",
    "Authorizer",
    "AuthorizerRequest",
    "BindError",
    "Config",
    "ConfigError",
    "Deny",
    "Filter",
    "FilterRequest",
    "Filtered",
    "FulgateError",
    "LimitExceeded",
    "NoThreads",
    "ProtocolError",
    "Roles",
    "Server",
    "StartupFailed",
    "__version__",
    "aio",
    "authorizer",
    "filter",
    "serve",
]


def __getattr__(name: str) -> ModuleType:
    if name == "aio":  # imported when it is used: it brings asyncio
        return importlib.import_module("fulgate.aio")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
