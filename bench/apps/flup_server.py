"""Serve an application with flup. usage: flup_server.py PATH

Everything is flup's default: a connection occupies a thread as long as it lives, a pool keeps
one to five spare threads and grows without limit.
"""

from __future__ import annotations

import sys
import warnings

warnings.simplefilter("ignore")  # flup calls names that Python has deprecated

from flup.server.fcgi import WSGIServer  # type: ignore[import-not-found, unused-ignore] # noqa: E402
from work import app  # noqa: E402

if __name__ == "__main__":
    WSGIServer(app, bindAddress=sys.argv[1]).run()
