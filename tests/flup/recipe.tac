"""The recipe of 2009: the server is built while the file is read, that is, before the daemon's
fork, and runs in the reactor's thread pool."""

import os
import sys

from flup.server.fcgi import WSGIServer
from twisted.application import service
from twisted.internet import reactor

from tests.apps import app

server = WSGIServer(app, bindAddress=("0.0.0.0", int(os.environ["PORT"])))
reactor.callInThread(server.run)
application = service.Application("httprpc")
