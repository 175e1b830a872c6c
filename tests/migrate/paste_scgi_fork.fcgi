import os
from paste.deploy import loadapp
from flup.server.paste_factory import run_scgi_fork

here = os.path.dirname(os.path.abspath(__file__))
app = loadapp("config:production.ini", relative_to=here)
run_scgi_fork(app, {}, "", "127.0.0.1", "@PORT@", "127.0.0.1 10.0.0.1", maxChildren="3")
