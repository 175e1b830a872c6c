"""`fulgate migrate`: rewrite a program made for flup."""

from __future__ import annotations

import click

from fulgate import migrate

__all__ = ["command"]


@click.command("migrate")
@click.argument("file", type=click.Path())
@click.option("--write", is_flag=True, help="Rewrite the file, and keep what it was as FILE.bak.")
def command(file: str, write: bool) -> int:
    """Rewrite a program made for flup, and show the difference.

    The exit status is 0 when there is nothing to change, 1 when there is, and 4 when something is
    left that has no translation: it is named, with its line.
    """
    return migrate.command(file, write)
