"""Trac's own front end, as 1.0 has it."""
from trac.web.main import dispatch_request

use_flup = False
try:
    from flup.server.fcgi import WSGIServer
    use_flup = True
except ImportError:
    from trac.web._fcgi import WSGIServer


def run():
    """Serves a Trac instance over FastCGI."""
    params = {}
    if use_flup:
        server = WSGIServer(dispatch_request, multiplexed=True, bindAddress="@SOCKET@")
    else:
        server = WSGIServer(dispatch_request)
    server.run()


run()
