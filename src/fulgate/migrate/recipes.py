"""Finds what a program does with flup, and writes it for Fulgate."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fulgate.migrate.arguments import (
    AJP,
    AJP_FORK,
    CGI,
    FCGI,
    FORK,
    SCGI,
    SCGI_FORK,
    SINGLE,
    Arguments,
    Untranslatable,
    arguments_of,
)
from fulgate.migrate.frameworks import RECIPES, bottle, is_bottle
from fulgate.migrate.source import Source

__all__ = ["Note", "Rewriting"]

SERVERS: dict[str, tuple[str, ...]] = {
    "flup.server.fcgi.WSGIServer": FCGI,
    "flup.server.fcgi_fork.WSGIServer": FORK,
    "flup.server.fcgi_single.WSGIServer": SINGLE,
    "flup.server.cgi.WSGIServer": CGI,
    "flup.server.scgi.WSGIServer": SCGI,
    "flup.server.scgi_fork.WSGIServer": SCGI_FORK,
    "flup.server.ajp.WSGIServer": AJP,
    "flup.server.ajp_fork.WSGIServer": AJP_FORK,
}
DROP_IN = frozenset(
    "flup." + name
    for name in (
        "server", "server.ajp", "server.ajp_base", "server.ajp_fork", "server.cgi", "server.fcgi",
        "server.fcgi_base", "server.fcgi_fork", "server.fcgi_single", "server.paste_factory",
        "server.preforkserver", "server.scgi", "server.scgi_base", "server.scgi_fork",
        "server.singleserver", "server.threadedserver", "server.threadpool", "client",
        "client.fcgi_app", "client.scgi_app",
    )
)  # fmt: skip
REPLACED = ("flup", "django.core.servers.fastcgi", "trac.web.fcgi_frontend")
NOT_TRUE = "serve gives the exit status, a number: it does not return True after SIGHUP"
RUNWSGI = ("web.wsgi.runwsgi", "web.runwsgi")


@dataclass(frozen=True)
class Note:
    """What somebody has to know of a line; `translated` is False where it was left as it is."""

    line: int
    text: str
    translated: bool = True


class Rewriting:
    """Makes the edits in `source`, and `notes`."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.notes: list[Note] = []
        self._consumed: set[ast.AST] = set()  # names whose use is translated
        self._explained: set[ast.AST] = set()  # names whose use has a note why it is not
        self._imports: dict[str, list[str]] = defaultdict(list)  # by the name they stand in for
        self._top: list[str] = []
        self._first: ast.AST | None = None  # what needs `_top`
        self._written: dict[ast.AST, set[str]] = defaultdict(set)  # import lines, by statement list
        self._done: set[ast.AST] = set()
        self.serve, self._serve_import = self._name("fulgate", "serve")
        self.partial, self._partial_import = self._name("functools", "partial")

    def _name(self, module: str, name: str) -> tuple[str, str]:
        """Give a name that is free for what is imported, and the import."""
        if not self.source.has(name) or self.source.origins.get(name) == [f"{module}.{name}"]:
            return name, f"from {module} import {name}"
        return f"fulgate_{name}", f"from {module} import {name} as fulgate_{name}"

    def run(self) -> None:
        for node in sorted(
            (n for n in ast.walk(self.source.tree) if isinstance(n, (ast.Call, ast.Assign))),
            key=lambda n: (n.lineno, n.col_offset),
        ):
            try:
                if isinstance(node, ast.Call):
                    self._call(node)
                else:
                    self._assign(node)
            except Untranslatable as error:
                self._leave(node, error)
        for imported in ast.walk(self.source.tree):
            if isinstance(imported, (ast.Import, ast.ImportFrom)):
                self._import(imported)
        in_module = self._written[self.source.tree]
        lines = [line for line in dict.fromkeys(self._top) if line not in in_module]
        if lines and self._first is not None:
            self.source.import_lines(lines, self._first)

    # calls

    def _call(self, call: ast.Call) -> None:
        origins = self.source.dotted(call.func)
        for origin in origins:
            if origin in SERVERS:
                self._server(call, SERVERS[origin])
                return
            if origin in RECIPES:
                made, imports = RECIPES[origin](self.source, call)
                self._whole(call, made, imports)
                return
        if is_bottle(self.source, call):
            made, imports = bottle(self.source, call)
            self._whole(call, made, imports)

    def _whole(self, call: ast.Call, made: Arguments, imports: list[str]) -> None:
        """Replace a call of a framework's by one of serve."""
        source = self.source
        source.replace(source.start(call), source.end(call), f"{self.serve}({made})")
        self._translated(call, made, imports)
        self._consumed.update(n for n in ast.walk(call) if isinstance(n, ast.Name))

    def _translated(self, call: ast.Call, made: Arguments, imports: Sequence[str] = ()) -> None:
        source = self.source
        for node, text in made.notes:
            self._note(node if hasattr(node, "lineno") else call, text)
        kept = set(made.nodes.values())
        for node in [call.func, *call.args, *call.keywords]:
            if node not in kept:
                self._consumed.update(n for n in ast.walk(node) if isinstance(n, ast.Name))
        root = source.root(call.func)
        lines = [*imports, self._serve_import]
        if root is not None and any(_is_replaced(o) for o in source.origins.get(root.id, ())):
            self._imports[root.id] += lines
        else:
            self._top += lines
            self._first = self._first or call

    def _note(self, node: ast.AST, text: str) -> None:
        self.notes.append(Note(getattr(node, "lineno", 1), text))

    def _leave(self, node: ast.AST, error: Untranslatable) -> None:
        line = getattr(error.node, "lineno", getattr(node, "lineno", 1))
        self.notes.append(Note(line, f"this is left as it is: {error}", translated=False))
        if isinstance(node, ast.Call) and (root := self.source.root(node.func)) is not None:
            self._explained.add(root)

    # WSGIServer

    def _server(self, call: ast.Call, names: tuple[str, ...]) -> None:
        if call in self._done:
            return
        made = arguments_of(self.source, call, names)
        parent = self.source.parents[call]
        run = self._run_of(call)
        if run is not None:
            self._function(call, made, self.serve)
            self.source.replace(self.source.end(call), self.source.end(run), "")
            self._value(run)
        elif (
            isinstance(parent, ast.Assign)
            and len(parent.targets) == 1
            and isinstance(parent.targets[0], ast.Name)
        ):
            self._variable(parent, call, made, parent.targets[0].id)
        else:
            raise Untranslatable(call, "it is used for more than run()")
        self._done.add(call)
        self._translated(call, made)

    def _run_of(self, node: ast.AST) -> ast.Call | None:
        """Give the call of `.run()` on a node, if that is what is done with it."""
        attribute = self.source.parents[node]
        if not isinstance(attribute, ast.Attribute) or attribute.attr != "run":
            return None
        call = self.source.parents[attribute]
        if isinstance(call, ast.Call) and call.func is attribute and not call.args:
            return call
        return None

    def _value(self, run: ast.Call) -> None:
        if not isinstance(self.source.parents[run], ast.Expr):
            self._note(run, NOT_TRUE)

    def _variable(self, assign: ast.Assign, call: ast.Call, made: Arguments, name: str) -> None:
        """Translate `server = WSGIServer(...)` and all uses of server."""
        source = self.source
        loads = source.loads[name]
        for store in source.stores[name]:
            parent = source.parents[store]
            value = parent.value if isinstance(parent, ast.Assign) else None
            names = [o for o in source.dotted(getattr(value, "func", store)) if o in SERVERS]
            if not isinstance(value, ast.Call) or not names:
                raise Untranslatable(call, f"{name} is something else elsewhere")
            arguments_of(source, value, SERVERS[names[0]])
        runs = [(load, self._run_of(load)) for load in loads]
        if not runs or any(run is None for _, run in runs):
            raise Untranslatable(call, f"{name} is used for more than {name}.run()")
        if len(runs) == 1 and len(source.stores[name]) == 1 and self._merge(assign, runs[0][1]):
            source.replace(source.start(assign), source.start(call), "")
            self._function(call, made, self.serve)
            return
        self._function(call, made, self.partial, f"{self.serve}, ")
        root = source.root(call.func)
        assert root is not None
        self._imports[root.id].append(self._partial_import)
        for load, run in runs:
            if run is not None and load not in self._done:
                self._done.add(load)
                source.replace(source.end(load), source.end(run), "()")
                self._value(run)

    def _merge(self, assign: ast.Assign, run: ast.Call | None) -> bool:
        """Take the statement `server.run()` away, if it follows the assignment at once."""
        source = self.source
        statement = source.parents[run] if run is not None else None
        if not isinstance(statement, ast.Expr):
            return False
        around = source.parents[assign]
        for block in ("body", "orelse", "finalbody"):
            statements = getattr(around, block, None)
            if isinstance(statements, list) and assign in statements:
                at = statements.index(assign) + 1
                lines = source.lines(statement)
                if statements[at : at + 1] == [statement] and lines is not None:
                    if source.between(source.end(assign), lines[0]).strip():
                        return False  # a comment stands between
                    source.replace(*lines, "")
                    return True
        return False

    def _function(self, call: ast.Call, made: Arguments, function: str, before: str = "") -> None:
        """Put another function in the place of a call's, and arguments in the place of others."""
        source = self.source
        source.replace(source.start(call.func), source.end(call.func), function)
        given = sorted([*call.args, *call.keywords], key=source.start)
        ends = [*(source.start(node) for node in given[1:]), source.end(call) - 1]
        gaps = [source.between(source.end(n), end) for n, end in zip(given, ends, strict=True)]
        names = {node: name for name, node in made.nodes.items() if name in made.texts}
        more = [f"{name}={value}" for name, value in made.texts.items() if name not in made.nodes]
        kept = [number for number, node in enumerate(given) if node in names]
        text = before
        for number in kept:
            name = names[given[number]]
            value = made.texts[name]
            if number != kept[0]:
                text += _lead(gaps[number - 1])
                name = name or "app"
            text += f"{name}={value}" if name else value
            if number != kept[-1]:
                text += _tail(gaps[number])
            else:
                text += "".join(f", {one}" for one in more)
                if _lead(gaps[-1]).strip(" ") or number == len(given) - 1:
                    text += _tail(gaps[number])
        last = _lead(gaps[-1]) if "\n" in gaps[-1] else ""
        source.replace(source.start(given[0]), source.end(call) - 1, text + last)

    # web.py

    def _assign(self, assign: ast.Assign) -> None:
        """Translate `web.wsgi.runwsgi = web.wsgi.runfcgi`."""
        source = self.source
        ours = any(o in RUNWSGI for o in source.dotted(assign.targets[0]))
        if not ours or not any("runfcgi" in o for o in source.dotted(assign.value)):
            return
        text = f'lambda func, addr=None: {self.serve}(func, bind="tcp:localhost:8000")'
        source.replace(source.start(assign.value), source.end(assign.value), text)
        self._top.append(self._serve_import)
        self._first = self._first or assign

    # imports

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        if isinstance(node, ast.ImportFrom) and node.level:
            return
        kept: list[ast.alias] = []
        lines: list[str] = []
        changed = False
        for alias in node.names:
            full = f"{module}.{alias.name}" if module else alias.name
            made = self._replaced(node, alias, full, module) if _is_replaced(full) else None
            if made is None:
                kept.append(alias)
            else:
                changed = True
                lines += made
        if not changed:
            self._fallback(node, module)
            return
        if kept:
            names = ", ".join(f"{a.name} as {a.asname}" if a.asname else a.name for a in kept)
            lines.insert(0, f"from {module} import {names}" if module else f"import {names}")
        self._write_imports(node, lines)

    def _replaced(
        self, node: ast.AST, alias: ast.alias, full: str, module: str
    ) -> list[str] | None:
        """Give the imports that take one's place; None leaves it."""
        local = alias.asname or alias.name.partition(".")[0]
        uses = [load for load in self.source.loads[local] if load not in self._consumed]
        if not uses and (self._imports[local] or self._consumed):
            return list(dict.fromkeys(self._imports[local]))
        if not full.startswith("flup"):
            if self._imports[local]:
                self._top += self._imports[local]
                self._first = self._first or node
            return None
        known = (module or full) in DROP_IN or full in DROP_IN
        places: list[ast.AST] = [*uses] or [node]
        for use in places:
            if use not in self._explained:
                why = "is used for more than serving" if known else "has no counterpart"
                line = getattr(use, "lineno", 1)
                self.notes.append(Note(line, f"{local} {why}: it is left as it is", False))
        if not known:
            return None
        self._note(node, "this is now the drop-in, fulgate.flup")
        name = f" as {alias.asname}" if alias.asname else ""
        if module:
            made = [f"from fulgate.{module} import {alias.name}{name}"]
        elif alias.asname:
            made = [f"import fulgate.{full}{name}"]
        else:
            made = [f"import fulgate.{full}", "from fulgate import flup"]
        return [*made, *dict.fromkeys(self._imports[local])]

    def _fallback(self, node: ast.Import | ast.ImportFrom, module: str) -> None:
        """Say so where an import gives a name that only flup's absence asked for."""
        for alias in node.names:
            local = alias.asname or alias.name
            if self._imports.get(local) and not _is_replaced(module):
                self._note(node, f"{local} is not needed any more")

    def _write_imports(self, node: ast.stmt, lines: list[str]) -> None:
        source = self.source
        around = source.parents[node]
        lines = [line for line in dict.fromkeys(lines) if line not in self._written[around]]
        self._written[around].update(lines)
        whole = source.lines(node)
        body = getattr(around, "body", [])
        if lines:
            joint = f"\n{source.indent(node)}" if whole else "; "
            source.replace(source.start(node), source.end(node), joint.join(lines))
        elif whole and len(body) > 1:
            source.replace(*whole, "")
        else:
            source.replace(source.start(node), source.end(node), "pass")


def _is_replaced(origin: str) -> bool:
    return any(origin == name or origin.startswith(name + ".") for name in REPLACED)


def _tail(gap: str) -> str:
    """Give what belongs to the argument before a gap: the comma, and a comment on its line."""
    tail, newline, _ = gap.partition("\n")
    return tail.rstrip() if newline else gap.rstrip()


def _lead(gap: str) -> str:
    """Give what belongs to the argument behind a gap."""
    return gap[len(_tail(gap)) :]
