"""What the head of an answer may hold: checked once for each status and name, then known."""

from __future__ import annotations

from typing import Final
from wsgiref.util import is_hop_by_hop

__all__ = [
    "ANY_BODY",
    "CONTENT_LENGTH",
    "INFORMATIONAL",
    "NO_BODY",
    "check_length",
    "check_name",
    "check_status",
    "check_value",
    "known_names",
    "known_statuses",
]

# How a header is treated, by its name; only good names are kept, and not without limit.
PLAIN: Final = 0
CONTENT_LENGTH: Final = 1
KNOWN_LIMIT: Final = 1024
TOKEN: Final = frozenset(
    "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)
known_names: Final[dict[str, int]] = {}

# What body a status has: any, none (204, 304), or its length is not to be told (1xx).
ANY_BODY: Final = 0
NO_BODY: Final = 1
INFORMATIONAL: Final = 2
known_statuses: Final[dict[str, int]] = {}


def check_status(status: str) -> int:
    """Give what body a status line like "200 OK" allows: ANY_BODY, NO_BODY or INFORMATIONAL.

    Raises TypeError or ValueError where it is none (PEP 3333, "The start_response() Callable").
    """
    if not isinstance(status, str):
        raise TypeError(f"the status is not str, but {type(status).__name__}")
    code = status[:3]
    if not (len(code) == 3 and code.isascii() and code.isdigit() and status[3:4] == " "):
        raise ValueError(f'the status {status!r} is not like "200 OK"')
    if code < "100" or not status.isprintable() or (len(status) > 4 and status[-1] == " "):
        raise ValueError(f"the status {status!r} cannot be sent")
    status.encode("latin-1")
    body = INFORMATIONAL if code < "200" else NO_BODY if code in ("204", "304") else ANY_BODY
    if len(known_statuses) < KNOWN_LIMIT:
        known_statuses[status] = body
    return body


def check_name(name: str) -> int:
    """Give CONTENT_LENGTH or PLAIN for the name of a header.

    Raises TypeError or ValueError for what is no token (RFC 9110, section 5.6.2), for a hop-by-hop
    header (PEP 3333, "Other HTTP Features") and for Status, which CGI keeps for itself.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a header is not str, but {type(name).__name__}")
    if not name or not TOKEN.issuperset(name):
        raise ValueError(f"{name!r} is not the name of a header")
    lower = name.lower()
    if is_hop_by_hop(lower):
        raise ValueError(f"{name} is a hop-by-hop header, which an application may not send")
    if lower == "status":
        raise ValueError("the header Status is what the status line becomes in CGI")
    kind = CONTENT_LENGTH if lower == "content-length" else PLAIN
    if len(known_names) < KNOWN_LIMIT:
        known_names[name] = kind
    return kind


def check_value(name: str, value: str) -> None:
    """Raise TypeError or ValueError for what cannot be the value of a header.

    That is text outside latin-1 and control characters, CR, LF and NUL among them (PEP 3333).
    """
    if not isinstance(value, str):
        raise TypeError(f"the value of {name} is not str, but {type(value).__name__}")
    for c in value:
        if c > "\xff" or ((c < " " or c == "\x7f") and c != "\t"):
            raise ValueError(f"the value of {name} holds {c!r}, which a header may not")


def check_length(value: str, before: int) -> int:
    """Give the number that Content-Length says; `before` is what another one said, or -1.

    Raises ValueError for what is no number of bytes, and for two that differ.
    """
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise ValueError(f"{value!r} is not a Content-Length")
    length = int(value)
    if before >= 0 and before != length:
        raise ValueError(f"two values of Content-Length: {before} and {length}")
    return length
