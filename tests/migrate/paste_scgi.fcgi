import os
from paste.deploy import loadapp
from flup.server.paste_factory import run_scgi_thread

here = os.path.dirname(os.path.abspath(__file__))
app = loadapp("config:production.ini", relative_to=here)
run_scgi_thread(app, {}, host="127.0.0.1", port="@PORT@", maxThreads="6")
