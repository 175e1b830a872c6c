def application(environ, start_response):
    start_response('200 OK', [])
    return [b'fork']

if True:
    from flup.server.fcgi_fork import WSGIServer
    WSGIServer(application, bindAddress=('127.0.0.1', @PORT@), maxChildren=5, maxRequests=100).run()
