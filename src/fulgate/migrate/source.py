"""A Python file as text and as syntax tree: what names stand for, and edits of single ranges."""

from __future__ import annotations

import ast
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator

__all__ = ["Overlap", "Source"]

LINE_END = re.compile(rb"\r\n|\r|\n")


class Overlap(Exception):
    """Two edits want the same range; `line` is where."""

    def __init__(self, line: int) -> None:
        super().__init__(f"two edits overlap in line {line}")
        self.line = line


class Source:
    """`text` is a Python 3 program. Raises SyntaxError.

    Positions are offsets in `data`, the text in UTF-8. Edits replace ranges of it, and leave all
    else as it is, comments and layout included.
    """

    def __init__(self, text: str, name: str = "<source>") -> None:
        self.data = text.encode("utf-8")
        self.tree = ast.parse(text, name)
        self.newline = "\r\n" if b"\r\n" in self.data else "\n"
        self.parents: dict[ast.AST, ast.AST] = {}
        self.origins: dict[str, list[str]] = defaultdict(list)  # local name: what imports say
        self.stores: dict[str, list[ast.Name]] = defaultdict(list)
        self.loads: dict[str, list[ast.Name]] = defaultdict(list)
        self.stars: set[str] = set()  # modules of which all names were imported
        self._starts = [0, *(match.end() for match in LINE_END.finditer(self.data))]
        self._edits: list[tuple[int, int, str]] = []
        self._defined: set[str] = set()
        for node in ast.walk(self.tree):
            for child in ast.iter_child_nodes(node):
                self.parents[child] = node
            self._note_names(node)

    def _note_names(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                local = alias.asname or alias.name.partition(".")[0]
                self.origins[local].append(alias.name if alias.asname else local)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                if alias.name == "*":
                    self.stars.add(node.module or "")
                else:
                    self.origins[alias.asname or alias.name].append(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Name):
            kind = self.loads if isinstance(node.ctx, ast.Load) else self.stores
            kind[node.id].append(node)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            self._defined.add(node.name)
        elif isinstance(node, ast.arg):
            self._defined.add(node.arg)

    def has(self, name: str) -> bool:
        """Does the program use this name for anything?"""
        return name in self._defined or any(
            name in names for names in (self.origins, self.stores, self.loads)
        )

    def dotted(self, node: ast.AST) -> list[str]:
        """Give what an expression may stand for, such as "flup.server.fcgi.WSGIServer"."""
        if isinstance(node, ast.Attribute):
            return [f"{origin}.{node.attr}" for origin in self.dotted(node.value)]
        if not isinstance(node, ast.Name):
            return []
        if node.id in self.origins:
            return self.origins[node.id]
        if node.id in self._defined or node.id in self.stores:
            return []
        return [f"{module}.{node.id}" for module in self.stars]

    def root(self, node: ast.AST) -> ast.Name | None:
        """Give the name that an attribute of an attribute begins with."""
        while isinstance(node, ast.Attribute):
            node = node.value
        return node if isinstance(node, ast.Name) else None

    def statement(self, node: ast.AST) -> ast.stmt:
        while not isinstance(node, ast.stmt):
            node = self.parents[node]
        return node

    def literal(self, node: ast.AST) -> object:
        """Give the value of a literal, or of a name that is a literal's. Raises ValueError."""
        if isinstance(node, ast.Name) and len(self.stores[node.id]) == 1:
            statement = self.parents[self.stores[node.id][0]]
            if isinstance(statement, ast.Assign) and node.id not in self._defined:
                node = statement.value
        return ast.literal_eval(node)

    # positions

    def start(self, node: ast.AST) -> int:
        return self._starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined, no-any-return]

    def end(self, node: ast.AST) -> int:
        return self._starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined, no-any-return]

    def between(self, start: int, end: int) -> str:
        return self.data[start:end].decode("utf-8")

    def get(self, node: ast.AST) -> str:
        return self.between(self.start(node), self.end(node))

    def lines(self, node: ast.stmt) -> tuple[int, int] | None:
        """Give the range of a statement's lines; None when something else is on them too."""
        first = self._starts[node.lineno - 1]
        last = node.end_lineno or node.lineno
        end = self._starts[last] if last < len(self._starts) else len(self.data)
        alone = not self.data[first : self.start(node)].strip()
        if not alone or self.data[self.end(node) : end].strip():
            return None
        return first, end

    def indent(self, node: ast.stmt) -> str:
        """Give the white space before a statement; "" when something else stands before it."""
        before = self.between(self._starts[node.lineno - 1], self.start(node))
        return before if not before.strip() else ""

    # edits

    def replace(self, start: int, end: int, text: str) -> None:
        self._edits.append((start, end, text))

    def result(self) -> str:
        """Give the text with all edits made. Raises Overlap when two of them do."""
        parts: list[bytes] = []
        at = 0
        for start, end, text in sorted(self._edits, key=lambda edit: edit[:2]):
            if start < at:
                raise Overlap(bisect_right(self._starts, start))
            parts += [self.data[at:start], text.replace("\n", self.newline).encode("utf-8")]
            at = end
        return b"".join([*parts, self.data[at:]]).decode("utf-8")

    def import_lines(self, lines: list[str], before: ast.AST) -> None:
        """Put imports behind the file's own, and before the statement of `before`."""
        place: ast.stmt | None = None
        for statement in self._head():
            if statement.lineno >= self.statement(before).lineno:
                break
            if isinstance(statement, (ast.Import, ast.ImportFrom)) and self.lines(statement):
                place = statement
        text = "".join(f"{line}\n" for line in lines)
        if place is not None:
            at = (self.lines(place) or (0, 0))[1]
            ended = self.data[at - 1 : at] in (b"\n", b"\r")
            self.replace(at, at, text if ended else "\n" + text)
        else:
            first = next(self._head(), self.tree.body[0])
            at = self._starts[first.lineno - 1]
            self.replace(at, at, text)

    def _head(self) -> Iterator[ast.stmt]:
        """Give the statements of the module, without its docstring."""
        body = self.tree.body
        if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body = body[1:]
        yield from body
