"""The bodies of requests as curl's options make them: data, forms, and files to be uploaded."""

from __future__ import annotations

import os
import secrets
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote_from_bytes

import click

from fulgate.errors import FulgateError

__all__ = [
    "KINDS",
    "Part",
    "RequestCommand",
    "Unreadable",
    "Upload",
    "form",
    "given",
    "joined",
    "read",
]

KINDS: Final = ("data", "data_raw", "data_binary", "data_urlencode", "json")
"""The options that make a body, or with --get a query, by the names of their values."""

GIVEN: Final = "fulgate.commands.body"
CHUNK: Final = 65536
TYPES: Final = {
    ".gif": "image/gif",
    ".htm": "text/html",
    ".html": "text/html",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
    ".xml": "application/xml",
}
"""What curl says of a file in a form, by the end of its name."""

Part = tuple[str, str]
"""One of KINDS, and its value."""


class Unreadable(FulgateError):
    """A file that is to be sent cannot be read. `exit_status` is curl's."""

    exit_status = 26


class RequestCommand(click.Command):
    """Keeps the order in which several options of a body came, of whatever kind: see `given`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Do as any command does."""
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        left = {kind: iter(values.get(kind, ())) for kind in KINDS}
        ctx.meta[GIVEN] = [
            (one.name, next(left[one.name])) for one in order if one.name is not None
            and one.name in left
        ]  # fmt: skip
        return super().parse_args(ctx, args)


def given() -> list[Part]:
    """Give the options of a body that the current command, a RequestCommand, was called with."""
    found: list[Part] = click.get_current_context().meta.get(GIVEN, [])
    return found


def joined(parts: Sequence[Part]) -> bytes:
    """Make a body of options: joined by "&", those of --json by nothing. Raises Unreadable."""
    body = b""
    for kind, text in parts:
        body += (b"&" if body and kind != "json" else b"") + _data(kind, text)
    return body


def _data(kind: str, text: str) -> bytes:
    if kind == "data_urlencode":
        return _encoded(text)
    if kind == "data_raw" or not text.startswith("@"):
        return os.fsencode(text)
    data = read(text[1:])
    return data.translate(None, b"\r\n\0") if kind == "data" else data


def _encoded(text: str) -> bytes:
    """CONTENT, =CONTENT, NAME=CONTENT, @FILE or NAME@FILE: only the content is encoded."""
    at = next((place for place, char in enumerate(text) if char in "=@"), -1)
    name = text[: max(at, 0)]
    data = read(text[at + 1 :]) if text[at : at + 1] == "@" else os.fsencode(text[at + 1 :])
    encoded = quote_from_bytes(data, safe="").replace("%20", "+").encode()
    return os.fsencode(name) + b"=" + encoded if name else encoded


def read(name: str) -> bytes:
    """Give what a file holds; "-" is standard input. Raises Unreadable."""
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise Unreadable(f"{name}: {error.strerror}") from None


def form(fields: Sequence[str], strings: Sequence[str]) -> tuple[bytes, str]:
    """Make a form of multipart/form-data (RFC 7578); give it, and its content type.

    `fields` are NAME=VALUE, NAME=@FILE and NAME=<FILE, with ;type=TYPE and ;filename=NAME behind
    it; of `strings` the value is what it is. Raises click.UsageError, Unreadable.
    """
    boundary = "-" * 24 + secrets.token_hex(8)
    parts = [_field(*_pair(text)) for text in fields]
    parts += [(_disposition(name), os.fsencode(value)) for name, value in map(_pair, strings)]
    body = b"".join(
        [b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary.encode(), os.fsencode(head), data)
         for head, data in parts]
    )  # fmt: skip
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"--form wants NAME=VALUE, and not {text!r}")
    return name, value


def _field(name: str, value: str) -> tuple[str, bytes]:
    value, *more = value.split(";")
    said: dict[str, str] = {}
    for text in more:
        key, equals, what = text.strip().partition("=")
        if not equals or key not in ("type", "filename"):
            raise click.UsageError(f"--form knows ;type= and ;filename=, and not {text!r}")
        said[key] = what.strip('"')
    if value[:1] not in ("@", "<"):
        return _disposition(name, **said), os.fsencode(value)
    file = value[1:]
    if value[0] == "@":
        said.setdefault("filename", os.path.basename(file))
        said.setdefault("type", TYPES.get(Path(file).suffix.lower(), "application/octet-stream"))
    return _disposition(name, **said), read(file)


def _disposition(name: str, filename: str | None = None, type: str = "") -> str:
    head = f'Content-Disposition: form-data; name="{_quoted(name)}"'
    if filename is not None:
        head += f'; filename="{_quoted(filename)}"'
    return head + (f"\r\nContent-Type: {type}" if type else "")


def _quoted(text: str) -> str:
    return text.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


@dataclass(frozen=True)
class Upload:
    """A file that is sent piece by piece; `length` in bytes is None where it is not known."""

    name: str
    file: Any  # a binary one
    length: int | None

    @classmethod
    def of(cls, name: str) -> Upload:
        """Open it; "-" is standard input. Raises Unreadable."""
        if name in ("-", "."):
            return cls("", sys.stdin.buffer, None)
        try:
            file = open(name, "rb")  # noqa: SIM115
        except OSError as error:
            raise Unreadable(f"{name}: {error.strerror}") from None
        about = os.fstat(file.fileno())
        return cls(os.path.basename(name), file,
                   about.st_size if stat.S_ISREG(about.st_mode) else None)  # fmt: skip

    def pieces(self) -> Iterator[bytes]:
        """Give it, as far as there is any at a time. Raises Unreadable."""
        try:
            with self.file:
                while piece := self.file.read1(CHUNK):
                    yield piece
        except OSError as error:
            raise Unreadable(f"{self.name}: {error.strerror}") from None
