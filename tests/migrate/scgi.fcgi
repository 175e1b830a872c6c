from flup.server.scgi import WSGIServer


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"scgi"]


if __name__ == "__main__":
    server = WSGIServer(
        app,
        scriptName="",
        bindAddress=("127.0.0.1", @PORT@),
        allowedServers=["127.0.0.1"],
        maxThreads=3,  # more would be too many
    )
    server.run()
