from wsgiref.simple_server import demo_app
from flup.server import fcgi
server = fcgi.WSGIServer(demo_app)
server.run()
