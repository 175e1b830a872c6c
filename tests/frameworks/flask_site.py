"""A Flask site: a session, a form with a file, a stream, and links."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from flask import Flask, Response, abort, jsonify, redirect, request, session, url_for
from werkzeug.wrappers import Response as Redirect

app = Flask(__name__)
app.secret_key = "for tests only"


@app.get("/")
def index() -> str:
    return f"Hello, {session.get('name', 'stranger')}! Log in at {url_for('login')}"


@app.post("/login")
def login() -> Redirect:
    session["name"] = request.form["name"]
    return redirect(url_for("index"))


@app.post("/upload")
def upload() -> Response:
    file = request.files["file"]
    data = file.read()
    return jsonify(
        name=file.filename, size=len(data), sha256=hashlib.sha256(data).hexdigest(), **request.form
    )


@app.get("/numbers")
def numbers() -> Response:
    def lines() -> Iterator[str]:
        for n in range(1000):
            yield f"{n}\n"

    return Response(lines(), mimetype="text/plain")


@app.get("/hello/<name>")
def hello(name: str) -> Response:
    return jsonify(name=name, query=request.args.to_dict(), url=request.url)


@app.get("/forbidden")
def forbidden() -> Response:
    abort(403)
