"""The application: anything of WSGI or ASGI stands here."""


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"A shop\n"]
