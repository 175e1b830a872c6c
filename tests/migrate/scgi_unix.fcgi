from flup.server.scgi import WSGIServer


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"scgi"]


WSGIServer(app, "", bindAddress="@SOCKET@", umask=0o007).run()
