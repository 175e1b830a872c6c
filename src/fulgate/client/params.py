"""CGI variables made from an HTTP request, as a web server makes them. No I/O, but for `locate`.

RFC 3875, section 4.1, and what PHP and nginx add to it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from fulgate import __version__
from fulgate.errors import FulgateError

__all__ = ["BadRequest", "Script", "header_params", "locate", "request_params"]

# RFC 9110, section 7.6.1, and what the web server answers by itself.
HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"expect",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

# Connection names further hop-by-hop headers; by it no client may take these from the application,
# which a proxy before us may have set.
KEPT: Final = re.compile(
    rb"host|authorization|cookie|content-.*|forwarded|x-forwarded-.*|x-real-ip"
).fullmatch

# Two different values of these are an attempt to have two readers understand two things.
SINGLE: Final = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-language",
        b"content-length",
        b"content-location",
        b"content-range",
        b"content-type",
        b"date",
        b"from",
        b"host",
        b"if-modified-since",
        b"if-range",
        b"if-unmodified-since",
        b"max-forwards",
        b"origin",
        b"range",
        b"referer",
        b"user-agent",
    }
)

# `-` and `_` fold into one, and so do further characters in some languages: only what is plain
# passes. `Proxy` would become HTTP_PROXY, which programs take for the proxy that they shall use.
_plain = re.compile(rb"[a-z0-9-]+").fullmatch


class BadRequest(FulgateError):
    """The HTTP request cannot be passed on. It is answered with 400."""


def header_params(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Give CONTENT_TYPE, CONTENT_LENGTH and the HTTP_ variables of `headers`.

    Repeated headers are joined with ", " (RFC 9110, section 5.3), Cookie with "; " (RFC 9113,
    section 8.2.3). Raises BadRequest when a header that has one value has two.
    """
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        name = name.lower()
        before = found.get(name)
        if before is None:
            found[name] = value
        elif name in SINGLE:
            if value != before:
                raise BadRequest(f"the header {name!r} came twice")
        else:
            found[name] = before + (b"; " if name == b"cookie" else b", ") + value
    dropped = {b"proxy", *HOP_BY_HOP}
    for token in found.get(b"connection", b"").lower().split(b","):
        if not KEPT(token.strip()):
            dropped.add(token.strip())
    if not found.get(b"content-length", b"0").isdigit():
        raise BadRequest("Content-Length is no number")
    params: dict[str, str] = {}
    if b"transfer-encoding" in found:  # then the length is unknown (RFC 9112, section 6.3)
        dropped.add(b"content-length")
    for name, value in found.items():
        if name in dropped or not _plain(name):
            continue
        variable = name.decode("latin-1").upper().replace("-", "_")
        if name not in (b"content-type", b"content-length"):
            variable = "HTTP_" + variable
        params[variable] = value.decode("latin-1")
    return params


def request_params(
    method: str,
    target: str,
    *,
    headers: Iterable[tuple[str, str]] = (),
    length: int | None = 0,
    script_filename: str = "",
    params: Iterable[tuple[str, str]] = (),
) -> dict[str, str]:
    """Give the CGI variables of a request that no HTTP client made, as a web server would.

    `target` is a path, which begins with "/", with its query; what is not allowed in a URL is
    percent-encoded. `length` is that of the body in bytes, None where it is not known. The path
    is PATH_INFO; with `script_filename` it is SCRIPT_NAME, and the file is named beside it, as
    PHP-FPM wants it. `headers` become HTTP_ variables as they are, repeated ones joined; `params`
    have the last word. All text is latin-1. Raises BadRequest for a target that is no path.
    """
    if not target.startswith("/"):
        raise BadRequest(f"the path {target!r} does not begin with '/'")
    uri = quote(target.encode("latin-1"), safe="/?%:@!$&'()*+,;=~[]|")
    raw_path, _, query = uri.partition("?")
    path = unquote_to_bytes(raw_path).decode("latin-1")
    found = {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": f"fulgate/{__version__}",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "localhost",
        "SERVER_ADDR": "127.0.0.1",
        "SERVER_PORT": "80",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "0",
        "REQUEST_SCHEME": "http",
        "REQUEST_METHOD": method,
        "REQUEST_URI": uri,
        "SCRIPT_NAME": path if script_filename else "",
        "QUERY_STRING": query,
        "CONTENT_TYPE": "",
        "CONTENT_LENGTH": str(length) if length else "",
        "HTTP_HOST": "localhost",
        "HTTP_USER_AGENT": f"fulgate/{__version__}",
        "HTTP_ACCEPT": "*/*",
    }
    if script_filename:
        # PHP built to be started by a redirect wants to be told so.
        found |= {"SCRIPT_FILENAME": script_filename, "REDIRECT_STATUS": "200"}
    else:
        found["PATH_INFO"] = path
    given: dict[str, str] = {}
    for name, value in headers:
        variable = name.upper().replace("-", "_")
        if variable not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            variable = "HTTP_" + variable
        joint = "; " if variable == "HTTP_COOKIE" else ", "
        given[variable] = given[variable] + joint + value if variable in given else value
    return {**found, **given, **dict(params)}


@dataclass(frozen=True, slots=True)
class Script:
    """A script that a path chose: its path in the URL, what follows it, and its file."""

    name: bytes
    path_info: bytes
    filename: bytes  # its real path
    root: bytes  # the real path of the root that it is in


def locate(root: str, path: bytes, index: str, split_path: Sequence[str]) -> Script | None:
    """Find the script that `path` (decoded, beginning with "/") chooses under the folder `root`.

    The path is split behind the first segment that ends in one of `split_path`, whatever its
    case; the file must be there. A path without such a segment chooses the folder's `index`
    where it ends in "/" and the folder has one, else the root's `index`, which then sees the
    path in REQUEST_URI.

    None when there is no such file, and for any path with NUL or a segment ".." or "."; never a
    file whose real path is outside the real path of `root`, symbolic links resolved.
    """
    if b"\0" in path or not path.startswith(b"/"):
        return None
    if not {b"..", b"."}.isdisjoint(path.split(b"/")):
        return None
    at = _split_at(path, [extension.lower().encode() for extension in split_path])
    if at:
        return _script(root, path[:at], path[at:])
    front = os.fsencode(index)
    if path.endswith(b"/") and (script := _script(root, path + front, b"")):
        return script
    return _script(root, b"/" + front, b"")


def _split_at(path: bytes, extensions: Sequence[bytes]) -> int:
    """Give the end of the first segment that ends in one of `extensions`; 0 if there is none."""
    lower = path.lower()
    end = 0
    while end < len(path):
        end = lower.find(b"/", end + 1)
        if end < 0:
            end = len(path)
        if any(lower.endswith(extension, 0, end) for extension in extensions):
            return end
    return 0


def _script(root: str, name: bytes, path_info: bytes) -> Script | None:
    base = os.path.realpath(os.fsencode(root))
    filename = os.path.realpath(base + name)
    if not filename.startswith(base.rstrip(b"/") + b"/") or not os.path.isfile(filename):
        return None
    return Script(name, path_info, filename, base)
