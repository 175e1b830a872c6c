"""The options that commands which make a request have in common: they are curl's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click

from fulgate.client.params import request_params
from fulgate.commands.body import Part, joined, read
from fulgate.endpoint import Endpoint
from fulgate.errors import FulgateError
from fulgate.exchange import Role

__all__ = ["Unreachable", "Wanted", "data_option", "request_options", "secret"]

FORM: Final = (("Content-Type", "application/x-www-form-urlencoded"),)
JSON: Final = (("Content-Type", "application/json"), ("Accept", "application/json"))
F = TypeVar("F", bound=Callable[..., Any])


class Unreachable(FulgateError):
    """Nobody listens. The process ends with exit status 1."""


def request_options(command: F) -> F:
    """Give a RequestCommand the options that say what is asked for; `Wanted.of` takes their values.

    Those of the body are had by `fulgate.commands.body.given`.
    """
    for option in reversed(
        (
            click.option("-X", "--request", "method", metavar="METHOD", help="GET, or POST with a"
                         " body, unless given."),
            click.option("-H", "--header", "headers", multiple=True, metavar="'NAME: VALUE'",
                         help="A header of the request; 'NAME:' leaves one out, 'NAME;' sends it"
                         " empty, @FILE has one a line."),
            data_option("-d", "--data", "--data-ascii", "data", metavar="DATA|@FILE", help="The"
                        " body: text, or a file's (@- is standard input) without its line ends;"
                        " several are joined by '&'."),
            data_option("--data-raw", metavar="DATA", help="The same, where '@' is a character."),
            data_option("--data-binary", metavar="DATA|@FILE", help="The same, with the file"
                        " as it is."),
            data_option("--data-urlencode", metavar="[NAME=]DATA|[NAME]@FILE",
                        help="The same, encoded for a URL, but for the name."),
            click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="A CGI"
                         " variable, in place of what would be sent; 'NAME=' sends it empty."),
            click.option("--script-filename", default="", metavar="FILE", help="The script that"
                         " PHP-FPM is to run; the path is its name then."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def data_option(*names: str, **about: Any) -> Callable[[F], F]:
    """Make one of the options that `fulgate.commands.body.given` gives."""
    return click.option(*names, multiple=True, expose_value=False, **about)


@dataclass(frozen=True)
class Wanted:
    """What the options ask for: CGI variables, and a body."""

    method: str
    target: str
    params: dict[str, str]
    body: bytes

    @classmethod
    def of(
        cls,
        target: str,
        parts: Sequence[Part] = (),
        *,
        method: str | None,
        headers: Sequence[str],
        params: Sequence[str],
        script_filename: str,
        body: bytes | None = None,
        length: int | None = None,
        more: Sequence[tuple[str, str]] = (),
        role: Role = Role.RESPONDER,
    ) -> Wanted:
        """Read the options' values. `body` stands for what `parts` would give.

        `length` is that of a body that is not here; `more` are headers that give way to `headers`.
        Raises click.UsageError, Unreadable, and BadRequest for a target that is none.
        """
        if parts:
            body = joined(parts)
            more = [*more, *(JSON if any(kind == "json" for kind, _ in parts) else FORM)]
        method = method or ("GET" if body is None else "POST")
        given = [_header(text) for text in _lines(headers)]
        named = {name.lower() for name, _ in given}
        given += [(octets(n), octets(v)) for n, v in more if n.lower() not in named]
        left_out = {name.upper().replace("-", "_") for name, value in given if value is None}
        over = [_param(text) for text in params]
        if body == b"" and role is not Role.AUTHORIZER:  # it is there, and empty
            over.insert(0, ("CONTENT_LENGTH", "0"))
        found = request_params(
            octets(method),
            octets(target),
            headers=[(name, value) for name, value in given if value is not None],
            length=(length or len(body or b"")) if role is not Role.AUTHORIZER else 0,
            script_filename=octets(script_filename),
            params=over,
        )
        for name in left_out:
            found.pop("HTTP_" + name, None)
        return cls(method, target, found, body or b"")


def secret(endpoint: Endpoint) -> dict[str, str]:
    """Give what an endpoint of AJP may want: AJP_SECRET, of FULGATE_AJP_SECRET, which no ps shows.

    --param AJP_SECRET=... has the last word.
    """
    given = os.environ.get("FULGATE_AJP_SECRET", "") if endpoint.protocol == "ajp" else ""
    return {"AJP_SECRET": octets(given)} if given else {}


def octets(text: str) -> str:
    """Give an argument's bytes as latin-1 text, as which CGI variables are kept."""
    return os.fsencode(text).decode("latin-1")


def _lines(headers: Sequence[str]) -> Iterator[str]:
    for text in headers:
        if text.startswith("@"):
            yield from (line for line in os.fsdecode(read(text[1:])).splitlines() if line.strip())
        else:
            yield text


def _header(text: str) -> tuple[str, str | None]:
    name, colon, value = text.partition(":")
    if not colon and text.endswith(";"):  # curl's way to send an empty one
        return octets(text[:-1]), ""
    if not colon or not name.strip():
        raise click.UsageError(f"--header wants 'NAME: VALUE', and not {text!r}")
    value = value.strip(" \t")
    return octets(name.strip()), octets(value) if value else None


def _param(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"--param wants NAME=VALUE, and not {text!r}")
    return octets(name), octets(value)
