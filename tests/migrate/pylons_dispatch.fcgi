# dispatch.fcgi of a Pylons application
import os
import flup.server.fcgi
from paste.deploy import loadapp

here = os.path.dirname(os.path.abspath(__file__))
wsgi_app = loadapp("config:" + os.path.join(here, "production.ini"))
if __name__ == "__main__":
    flup.server.fcgi.WSGIServer(wsgi_app, bindAddress=os.path.join("@FOLDER@", "app.sock")).run()
