"""A Twisted web site over FastCGI: `python -m tests.twisted_site ENDPOINT KIND [SETTING=VALUE]`."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from klein import Klein
from twisted.internet import reactor as installed
from twisted.internet import task
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.python import log
from twisted.web import static
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from fulgate.twisted import FastCGIFactory, FastCGISite
from tests import apps

reactor: Any = installed


def when(path: str) -> Deferred[None]:
    """Fire when a file is there."""
    there: Deferred[None] = Deferred()

    def look() -> None:
        if Path(path).exists():
            loop.stop()
            there.callback(None)

    loop = task.LoopingCall(look)
    loop.start(0.01)
    return there


class Page(Resource):
    isLeaf = True

    def __init__(self, render: Any) -> None:
        Resource.__init__(self)
        self.answer = render

    def render_GET(self, request: Any) -> Any:
        return self.answer(request)

    render_POST = render_GET


def argument(request: Any, name: str) -> str:
    value: bytes = request.args[name.encode()][0]
    return value.decode()


def about(request: Any) -> bytes:
    client, host = request.getClientAddress(), request.getHost()
    facts = {
        "client": [client.host, client.port > 0],
        "host": [host.host, host.port],
        "secure": request.isSecure(),
        "url": request.prePathURL().decode(),
        "name": request.getRequestHostname().decode(),
        "uri": request.uri.decode(),
        "path": request.path.decode(),
        "prepath": [part.decode() for part in request.prepath],
        "postpath": [part.decode() for part in request.postpath],
        "args": {k.decode(): [one.decode() for one in v] for k, v in request.args.items()},
        "cookie": (request.getCookie(b"c") or b"").decode(),
        "header": (request.getHeader("X-Thing") or ""),
        "method": request.method.decode(),
        "proto": request.clientproto.decode(),
        "user": request.getUser().decode(),
    }
    request.setHeader("Content-Type", "application/json")
    return json.dumps(facts).encode()


def late(request: Any) -> Any:
    reactor.callLater(0.05, request.write, b"late")
    reactor.callLater(0.1, request.finish)
    return NOT_DONE_YET


def stream(request: Any) -> Any:
    request.write(b"first\n")

    def second(_: None) -> None:
        request.write(b"second\n")
        request.finish()

    when(argument(request, "go")).addCallback(second)
    return NOT_DONE_YET


def early(request: Any) -> Any:
    request.write(b"")  # the head goes ahead
    when(argument(request, "go")).addCallback(lambda _: request.finish())
    return NOT_DONE_YET


class Push:
    """Writes `size` bytes as fast as it may, and notes the most that was written at once."""

    def __init__(self, request: Any, size: int) -> None:
        self.request = request
        self.left = size
        self.paused = False
        self.pauses = 0
        request.registerProducer(self, True)
        self.go()

    def go(self) -> None:
        while self.left and not self.paused:
            piece = bytes(min(self.left, 10_000))
            self.left -= len(piece)
            self.request.write(piece)
        if not self.left:
            self.request.unregisterProducer()
            self.request.finish()

    def pauseProducing(self) -> None:
        self.paused = True
        self.pauses += 1
        print("paused", flush=True)

    def resumeProducing(self) -> None:
        self.paused = False
        reactor.callLater(0, self.go)

    def stopProducing(self) -> None:
        self.left = 0
        self.paused = True
        print("stopped", flush=True)


def push(request: Any) -> Any:
    Push(request, int(argument(request, "size")))
    return NOT_DONE_YET


def gone(request: Any) -> Any:
    report = Path(argument(request, "report"))
    Path(argument(request, "began")).touch()
    request.notifyFinish().addErrback(lambda failure: report.write_text(failure.type.__name__))
    return NOT_DONE_YET


def done(request: Any) -> bytes:
    report = Path(argument(request, "report"))
    request.notifyFinish().addCallback(lambda _: report.write_text("whole"))
    return b"done"


def upload(request: Any) -> bytes:
    sha256 = hashlib.sha256()
    while piece := request.content.read(65536):
        sha256.update(piece)
    return sha256.hexdigest().encode()


def session(request: Any) -> bytes:
    found = request.getSession()
    found.count = getattr(found, "count", 0) + 1
    return b"%d" % found.count


def redirect(request: Any) -> bytes:
    request.addCookie("a", "1", path="/")
    request.addCookie("b", "2")
    request.redirect(b"/elsewhere")
    return b""


def empty(request: Any) -> bytes:
    request.setResponseCode(int(argument(request, "code")))
    return b""


def fails(request: Any) -> bytes:
    raise LookupError("this resource fails")


def breaks(request: Any) -> Any:
    request.write(b"x" * 100_000)
    reactor.callLater(0, request.loseConnection)
    return NOT_DONE_YET


def short(request: Any) -> Any:
    request.setHeader("Content-Length", "100000")
    request.write(b"x" * 50_000)
    request.finish()
    return NOT_DONE_YET


def split(request: Any) -> Any:
    request.setHeader("X-Split", "a\r\nX-Injected: b")
    return b"split"


def tree() -> Any:
    root: Any = Resource()
    pages = (about, late, stream, early, push, gone, done, upload, session, redirect)
    for function in (*pages, empty, fails, breaks, short, split):
        root.putChild(function.__name__.encode(), Page(function))
    root.putChild(b"files", static.File("files"))
    return root


def klein() -> Klein:
    app = Klein()

    @app.route("/")
    def home(request: Any) -> bytes:
        return b"home"

    @app.route("/hello/<name>")
    async def hello(request: Any, name: str) -> str:
        await task.deferLater(reactor, 0.02, lambda: None)
        return f"hello {name}"

    @app.route("/form", methods=["POST"])
    def form(request: Any) -> bytes:
        return b"&".join(k + b"=" + b",".join(v) for k, v in sorted(request.args.items()))

    @app.route("/wait")
    def wait(request: Any) -> Deferred[None]:
        report = Path(argument(request, "report"))
        Path(argument(request, "began")).touch()

        def cancelled(_: Deferred[None]) -> None:
            report.write_text("cancelled")

        return Deferred(cancelled)

    @app.route("/branch/", branch=True)
    def branch(request: Any) -> Any:
        return tree()

    return app


def main(endpoint: str, kind: str, *given: str) -> None:
    log.startLogging(sys.stdout)
    settings: dict[str, Any] = {}
    for one in given:
        name, _, value = one.partition("=")
        settings[name] = value if value.startswith("/") else json.loads(value)
    factory: Any
    if kind == "wsgi":
        factory = FastCGIFactory(apps.app, **settings)
    else:
        factory = FastCGISite(klein() if kind == "klein" else tree(), **settings)
    serverFromString(reactor, endpoint).listen(factory).addErrback(log.err)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
