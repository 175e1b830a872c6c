r"""What a request is on a line of a log: escaped, so that no request can forge a line or a field.

Text of CGI variables is latin-1 (PEP 3333), so what stands there are the bytes that came.
"""

from __future__ import annotations

import itertools
import os
import re

from fulgate.exchange import Exchange

__all__ = [
    "end",
    "escape",
    "escape_one",
    "request_id",
    "request_line",
    "text",
    "uri",
    "value",
    "word",
]

_special = re.compile(r"[^ !#-\[\]-~]")  # all but printable ASCII without quote and backslash
_short = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escape_one(match: re.Match[str]) -> str:
    """Escape the one character of a match."""
    char = match[0]
    code = ord(char)
    return _short.get(char) or (f"\\x{code:02x}" if code < 256 else f"\\U{code:08x}")


def escape(text: str) -> str:
    r"""Make text fit to stand between quotes on one line of a log: `\xNN`, `\"`, `\\`."""
    return _special.sub(escape_one, text)


def word(text: str) -> str:
    """Make text one word of a line; "-" where there is none."""
    return escape(text).replace(" ", "\\x20") or "-"


def text(value: str) -> str:
    """What the bytes behind a CGI variable say in UTF-8, else in latin-1."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        # A lone surrogate is no JSON that others can read.
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def value(exchange: Exchange, name: str) -> str:
    """Give a CGI variable, or ""."""
    # The application may have put anything there: the params are its environ.
    found = exchange.params.get(name, "")
    return found if isinstance(found, str) else ""


def uri(exchange: Exchange) -> str:
    """Give what was asked for, with its query."""
    found = value(exchange, "REQUEST_URI")
    if not found:
        found = value(exchange, "SCRIPT_NAME") + value(exchange, "PATH_INFO")
        query = value(exchange, "QUERY_STRING")
        if query:
            found += "?" + query
    return found


def request_line(exchange: Exchange) -> str:
    """Give the request's line, such as "GET /a?b HTTP/1.1", escaped for a log."""
    method = value(exchange, "REQUEST_METHOD") or "-"
    protocol = value(exchange, "SERVER_PROTOCOL")
    return escape(f"{method} {uri(exchange) or '-'} {protocol}".rstrip())


def end(exchange: Exchange) -> str:
    """Say how it ended: "ok", "aborted", "refused" or "broken"."""
    if exchange.refused is not None:
        return "refused"
    if exchange.aborted:
        return "aborted"
    return "broken" if exchange.broken else "ok"


def _new_run() -> None:
    global _run, _numbers
    _run = os.urandom(8).hex()
    _numbers = itertools.count(1)


_run = ""
_numbers = itertools.count(1)
_new_run()
os.register_at_fork(after_in_child=_new_run)  # else two processes would give the same ids


def request_id(exchange: Exchange) -> str:
    """Give the request's id: its param REQUEST_ID or UNIQUE_ID, else one made here, which stays.

    nginx: `fastcgi_param REQUEST_ID $request_id`; Apache's mod_unique_id sends UNIQUE_ID.
    """
    params = exchange.params
    found = params.get("REQUEST_ID") or params.get("UNIQUE_ID") or params.get("fulgate.request_id")
    if isinstance(found, str):
        return found
    made = f"{_run}{next(_numbers):08x}"
    params["fulgate.request_id"] = made
    return made
