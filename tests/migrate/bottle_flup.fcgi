from bottle import route, run

@route("/hello/<name>")
def hello(name):
    return "bottle " + name

run(server='flup', host='127.0.0.1', port=@PORT@, quiet=True)  # behind nginx
