"""How frameworks used flup: Bottle, Django, Paste, Trac and web.py, each recipe by the name called.

A recipe gives the arguments for `serve`, and the imports that they need.
"""

from __future__ import annotations

import ast
from collections.abc import Callable

from fulgate.migrate.arguments import (
    PREFORK,
    SPARES,
    Arguments,
    Given,
    Untranslatable,
    bind,
    named,
    number,
    prefork,
    quote,
    restrict,
    speak,
    take,
    value_of,
)
from fulgate.migrate.source import Source

__all__ = ["RECIPES", "Recipe", "is_bottle"]

Recipe = Callable[[Source, ast.Call], tuple[Arguments, list[str]]]

BOTTLE = (
    "app", "server", "host", "port", "interval", "reloader", "quiet", "plugins", "debug", "config",
)  # fmt: skip
PASTE = (
    "wsgi_app", "global_conf", "host", "port", "socket", "umask", "multiplexed", "debug",
    "minSpare", "maxSpare",
)  # fmt: skip
PASTE_OVER_TCP = (
    "wsgi_app", "global_conf", "scriptName", "host", "port", "allowedServers", "debug",
    "minSpare", "maxSpare",
)  # fmt: skip
# What Django's runfastcgi took beside, and `fulgate serve` takes, too.
OF_DJANGO = {
    "pidfile": "is an option of the command: fulgate serve MODULE:APP --pid FILE",
    "workdir": "is an option of the command: fulgate serve MODULE:APP --chdir FOLDER",
    "umask": "is an option of the command: fulgate serve MODULE:APP --umask MASK",
    "minspare": SPARES,
    "maxspare": SPARES,
}
PORTS = {"scgi": 4000, "ajp": 8009}
EMPTY = [ast.dump(node) for node in (ast.Constant(None), ast.List([], ast.Load()))]


def is_bottle(source: Source, call: ast.Call) -> bool:
    """Is it Bottle's run, with flup for its server?"""
    if not isinstance(call.func, (ast.Name, ast.Attribute)):
        return False
    method = isinstance(call.func, ast.Attribute) and call.func.attr == "run"
    if not method and "bottle.run" not in source.dotted(call.func):
        return False
    for keyword in call.keywords:
        if keyword.arg == "server":
            if "bottle.FlupFCGIServer" in source.dotted(keyword.value):
                return True
            return isinstance(keyword.value, ast.Constant) and keyword.value.value == "flup"
    return False


def bottle(source: Source, call: ast.Call) -> tuple[Arguments, list[str]]:
    made = Arguments()
    imports: list[str] = []
    if "bottle.run" in source.dotted(call.func):
        given = named(call, BOTTLE)
        app = given.pop("app", (call, None))[1]
    else:
        given = named(call, BOTTLE[1:])
        app = call.func.value if isinstance(call.func, ast.Attribute) else None
    if app is None or (isinstance(app, ast.Constant) and app.value is None):
        if "bottle" in source.origins:
            made.texts[""] = "bottle.default_app()"
        else:
            made.texts[""] = "default_app()"
            if "bottle" not in source.stars and not source.has("default_app"):
                imports.append("from bottle import default_app")
    elif isinstance(app, ast.Constant):
        raise Untranslatable(call, "it names its application by a string, which Bottle loads")
    else:
        made.texts[""] = source.get(app)
    del given["server"]
    for name in ("plugins", "config"):
        value = given.pop(name, (call, None))[1]
        if value is not None and ast.dump(value) not in EMPTY:
            raise Untranslatable(call, f"{name} is for Bottle itself")
    for name, why in {
        "reloader": "is an option of the command: fulgate serve MODULE:APP --reload",
        "debug": "is for Bottle itself: call bottle.debug(True)",
        "quiet": "has no counterpart: serve prints nothing",
        "interval": "goes with the reloader",
    }.items():
        node, value = given.pop(name, (call, None))
        if value is not None and value_of(source, value):
            made.drop(node, name, why)
    host = given.pop("host", (call, ast.Constant("127.0.0.1")))[1]
    port = given.pop("port", (call, ast.Constant(8080)))[1]
    if "bindAddress" not in given:
        bind(source, made, call, host=host, port=port)
    take(source, made, given)
    return made, imports


def django(source: Source, call: ast.Call) -> tuple[Arguments, list[str]]:
    made = Arguments({"": "get_wsgi_application()"})
    given = {k: v[1] for k, v in named(call, ("argset",)).items()}
    for text in _words(source, given.pop("argset", None)):
        name, equals, said = text.partition("=")
        given[name.lower()] = ast.Constant(said if equals else True)
    values = {name: value_of(source, node) for name, node in given.items()}
    protocol = str(values.pop("protocol", None) or "fcgi")
    if protocol not in ("fcgi", *PORTS):
        raise Untranslatable(call, f"the protocol {protocol} is unknown")
    bound = {name: given[name] for name in ("host", "port", "socket") if values.pop(name, None)}
    if bound.keys() not in ({"host", "port"}, {"socket"}, set()):
        raise Untranslatable(call, "host and port belong together, without a socket")
    if not bound and protocol != "fcgi":
        raise Untranslatable(call, f"{protocol} wants host and port, or a socket")
    bind(source, made, call, **bound)
    if protocol != "fcgi":
        speak(made, protocol)
    method = str(values.pop("method", "prefork"))
    if method in ("thread", "threaded"):
        if values.pop("maxchildren", None):
            made.texts["threads"] = number(source, given["maxchildren"])
    else:
        words = {name: name.lower() for name in PREFORK if name != "timeout"}
        workers: Given = {
            name: (call, given[word]) for name, word in words.items() if values.pop(word, None)
        }
        prefork(source, made, call, f"method={method}", workers)
    if values.get("errlog"):
        made.texts["error_logfile"] = quote(str(values.pop("errlog")))
    daemon = values.pop("daemonize", None)
    if bound if daemon is None else str(daemon).lower() in ("true", "yes", "t"):
        why = "there is no daemonize: the process stays in the foreground, for a supervisor"
        made.notes.append((call, why))
    for name, value in values.items():
        if value and str(value).lower() != "false":
            made.drop(call, name, OF_DJANGO.get(name, "has no counterpart here"))
    return made, ["from django.core.wsgi import get_wsgi_application"]


def _words(source: Source, node: ast.expr | None) -> list[str]:
    if node is None:
        return []
    value = value_of(source, node)
    if not isinstance(value, (list, tuple)):
        raise Untranslatable(node, "its options are computed when the program runs")
    return [str(word) for word in value]


def paste(source: Source, call: ast.Call) -> tuple[Arguments, list[str]]:
    made, given = _paste(source, call, PASTE)
    where = {name: given.pop(name)[1] for name in ("host", "port", "socket") if name in given}
    where = {
        name: value
        for name, value in where.items()
        if not (isinstance(value, ast.Constant) and value.value is None)
    }
    umask = given.pop("umask", (call, None))[1]
    bind(source, made, call, umask=umask, **where)
    _paste_rest(source, call, made, given)
    return made, []


def paste_over_tcp(source: Source, call: ast.Call) -> tuple[Arguments, list[str]]:
    """Translate what serves SCGI or AJP: by default on localhost, and for that alone."""
    made, given = _paste(source, call, PASTE_OVER_TCP)
    protocol = _paste_name(source, call).split("_")[1]
    host = given.pop("host", (call, ast.Constant("localhost")))[1]
    port = given.pop("port", (call, ast.Constant(PORTS[protocol])))[1]
    bind(source, made, call, host=host, port=port)
    speak(made, protocol)
    allowed = given.pop("allowedServers", None)
    if allowed is None and (made.notes or "allowed_clients" in made.texts):
        allowed = (call, ast.Constant("127.0.0.1"))
    if allowed is not None:
        node, value = allowed
        names = value_of(source, value)
        if isinstance(names, str):  # a list, as a file of Paste's has one
            value = ast.List([ast.Constant(name) for name in names.split()], ast.Load())
        restrict(source, made, (node, value), None)
        made.notes = [note for note in made.notes if "allowed_clients" not in note[1]]
    restrict(source, made, None, given.pop("scriptName", None))
    _paste_rest(source, call, made, given)
    return made, []


def _paste_name(source: Source, call: ast.Call) -> str:
    return source.dotted(call.func)[0].rpartition(".")[2]


def _paste(source: Source, call: ast.Call, names: tuple[str, ...]) -> tuple[Arguments, Given]:
    """Give what all of Paste's have in common, and the arguments that are left."""
    fork = _paste_name(source, call).endswith("_fork")
    more = ("maxChildren", "maxRequests") if fork else ("maxThreads",)
    given = named(call, (*names, *more))
    if "wsgi_app" not in given:
        raise Untranslatable(call, "it has no application")
    made = Arguments({"": source.get(given.pop("wsgi_app")[1])})
    node, conf = given.pop("global_conf", (call, None))
    if conf is not None and not (isinstance(conf, ast.Dict) and not conf.keys):
        made.drop(node, "global_conf", "was asked for debug only")
    return made, given


def _paste_rest(source: Source, call: ast.Call, made: Arguments, given: Given) -> None:
    name = _paste_name(source, call)
    forked = name.endswith("_fork")
    workers = {one: given.pop(one) for one in PREFORK if forked and one in given}
    take(source, made, given)
    if forked:
        prefork(source, made, call, name, workers)


def trac(source: Source, call: ast.Call) -> tuple[Arguments, list[str]]:
    return Arguments({"": "dispatch_request"}), ["from trac.web.main import dispatch_request"]


def webpy(source: Source, call: ast.Call) -> tuple[Arguments, list[str]]:
    given = named(call, ("func", "addr"))
    made = Arguments({"": source.get(given["func"][1])})
    node, address = given.get("addr", (call, None))
    if address is None:
        bind(source, made, node, host=ast.Constant("localhost"), port=ast.Constant(8000))
        return made, []
    default = _default(source, address)
    if default is not None:
        if not _is_runwsgi(source, call):
            text = f"{source.get(address)} is taken to be its default, {source.get(default)}"
            made.notes.append((call, text))
        address = default
    take(source, made, {"bindAddress": (node, address)})
    return made, []


def _default(source: Source, node: ast.expr) -> ast.expr | None:
    """Give the default of a parameter of the function around a name."""
    around: ast.AST = node
    while isinstance(node, ast.Name) and around in source.parents:
        around = source.parents[around]
        if isinstance(around, (ast.Lambda, ast.FunctionDef)):
            parameters = [*around.args.posonlyargs, *around.args.args]
            defaults = around.args.defaults
            for parameter, default in zip(
                parameters[len(parameters) - len(defaults) :], defaults, strict=True
            ):
                if parameter.arg == node.id:
                    return default
            for parameter, given in zip(
                around.args.kwonlyargs, around.args.kw_defaults, strict=True
            ):
                if parameter.arg == node.id:
                    return given
    return None


def _is_runwsgi(source: Source, call: ast.Call) -> bool:
    """Is it in a lambda for web.wsgi.runwsgi, which web.py calls with the application alone?"""
    statement = source.statement(call)
    return isinstance(statement, ast.Assign) and "web.wsgi.runwsgi" in source.dotted(
        statement.targets[0]
    )


RECIPES: dict[str, Recipe] = {
    "django.core.servers.fastcgi.runfastcgi": django,
    "flup.server.paste_factory.run_fcgi_thread": paste,
    "flup.server.paste_factory.run_fcgi_fork": paste,
    "flup.server.paste_factory.run_scgi_thread": paste_over_tcp,
    "flup.server.paste_factory.run_scgi_fork": paste_over_tcp,
    "flup.server.paste_factory.run_ajp_thread": paste_over_tcp,
    "flup.server.paste_factory.run_ajp_fork": paste_over_tcp,
    "trac.web.fcgi_frontend.run": trac,
    "web.wsgi.runfcgi": webpy,
    "web.runfcgi": webpy,
}
