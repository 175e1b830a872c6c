"""A site of web.py that serves itself with its own runfcgi, which imports flup by name."""

import sys

import web
from web.wsgi import runfcgi

urls = ("/hello", "Hello", "/fails", "Fails")


class Hello:
    def GET(self):
        return "Hello, world!\n"

    def POST(self):
        return web.data()


class Fails:
    def GET(self):
        raise LookupError("in web.py")


web.config.debug = False
application = web.application(urls, globals())
host, _, port = sys.argv[1].rpartition(":")
runfcgi(application.wsgifunc(), (host, int(port)) if host else sys.argv[1])
