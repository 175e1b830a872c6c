"""The format strings of the access log: PHP-FPM's `access.format` and gunicorn's, taken apart."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fulgate.errors import ConfigError

__all__ = ["FORMATS", "Field", "parse"]

FORMATS = ("combined", "json")  # those that have a name


@dataclass(frozen=True, slots=True)
class Field:
    """A place in a format: what stands there, such as "uri", and of what, or in which unit.

    `quoted` says that it stands between quotes, so that a space in it does no harm.
    """

    name: str
    argument: str = ""
    quoted: bool = False


# gunicorn: %(h)s; names of more than one letter are our own.
_GUNICORN = {
    "h": Field("address"),
    "l": Field("dash"),
    "u": Field("user"),
    "t": Field("began", "[]"),
    "r": Field("line"),
    "m": Field("method"),
    "U": Field("path"),
    "q": Field("query"),
    "H": Field("protocol"),
    "s": Field("status"),
    "B": Field("bytes"),
    "b": Field("bytes", "-"),
    "f": Field("param", "HTTP_REFERER"),
    "a": Field("param", "HTTP_USER_AGENT"),
    "T": Field("duration", "whole"),
    "M": Field("duration", "milliseconds"),
    "D": Field("duration", "microseconds"),
    "L": Field("duration", "seconds"),
    "p": Field("pid", "<>"),
}
_OWN = (
    "address", "bytes", "cpu", "duration", "end", "host", "id", "line", "method", "path", "pid",
    "protocol", "query", "received", "rss", "status", "thread", "uri", "user",
)  # fmt: skip

# PHP-FPM: %R, %{mili}d.
_PHP = {
    "C": "cpu_percent",
    "d": "duration",
    "e": "param",
    "f": "script",
    "l": "length",
    "m": "method",
    "M": "rss",
    "n": "pool",
    "o": "answer",
    "p": "pid",
    "P": "parent",
    "q": "query",
    "Q": "question",
    "r": "path",
    "R": "address",
    "s": "status",
    "t": "began",
    "T": "ended",
    "u": "user",
}
_UNITS = {
    "duration": {
        "": "php", "seconds": "php", "milliseconds": "fraction", "milli": "fraction",
        "mili": "fraction", "microseconds": "microseconds", "micro": "microseconds",
    },
    "cpu_percent": {"": "total", "total": "total", "user": "user", "system": "system"},
    "rss": {
        "": "bytes", "bytes": "bytes", "kilobytes": "kilobytes", "kilo": "kilobytes",
        "megabytes": "megabytes", "mega": "megabytes",
    },
}  # fmt: skip
_NEEDS_NAME = ("param", "answer")
_TAKES_TEXT = ("began", "ended")

_directive = re.compile(
    r"%(?:%|\(\{(?P<of>[^{}]+)\}(?P<kind>[ioe])\)s|\((?P<name>\w+)\)s"
    r"|(?:\{(?P<argument>[^{}]*)\})?(?P<letter>[A-Za-z]))",
    re.ASCII,
)


def parse(format: str) -> list[str | Field]:
    """Take a format string apart: text, and the fields between. Raises ConfigError.

    Both kinds of field may stand in one: `%(h)s` is gunicorn's, `%R` and `%{milli}d` PHP-FPM's.
    """
    parts: list[str | Field] = []
    at = quotes = 0
    while at < len(format):
        sign = format.find("%", at)
        text = format[at:] if sign < 0 else format[at:sign]
        if text:
            parts.append(text)
            quotes += text.count('"')
        if sign < 0:
            break
        match = _directive.match(format, sign)
        if match is None:
            raise ConfigError(f"{format[sign : sign + 10]!r} is no field, write %% for a %")
        found = "%" if match[0] == "%%" else _field(match)
        if isinstance(found, Field):
            found = Field(found.name, found.argument, quotes % 2 == 1)
        parts.append(found)
        at = match.end()
    return parts


def _field(match: re.Match[str]) -> Field:
    if match["of"]:
        of = match["of"]
        if match["kind"] == "o":
            return Field("answer", of.lower())
        return Field("param", of if match["kind"] == "e" else _variable(of))
    if match["name"]:
        name = match["name"]
        if name in _OWN:
            return Field(name, {"duration": "seconds", "rss": "bytes"}.get(name, ""))
        if name not in _GUNICORN:
            raise ConfigError(f"{match[0]!r} is no field")
        return _GUNICORN[name]
    name, argument = _PHP.get(match["letter"], ""), match["argument"] or ""
    if name in _NEEDS_NAME:
        if not argument:
            raise ConfigError(f"{match[0]!r} needs a name, such as %{{NAME}}{match['letter']}")
        return Field(name, argument.lower() if name == "answer" else argument)
    units = _UNITS.get(name)
    if not name or (argument and units is None and name not in _TAKES_TEXT):
        raise ConfigError(f"{match[0]!r} is no field")
    if units is not None:
        if argument not in units:
            raise ConfigError(
                f"{match[0]!r}: {argument!r} is none of {', '.join(filter(None, units))}"
            )
        argument = units[argument]
    return Field(name, argument)


def _variable(header: str) -> str:
    """The CGI variable of a header (RFC 3875, section 4.1.18)."""
    name = header.upper().replace("-", "_")
    return name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + name
