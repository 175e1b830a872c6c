"""A site of Bottle that serves itself with its own FlupFCGIServer, which imports flup by name."""

import sys

import bottle


@bottle.route("/hello", method=["GET", "POST"])
def hello():
    return bottle.request.body.read() or "Hello, world!\n"


bottle.run(server="flup", quiet=True, bindAddress=sys.argv[1], maxThreads=2)
