"""Serve an application with bjoern. usage: bjoern_server.py PATH"""

from __future__ import annotations

import sys

import bjoern  # type: ignore[import-not-found, unused-ignore]
from work import app

if __name__ == "__main__":
    bjoern.run(app, f"unix:{sys.argv[1]}", listen_backlog=2048)
