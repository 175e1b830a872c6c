"""What flup's arguments are in Fulgate's terms."""

from __future__ import annotations

import ast
import ipaddress
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from fulgate.migrate.source import Source

__all__ = [
    "AJP",
    "AJP_FORK",
    "CGI",
    "FCGI",
    "FORK",
    "PREFORK",
    "SCGI",
    "SCGI_FORK",
    "SINGLE",
    "SPARES",
    "Arguments",
    "Given",
    "Untranslatable",
    "arguments_of",
    "bind",
    "named",
    "number",
    "prefork",
    "quote",
    "restrict",
    "speak",
    "take",
    "value_of",
    "without",
]

Given = dict[str, tuple[ast.AST, ast.expr]]  # an argument's name, the argument, its value

FCGI = (
    "application", "environ", "multithreaded", "multiprocess", "bindAddress", "umask",
    "multiplexed", "debug", "roles", "forceCGI",
)  # fmt: skip
SINGLE = (
    "application", "environ", "bindAddress", "umask", "multiplexed", "debug", "roles", "forceCGI",
)  # fmt: skip
FORK = (*SINGLE, "timeout")
SCGI = (
    "application", "scriptName", "environ", "multithreaded", "multiprocess", "bindAddress", "umask",
    "allowedServers", "loggingLevel", "debug",
)  # fmt: skip
SCGI_FORK = (
    "application", "scriptName", "environ", "bindAddress", "umask", "allowedServers",
    "loggingLevel", "debug", "timeout",
)  # fmt: skip
AJP = tuple(name for name in SCGI if name != "umask")
AJP_FORK = tuple(name for name in SCGI_FORK if name != "umask")
CGI = ("application",)

# What is spoken where it is not FastCGI, and where a server is that is not told.
SPOKEN = {
    SCGI: ("scgi", "tcp:localhost:4000"),
    SCGI_FORK: ("scgi", "tcp:localhost:4000"),
    AJP: ("ajp", "tcp:localhost:8009"),
    AJP_FORK: ("ajp", "tcp:localhost:8009"),
}
FORKED = {FORK: "fcgi_fork", SCGI_FORK: "scgi_fork", AJP_FORK: "ajp_fork"}

EVERYBODY = '("0.0.0.0/0", "::/0")'
SPARES = "has no counterpart: all threads are started at once"
# What flup's servers with processes are told, as options of `fulgate serve`, with flup's defaults
# where they are not Fulgate's.
PREFORK = {
    "maxChildren": ("--workers", "50"),
    "minSpare": ("--min-spare-workers", ""),
    "maxSpare": ("--max-spare-workers", "5"),
    "maxRequests": ("--max-requests", ""),
    "timeout": ("--request-timeout", ""),
}
DROPPED = {
    "minSpare": SPARES,
    "maxSpare": SPARES,
    "multiplexed": "is not needed: several requests at once on a connection are served",
    "loggingLevel": "has no counterpart: the level of the logger `fulgate` is set by logging",
    "debug": "has no counterpart: a traceback goes to the log, never to the client",
    "multiprocess": "has no counterpart: environ says what is the case",
}


class Untranslatable(Exception):
    """A part that has no translation: `node` is where, the text why."""

    def __init__(self, node: ast.AST, why: str) -> None:
        super().__init__(why)
        self.node = node


@dataclass
class Arguments:
    """Arguments for `serve`, as source text: name (or "" for the application), and value.

    `nodes` has the argument that a text came from, where there is one. `notes` are what was left
    out, and why.
    """

    texts: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, ast.AST] = field(default_factory=dict)
    notes: list[tuple[ast.AST, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return ", ".join(f"{k}={v}" if k else v for k, v in self.texts.items())

    def drop(self, node: ast.AST, name: str, why: str) -> None:
        self.notes.append((node, f"{name} is left out: it {why}"))


def quote(text: str) -> str:
    return json.dumps(text)


def value_of(source: Source, node: ast.AST) -> object:
    """Give the value of a literal. Raises Untranslatable."""
    try:
        return source.literal(node)
    except ValueError:
        raise Untranslatable(
            node, f"{source.get(node)} is computed when the program runs"
        ) from None


def named(call: ast.Call, names: Sequence[str]) -> Given:
    """Give a call's arguments by their names: the argument, and its value."""
    found: Given = {}
    for number, value in enumerate(call.args):
        if isinstance(value, ast.Starred) or number >= len(names):
            raise Untranslatable(value, "its arguments are computed when the program runs")
        found[names[number]] = (value, value)
    for keyword in call.keywords:
        if keyword.arg is None:
            raise Untranslatable(keyword, "its arguments are computed when the program runs")
        found[keyword.arg] = (keyword, keyword.value)
    return found


def arguments_of(source: Source, call: ast.Call, names: Sequence[str]) -> Arguments:
    """Translate the arguments of a WSGIServer that takes `names` by position.

    Raises Untranslatable for what would change what the application sees.
    """
    made = Arguments()
    given = named(call, names)
    if "application" not in given:
        raise Untranslatable(call, "it has no application")
    node, application = given.pop("application")
    made.texts[""] = source.get(application)
    made.nodes[""] = node
    allowed = given.pop("allowedServers", None)
    script_name = given.pop("scriptName", None)
    forked = names in FORKED
    workers = {name: given.pop(name) for name in PREFORK if forked and name in given}
    take(source, made, given)
    if names in SPOKEN:
        protocol, default = SPOKEN[tuple(names)]
        speak(made, protocol, default)
        restrict(source, made, allowed, script_name)
    elif allowed is not None or script_name is not None:
        raise Untranslatable(call, "it has an argument of another server's")
    if names == SINGLE:
        made.texts["threads"] = "1"  # such an application may never have met a second thread
    elif forked:
        prefork(source, made, call, FORKED[tuple(names)], workers)
    return made


def prefork(source: Source, made: Arguments, node: ast.AST, name: str, workers: Given) -> None:
    """Have one thread serve, and say how several processes do: `workers` is what flup was told."""
    made.texts["threads"] = "1"  # such an application may never have met a second thread
    words = ["--threads 1", "--pool-mode dynamic"]
    for argument, (option, default) in PREFORK.items():
        value = default
        if argument in workers:
            given = workers[argument][1]
            value = number(source, given)
            if not value.isdigit():
                value = "" if _is_nothing(given) else "N"
        if value not in ("", "0"):
            words.append(f"{option} {value}")
    try:
        words.append(f"--bind {shlex.quote(ast.literal_eval(made.texts['bind']))}")
    except (KeyError, ValueError, SyntaxError):
        words.append("--bind ...")
    made.notes.append(
        (
            node,
            f"{name} has processes, and serve is one, with one thread; several are started by:"
            f" fulgate serve MODULE:APP {' '.join(words)}",
        )
    )


def _is_nothing(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and not node.value


def speak(made: Arguments, protocol: str, default: str = "") -> None:
    """Have the endpoint, or else `default`, say what is spoken there: "scgi", "ajp"."""
    made.texts["bind"] = f'"{protocol}+' + made.texts.get("bind", quote(default))[1:]


def restrict(
    source: Source,
    made: Arguments,
    allowed: tuple[ast.AST, ast.expr] | None,
    script_name: tuple[ast.AST, ast.expr] | None,
) -> None:
    """Translate what only servers of SCGI and AJP are told. Raises Untranslatable."""
    if allowed is not None:
        node, value = allowed
        servers = value_of(source, value)
        if servers is not None:
            if not isinstance(servers, (list, tuple)) or not servers:
                raise Untranslatable(node, "allowedServers is no list of addresses")
            names = ", ".join(quote(str(server)) for server in servers)
            made.texts["allowed_clients"] = f"({names}{',' if len(servers) == 1 else ''})"
            made.notes = [note for note in made.notes if "everybody can connect" not in note[1]]
    if script_name is not None:
        node, value = script_name
        name = value_of(source, value)
        if name is None:
            made.texts["path"] = '"cgi"'
        elif str(name).strip("/"):
            made.texts["script_name"] = quote("/" + str(name).strip("/"))


def take(source: Source, made: Arguments, given: Given) -> None:
    """Translate what else a WSGIServer takes, by name. Raises Untranslatable."""
    umask = given.pop("umask", (None, None))[1]
    for name, (node, value) in given.items():
        if name == "bindAddress":
            address(source, made, value, umask)
            made.nodes["bind"] = node
        elif name == "maxThreads":
            made.texts["threads"] = number(source, value)
            made.nodes["threads"] = node
        elif name == "multithreaded":
            if not value_of(source, value):
                made.texts["threads"] = "1"
                made.nodes["threads"] = node
        else:
            without(source, made, name, node, value)


def number(source: Source, node: ast.expr) -> str:
    """Give a number's text; flup's Paste and Django took strings too."""
    try:
        value = source.literal(node)
    except ValueError:
        return source.get(node)
    return str(int(value)) if isinstance(value, str) else source.get(node)


def without(source: Source, made: Arguments, name: str, node: ast.AST, value: ast.expr) -> None:
    """Leave an argument out, and say so where that makes a difference."""
    if name == "environ":
        if value_of(source, value):
            raise Untranslatable(node, "environ adds variables to each request")
    elif name == "roles":
        if source.get(value).strip("()[], ").rpartition(".")[2] != "FCGI_RESPONDER":
            raise Untranslatable(
                node,
                "a role other than the Responder's is a function"
                " of its own here: see fulgate.authorizer and fulgate.filter",
            )
    elif name == "forceCGI":
        if value_of(source, value):
            raise Untranslatable(node, "forceCGI is set by the environment: FCGI_FORCE_CGI=Y")
    elif name in DROPPED:
        try:
            matters = bool(source.literal(value))
        except ValueError:
            matters = True
        if matters:
            made.drop(node, name, DROPPED[name])
    else:
        raise Untranslatable(node, f"the argument {name} is unknown")


def address(source: Source, made: Arguments, node: ast.expr, umask: ast.expr | None) -> None:
    """Translate a bindAddress: None, a path, or a tuple of host and port."""
    try:
        value = source.literal(node)
    except ValueError:
        computed(source, made, node, umask)
        return
    if isinstance(value, str):
        bind(source, made, node, socket=node, umask=umask)
    elif isinstance(value, tuple) and len(value) >= 2:
        _tcp(made, node, str(value[0]), str(value[1]))
    elif value is not None:
        raise Untranslatable(node, "bindAddress is neither None, nor a path, nor host and port")


def computed(source: Source, made: Arguments, node: ast.expr, umask: ast.expr | None) -> None:
    if isinstance(node, ast.Tuple) and len(node.elts) == 2:
        bind(source, made, node, host=node.elts[0], port=node.elts[1])
        return
    call = isinstance(node, ast.Call) and any(
        name.startswith("os.path.") for name in source.dotted(node.func)
    )
    text = any(
        isinstance(one, ast.Constant) and isinstance(one.value, str) for one in ast.walk(node)
    )
    if call or isinstance(node, ast.JoinedStr) or (isinstance(node, ast.BinOp) and text):
        bind(source, made, node, socket=node, umask=umask)
        return
    raise Untranslatable(
        node,
        f"what {source.get(node)} is shows when the program runs: write bind="
        '"unix:PATH" or bind="tcp:HOST:PORT"',
    )


def bind(
    source: Source,
    made: Arguments,
    where: ast.AST,
    *,
    socket: ast.expr | None = None,
    host: ast.expr | None = None,
    port: ast.expr | None = None,
    umask: ast.expr | None = None,
) -> None:
    """Set `bind` by a path, or by host and port. Raises Untranslatable."""
    if socket is not None:
        mode = "" if umask is None else _mode(source, umask)
        try:
            path = source.literal(socket)
        except ValueError:
            made.texts["bind"] = f'"unix:" + {_operand(source, socket)}' + (
                f" + {quote(mode)}" if mode else ""
            )
            return
        if "?" in str(path):
            raise Untranslatable(socket, "a path with a question mark has no endpoint")
        made.texts["bind"] = quote(f"unix:{path}{mode}")
    elif host is not None and port is not None:
        try:
            _tcp(made, where, str(source.literal(host)), str(source.literal(port)))
        except ValueError:
            form = f'"tcp:{{}}:{{}}".format({source.get(host)}, {source.get(port)})'
            made.texts["bind"] = form
            made.notes.append(
                (where, "if other machines are to connect, name them in allowed_clients")
            )


def _operand(source: Source, node: ast.expr) -> str:
    text = source.get(node)
    return f"({text})" if isinstance(node, ast.BinOp) else text


def _mode(source: Source, umask: ast.expr) -> str:
    value = value_of(source, umask)
    if value is None:
        return ""
    mask = int(value, 0) if isinstance(value, str) else value
    if not isinstance(mask, int):
        raise Untranslatable(umask, "umask is not a number")
    return f"?mode={0o777 & ~mask:03o}"


def _tcp(made: Arguments, where: ast.AST, host: str, port: str) -> None:
    exposed = True
    if host == "localhost":
        exposed = False
    else:
        try:
            found = ipaddress.ip_address(host or "0.0.0.0")
        except ValueError:
            pass  # a name of some machine
        else:
            host = f"[{found}]" if found.version == 6 else str(found)
            exposed = not found.is_loopback
    made.texts["bind"] = quote(f"tcp:{host}:{port}")
    if exposed:
        made.texts["allowed_clients"] = EVERYBODY
        made.notes.append(
            (where, "as before everybody can connect: name the web servers in allowed_clients")
        )
