"""The options that commands which make a request have in common: they are curl's."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from fulgate.client.params import BadRequest, request_params
from fulgate.endpoint import Endpoint
from fulgate.errors import FulgateError
from fulgate.exchange import Role

__all__ = ["Unreachable", "Wanted", "read_body", "request_options", "secret"]

FORM = "application/x-www-form-urlencoded"
F = TypeVar("F", bound=Callable[..., Any])


class Unreachable(FulgateError):
    """Nobody listens. The process ends with exit status 1."""


def request_options(command: F) -> F:
    """Give a command the options that say what is asked for; `Wanted.of` takes their values."""
    for option in reversed(
        (
            click.option("-X", "--request", "method", metavar="METHOD", help="GET, or POST with a"
                         " body, unless given."),
            click.option("-H", "--header", "headers", multiple=True, metavar="'NAME: VALUE'",
                         help="A header of the request; 'NAME:' leaves one out."),
            click.option("-d", "--data", multiple=True, metavar="DATA|@FILE", help="The body: text,"
                         " or a file's (@- is standard input) without its line ends; several are"
                         " joined by '&'."),
            click.option("--data-binary", multiple=True, metavar="DATA|@FILE",
                         help="The same, with the file as it is."),
            click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="A CGI"
                         " variable, in place of what would be sent; 'NAME=' sends it empty."),
            click.option("--script-filename", default="", metavar="FILE", help="The script that"
                         " PHP-FPM is to run; the path is its name then."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


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
        *,
        method: str | None,
        headers: Sequence[str],
        data: Sequence[str],
        data_binary: Sequence[str],
        params: Sequence[str],
        script_filename: str,
        body: bytes | None = None,
        role: Role = Role.RESPONDER,
    ) -> Wanted:
        """Read the options' values. `body` stands for what --data would give.

        Raises click.UsageError.
        """
        if data or data_binary:
            body = read_body(data, data_binary)
        method = method or ("GET" if body is None else "POST")
        given = [_header(text) for text in headers]
        if (data or data_binary) and not any(n.lower() == "content-type" for n, _ in given):
            given.append(("Content-Type", FORM))
        left_out = {name.upper().replace("-", "_") for name, value in given if value is None}
        try:
            found = request_params(
                octets(method),
                octets(target),
                headers=[(name, value) for name, value in given if value is not None],
                length=len(body or b"") if role is not Role.AUTHORIZER else 0,
                script_filename=octets(script_filename),
                params=[_param(text) for text in params],
            )
        except BadRequest as error:
            raise click.UsageError(str(error)) from None
        if body == b"":
            found.setdefault("CONTENT_LENGTH", "0")
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


def read_body(data: Sequence[str], data_binary: Sequence[str]) -> bytes:
    """Give the body that --data and --data-binary make. Raises click.UsageError."""
    parts = [_part(text).replace(b"\r", b"").replace(b"\n", b"") if text[:1] == "@"
             else os.fsencode(text) for text in data]  # fmt: skip
    return b"&".join(parts + [_part(text) for text in data_binary])


def _part(text: str) -> bytes:
    if not text.startswith("@"):
        return os.fsencode(text)
    if text == "@-":
        return sys.stdin.buffer.read()
    try:
        return Path(text[1:]).read_bytes()
    except OSError as error:
        raise click.UsageError(f"{text[1:]}: {error.strerror}") from None
