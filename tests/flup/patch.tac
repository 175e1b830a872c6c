"""The diary's own patch of flup: its jobs on the reactor's threads, and a loop of its own."""

import os
import select
import sys
import threading

from flup.server import threadedserver
from twisted.application import service
from twisted.internet import reactor

from tests.apps import app


class ReactorPool:
    """Has the reactor's threads do the jobs."""

    def __init__(self, minSpare=1, maxSpare=5, maxThreads=sys.maxsize):
        reactor.suggestThreadPoolSize(20)

    def addJob(self, job, allowQueuing=True):
        reactor.callInThread(job.run)
        return True


def run(self, sock, timeout=1.0):
    self._keepGoing = True
    self._hupReceived = False
    while LOOKS_AT_KEEP_GOING is False or self._keepGoing:
        readable, _, _ = select.select([sock], [], [], timeout)
        if not readable:
            continue
        client, address = sock.accept()
        if not self._isClientAllowed(address):
            client.close()
            continue
        job = self._jobClass(client, address, *self._jobArgs)
        if not self._threadPool.addJob(job, allowQueuing=False):
            client.close()
        self._mainloopPeriodic()
    return self._hupReceived


LOOKS_AT_KEEP_GOING = os.environ["LOOKS_AT_KEEP_GOING"] == "yes"
threadedserver.ThreadPool = ReactorPool
threadedserver.ThreadedServer.run = run


def about(environ, start_response):
    if environ["PATH_INFO"] == "/thread":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [threading.current_thread().name.encode()]
    return app(environ, start_response)


from flup.server.fcgi import WSGIServer  # noqa: E402

server = WSGIServer(about, bindAddress=("0.0.0.0", int(os.environ["PORT"])))
reactor.callInThread(server.run)
application = service.Application("httprpc")
