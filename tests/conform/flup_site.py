"""The application for `fulgate conform`, served by flup 1.0.3 on descriptor 0."""

from flup.server.fcgi import WSGIServer

from fulgate.conform_app import wsgi

if __name__ == "__main__":
    WSGIServer(wsgi).run()
