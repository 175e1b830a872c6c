"""Fulgate: a FastCGI application server for Python."""

from __future__ import annotations

__version__ = "0.1.0"

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
)
from fulgate.serve import Server, serve

__all__ = [
    "Aborted",
    "AppNotFound",
    "BindError",
    "Config",
    "ConfigError",
    "FulgateError",
    "LimitExceeded",
    "NoThreads",
    "ProtocolError",
    "Server",
    "__version__",
    "serve",
]
