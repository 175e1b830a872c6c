"""Reads nginx's configuration, with what it includes, and knows what is inherited. No more."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fulgate.errors import ConfigError

__all__ = ["Directive", "read"]

# A comment, a string in quotes, a brace or a semicolon, a word. A "{" of a variable is in its word.
_token = re.compile(
    r"""\s*(?:\#[^\n]*|("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|([{};])|((?:\$\{[^}]*\}|\\.|[^\s;{}])+))"""
)
DEPTH = 20  # of files that include one another


@dataclass
class Directive:
    """A directive: a line of a file, or a block with more of them."""

    name: str
    arguments: list[str]
    file: str
    line: int  # its first line, from 1
    end: int  # the line of its semicolon or opening brace
    parent: Directive | None
    block: list[Directive] = field(default_factory=list)
    via: Directive | None = None  # the outermost include that it came by, if it did

    @property
    def place(self) -> Directive:
        """The directive in the same file as its block: itself, or the include that it came by."""
        return self.via or self

    def inside(self, name: str) -> list[Directive]:
        """Give the directives of that name which stand directly in this block."""
        return [one for one in self.block if one.name == name]

    def everything(self) -> Iterator[Directive]:
        """Give all directives of this block and of the blocks in it."""
        for one in self.block:
            yield one
            yield from one.everything()

    def effective(self, name: str) -> list[Directive]:
        """Give those that count here: of this block, or of the next around it that has any."""
        level: Directive | None = self
        while level is not None:
            if found := level.inside(name):
                return found
            level = level.parent
        return []


def read(file: str) -> Directive:
    """Read a configuration; give a directive that contains all of it. Raises ConfigError."""
    root = Directive("main", [], file, 0, 0, None)
    _read_file(file, root, os.path.dirname(os.path.abspath(file)), None, 0)
    return root


def _read_file(file: str, into: Directive, prefix: str, via: Directive | None, depth: int) -> None:
    if depth > DEPTH:
        raise ConfigError(f"{file}: files include one another without end")
    try:
        text = Path(file).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    block = into
    words: list[str] = []
    first = 0
    opened = 0
    for word, quoted, line in _words(text):
        if quoted or word not in "{};":
            first = first if words else line
            words.append(word)
            continue
        if word == "}":
            if words or not opened or block.parent is None:
                raise ConfigError(f"{file}:{line}: unexpected '}}'")
            block = block.parent
            opened -= 1
            continue
        if not words:
            raise ConfigError(f"{file}:{line}: unexpected '{word}'")
        # What is inside a block of an included file stands in that file.
        by = via if block is into else None
        made = Directive(words[0], words[1:], file, first, line, block, via=by)
        words = []
        block.block.append(made)
        if word == "{":
            block = made
            opened += 1
            if made.name.endswith("_by_lua_block"):
                raise ConfigError(f"{file}:{line}: {made.name} is beyond this reader")
        elif made.name == "include" and made.arguments:
            pattern = os.path.join(prefix, made.arguments[0])
            for path in sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]:
                _read_file(path, block, prefix, by or made, depth + 1)
    if opened or words:
        raise ConfigError(f"{file}: it ends inside of a block or a directive")


def _words(text: str) -> Iterator[tuple[str, bool, int]]:
    """Give each word, whether it was quoted, and its line."""
    line = 1
    pos = 0
    while match := _token.match(text, pos):
        start = match.start(match.lastindex) if match.lastindex else match.end()
        line += text.count("\n", pos, start)
        if match[1]:
            yield re.sub(r"\\(.)", r"\1", match[1][1:-1]), True, line
        elif match[2] or match[3]:
            yield match[2] or match[3], False, line
        line += text.count("\n", start, match.end())
        pos = match.end()
