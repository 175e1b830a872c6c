"""tests/apps.py, a WSGI application, made one of ASGI by asgiref."""

from __future__ import annotations

from typing import Any

from asgiref.wsgi import WsgiToAsgi

from tests import apps

adapter: Any = WsgiToAsgi  # which has no types
app = adapter(apps.app)
