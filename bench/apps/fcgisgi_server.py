"""Serve an application with fcgisgi. usage: fcgisgi_server.py wsgi|asgi PATH"""

from __future__ import annotations

import asyncio
import sys

import asgi
import work
from fcgisgi import run_asgi_server, run_wsgi_server  # type: ignore[import-not-found, unused-ignore]

if __name__ == "__main__":
    kind, path = sys.argv[1:]
    if kind == "asgi":
        asyncio.run(run_asgi_server(asgi.app, bind_address=path))
    else:
        asyncio.run(run_wsgi_server(work.app, bind_address=path))
