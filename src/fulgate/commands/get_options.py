"""The options of `fulgate get` that are not those of every request: most are curl's.

docs/tools.md has what is as in curl, and what is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from fulgate.commands.options import data_option
from fulgate.exchange import Role

__all__ = ["get_options"]

F = TypeVar("F", bound=Callable[..., Any])


def _flag(*names: str, help: str) -> Callable[[F], F]:
    return click.option(*names, is_flag=True, help=help)


def _seconds(*names: str, help: str) -> Callable[[F], F]:
    kind = click.FloatRange(0)
    return click.option(*names, type=kind, default=0.0, metavar="SECONDS", help=help)


REQUEST = (
    _flag("-G", "--get", help="Put the data into the query."),
    data_option("--json", metavar="DATA|@FILE", help="A body of JSON, with the headers that say"
                " so."),
    click.option("-F", "--form", "forms", multiple=True, metavar="NAME=VALUE", help="A field of a"
                 " form; @FILE uploads one, <FILE has its value there; ;type= and ;filename= may"
                 " follow."),
    click.option("--form-string", "form_strings", multiple=True, metavar="NAME=VALUE",
                 help="The same, with a value as it is."),
    click.option("-T", "--upload-file", "upload", metavar="FILE", help="PUT it, piece by piece; '-'"
                 " is standard input, which has no length."),
    click.option("-u", "--user", metavar="USER:PASSWORD", help="Basic authentication."),
    click.option("-A", "--user-agent", metavar="NAME", help="User-Agent."),
    click.option("-e", "--referer", metavar="URL", help="Referer."),
    click.option("-b", "--cookie", "cookies", multiple=True, metavar="NAME=VALUE", help="Cookie."),
    click.option("-r", "--range", metavar="RANGE", help="Range, such as 0-499."),
)  # fmt: skip
ANSWER = (
    _flag("-I", "--head", help="Make a HEAD request, and show the head."),
    _flag("-i", "--include", help="Show the answer's head before its body."),
    click.option("-D", "--dump-header", metavar="FILE", help="Write the head there."),
    click.option("-o", "--output", metavar="FILE", help="Write the answer there; '-' is"
                 " standard output, also for what is binary."),
    _flag("-O", "--remote-name", help="Write it to a file of the path's last part."),
    click.option("-w", "--write-out", metavar="FORMAT|@FILE", help="Write that at the end, with"
                 " %{http_code}, %{time_total} and others."),
    _flag("-v", "--verbose", help="Show what passes, record by record."),
    _flag("-f", "--fail", help="Exit with 22 for statuses from 400 on, and show no body."),
    _flag("--fail-with-body", help="The same, and show the body."),
    _flag("-s", "--silent", help="Say nothing of what went wrong, nor FCGI_STDERR."),
    _flag("-S", "--show-error", help="With --silent, say what went wrong."),
    _flag("-N", "--no-buffer", help="Write each piece as it comes, which is so anyway."),
    _seconds("-m", "--max-time", help="For the whole answer; 0 is for ever."),
    _seconds("--connect-timeout", help="For the connection.  [default: 30]"),
)  # fmt: skip
FASTCGI = (
    click.option("--role", type=click.Choice([role.name.lower() for role in Role]),
                 default="responder", help="What the application is to be.  [default: responder]"),
    click.option("--filter-data", metavar="DATA|@FILE", help="What a filter is to filter."),
)  # fmt: skip


def get_options(command: F) -> F:
    """Give the command its options."""
    for option in reversed((*REQUEST, *ANSWER, *FASTCGI)):
        command = option(command)
    return command
