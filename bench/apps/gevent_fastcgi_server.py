"""Serve an application with gevent-fastcgi. usage: gevent_fastcgi_server.py PATH

Greenlets, a connection each; `time.sleep` is gevent's, so that who waits does not block others.
"""

from __future__ import annotations

import sys

from gevent.monkey import patch_all  # type: ignore[import-not-found, import-untyped, unused-ignore]

patch_all()

from gevent_fastcgi.server import FastCGIServer  # type: ignore[import-not-found, unused-ignore] # noqa: E402
from gevent_fastcgi.wsgi import WSGIRequestHandler  # type: ignore[import-not-found, unused-ignore] # noqa: E402
from work import app  # noqa: E402

if __name__ == "__main__":
    FastCGIServer(
        sys.argv[1], WSGIRequestHandler(app), max_conns=8192, backlog=2048
    ).serve_forever()
