"""What has no translation stays, and runs on the drop-in."""
from flup.server.fcgi import WSGIServer


class Server(WSGIServer):
    def error(self, req):
        req.stdout.write(b"Status: 500 Internal Server Error\r\n\r\nsorry")


def app(environ, start_response):
    if environ["PATH_INFO"] == "/raise":
        raise ValueError
    start_response("200 OK", [])
    return [environ["SITE"].encode()]


Server(app, environ={"SITE": "left"}, bindAddress="@SOCKET@").run()
