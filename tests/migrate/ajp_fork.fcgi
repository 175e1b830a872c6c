import flup.server.ajp_fork


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ajp"]


flup.server.ajp_fork.WSGIServer(app, "", bindAddress=("127.0.0.1", @PORT@), timeout=10).run()
