"""`fulgate migrate`: rewrite a program that was written for flup to Fulgate's own API.

It works on the syntax tree and changes only the ranges that it has to. What it cannot translate it
names, and leaves to the drop-in `fulgate.flup` where that runs it.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import shutil
import tempfile
import tokenize
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import click

from fulgate.errors import ConfigError
from fulgate.migrate.recipes import Note, Rewriting
from fulgate.migrate.source import Overlap, Source

__all__ = ["Migrated", "Note", "command", "migrate"]

CHANGED = 1
UNTRANSLATED = 4


@dataclass(frozen=True)
class Migrated:
    """What became of a program: its new text, and notes on what somebody has to look at."""

    text: str
    notes: list[Note]


def migrate(text: str, name: str = "<source>") -> Migrated:
    """Rewrite a program. Raises SyntaxError for what is no Python 3."""
    rewriting = Rewriting(Source(text, name))
    rewriting.run()
    try:
        after = rewriting.source.result()
    except Overlap as error:
        return Migrated(text, [Note(error.line, "this is left as it is: changes overlap", False)])
    return Migrated(after, sorted(rewriting.notes, key=lambda n: n.line))


def command(file: str, write: bool) -> int:
    """Show as a diff what `migrate` makes of a file, or write it; give the exit status.

    It is 0 when there is nothing to change, 1 when there is (or was, with `write`), and 4 when
    something is left that has no translation. Raises ConfigError for a file that cannot be used.
    """
    path = Path(os.path.realpath(file))
    try:
        data = path.read_bytes()
        encoding, _ = tokenize.detect_encoding(BytesIO(data).readline)
        before = data.decode(encoding)
        done = migrate(before, file)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except (SyntaxError, UnicodeDecodeError, LookupError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f"{file}:{line}" if line else file
        reason = getattr(error, "msg", "") or str(error)
        raise ConfigError(f"{where}: this is no Python 3 ({reason})") from error
    if done.text != before:
        if write:
            kept = _keep(path)
            _write(path, done.text.encode(encoding))
            click.echo(f"fulgate: {file} is rewritten; what it was is {kept}", err=True)
        else:
            _show(file, before, done.text)
    for note in done.notes:
        click.echo(f"{file}:{note.line}: {note.text}", err=True)
    if any(not note.translated for note in done.notes):
        return UNTRANSLATED
    return CHANGED if done.text != before else 0


def _show(file: str, before: str, after: str) -> None:
    colours = {"---": None, "+++": None, "@@ ": "cyan", "-": "red", "+": "green"}
    for line in difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), file, file
    ):
        colour = next((c for start, c in colours.items() if line.startswith(start)), None)
        text = line.rstrip("\r\n")
        plain = False if "NO_COLOR" in os.environ else None
        click.echo(click.style(text, fg=colour) if colour else text, color=plain)


def _keep(path: Path) -> Path:
    """Copy a file beside itself, under a name that nothing has yet."""
    number = 1
    while True:
        kept = path.with_name(f"{path.name}.bak" + (f".{number}" if number > 1 else ""))
        try:
            kept.open("xb").close()
        except FileExistsError:
            number += 1
        except OSError as error:
            raise ConfigError(f"{kept}: {error.strerror}") from error
        else:
            shutil.copy2(path, kept)
            return kept


def _write(path: Path, data: bytes) -> None:
    """Replace a file's content at once: whoever reads it sees the old one or the new one."""
    status = path.stat()
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with open(fd, "wb") as out:
            out.write(data)
            os.fchmod(out.fileno(), status.st_mode & 0o7777)
            with contextlib.suppress(OSError):
                os.fchown(out.fileno(), status.st_uid, status.st_gid)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
