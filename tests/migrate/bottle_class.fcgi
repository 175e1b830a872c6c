import bottle
from bottle import Bottle, FlupFCGIServer

app = Bottle()

@app.route("/hello/<name>")
def hello(name):
    return "bottle " + name

app.run(server=FlupFCGIServer, bindAddress="@SOCKET@")
