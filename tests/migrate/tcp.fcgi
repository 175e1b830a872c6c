import sys, flup.server.fcgi as flups
from wsgiref.simple_server import demo_app

HOST = '127.0.0.1'

def main():
    server = flups.WSGIServer(demo_app, bindAddress=(HOST, @PORT@), multithreaded=False)
    # served until SIGTERM
    ret = server.run()
    sys.exit(ret and 42 or 0)


serve = main
serve()
