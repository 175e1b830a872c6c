#!/usr/bin/env python3
"""A plain script, with all that flup takes."""

from flup.server.fcgi import WSGIServer, FCGI_RESPONDER  # the server


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"plain"]


if __name__ == "__main__":
    WSGIServer(
        app,  # what is served
        environ=None,
        multithreaded=True,
        multiprocess=False,
        bindAddress="@SOCKET@",  # where
        umask=0o007,
        multiplexed=True,
        debug=False,
        roles=(FCGI_RESPONDER,),
        forceCGI=False,
        minSpare=2,
        maxSpare=5,
        maxThreads=3,
    ).run()
