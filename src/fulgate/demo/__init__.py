"""A WSGI application that shows what a server gives to applications. It needs nothing else.

fulgate serve fulgate.demo:app --http 127.0.0.1:8000
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from html import escape
from typing import Any
from urllib.parse import quote

import fulgate
from fulgate.demo.page import CSP, document_end, document_start
from fulgate.demo.upload import BadBody, Digest, Part, body_reader, boundary_of, digest_parts

__all__ = ["app"]

Environ = dict[str, Any]
StartResponse = Callable[..., Any]

PIECES = 10
PAUSE = 0.5  # seconds between two pieces of a streaming answer

HTML = "text/html; charset=utf-8"
REQUEST_NAMES = frozenset(
    {
        "CONTENT_LENGTH",
        "CONTENT_TYPE",
        "DOCUMENT_URI",
        "HTTPS",
        "PATH_INFO",
        "PATH_TRANSLATED",
        "QUERY_STRING",
        "REQUEST_METHOD",
        "REQUEST_SCHEME",
        "REQUEST_URI",
        "SCRIPT_FILENAME",
        "SCRIPT_NAME",
        "SERVER_PROTOCOL",
    }
)
SECRETS = frozenset({"HTTP_AUTHORIZATION", "HTTP_COOKIE"})


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer a request: `/upload` and `/stream` below the mount point, the page for all else."""
    path = environ.get("PATH_INFO", "")
    method = environ["REQUEST_METHOD"]
    if path == "/upload" and method == "POST":
        return _upload(environ, start_response)
    if method not in ("GET", "HEAD"):
        return _answer(start_response, "405 Method Not Allowed", "Not here.\n", allow="GET, HEAD")
    if path == "/stream":
        return _stream(environ, start_response)
    return _answer(start_response, "200 OK", _page(environ), HTML)


def _answer(
    start_response: StartResponse,
    status: str,
    text: str,
    content_type: str = "text/plain; charset=utf-8",
    allow: str = "",
) -> list[bytes]:
    body = text.encode("utf-8")
    headers = [*_headers(content_type), ("Content-Length", str(len(body)))]
    start_response(status, [*headers, ("Allow", allow)] if allow else headers)
    return [body]


def _headers(content_type: str) -> list[tuple[str, str]]:
    return [
        ("Content-Type", content_type),
        ("Content-Security-Policy", CSP),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cache-Control", "no-store"),
    ]


# what the page shows


def _text(value: object) -> str:
    """Make a CGI variable readable: its bytes are UTF-8 mostly, and latin-1 where they are not."""
    text = str(value)
    with contextlib.suppress(UnicodeEncodeError, UnicodeDecodeError):
        text = text.encode("latin-1").decode("utf-8")
    return _printable(text)


def _shown(value: object) -> str:
    """Give a value as HTML."""
    text = _text(value)
    return escape(text) if text else '<span class="none">empty</span>'


def _start(environ: Environ, title: str) -> str:
    software = f"on Python {platform.python_version()}"
    return document_start(title, _link(environ, "/"), fulgate.__version__, software)


def _link(environ: Environ, path: str) -> str:
    mount = environ.get("SCRIPT_NAME", "").strip("/")
    return ("/" + quote(mount, encoding="latin-1") if mount else "") + path


def _page(environ: Environ) -> str:
    return "".join(
        (
            _start(environ, "Fulgate"),
            _paths(environ),
            '<div class="two">',
            _upload_form(environ),
            _stream_card(environ),
            "</div>",
            _variables(environ),
            document_end(script=True),
        )
    )


def _paths(environ: Environ) -> str:
    scheme = environ.get("wsgi.url_scheme", "http")
    host = environ.get("HTTP_HOST") or environ.get("SERVER_NAME", "")
    script = environ.get("SCRIPT_NAME", "")
    path = environ.get("PATH_INFO", "")
    query = environ.get("QUERY_STRING", "")
    url = f'<span class="host">{escape(_text(scheme))}://{escape(_text(host))}</span>'
    for kind, text in (("script", script), ("path", path), ("query", query and "?" + query)):
        if text:
            url += f'<span class="{kind}">{escape(_text(text))}</span>'
    legend = "".join(
        f'<div class="{kind}"><dt>{name}</dt><dd class="mono">{_shown(text)}</dd></div>'
        for kind, name, text in (
            ("script", "SCRIPT_NAME", script),
            ("path", "PATH_INFO", path),
            ("query", "QUERY_STRING", query),
        )
    )
    tries = "".join(
        f'<li><a href="{escape(_link(environ, target))}">{escape(target)}</a></li>'
        for target in ("/", "/hello/world?a=1&b=2", "/caf%C3%A9", "/a%20b", "/a%2Fb")
    )
    return f"""<section>
<h2>How the path came out</h2>
<p>SCRIPT_NAME is where the application is mounted, PATH_INFO is what follows. Joined, they are
the path that was asked for, decoded.</p>
<div class="url">{url}</div>
<dl class="legend">{legend}</dl>
<ul class="try" aria-label="Paths to try">{tries}</ul>
</section>
"""


def _upload_form(environ: Environ) -> str:
    return f"""<section>
<h2>Upload</h2>
<p>The body is hashed while it arrives, and kept nowhere.</p>
<form id="upload" method="post" enctype="multipart/form-data"
 action="{escape(_link(environ, "/upload"))}">
<input type="file" name="file" id="file" aria-label="File to upload">
<div class="row"><button>Upload</button>
<button type="button" class="quiet" id="random" hidden>Send 8 MiB of noise</button></div>
<progress id="bar" max="1" value="0" hidden></progress>
<dl class="facts" id="arrived" aria-live="polite" hidden></dl>
</form>
</section>
"""


def _stream_card(environ: Environ) -> str:
    seconds = PIECES * PAUSE
    return f"""<section>
<h2>Streaming</h2>
<p>{PIECES} pieces in {seconds:g} seconds: each is seen as soon as the application gives it.</p>
<div class="row"><a class="button" id="start" role="button"
 href="{escape(_link(environ, "/stream"))}">Start</a></div>
<ol id="lines" aria-live="polite" hidden></ol>
</section>
"""


def _variables(environ: Environ) -> str:
    groups: dict[str, list[tuple[str, object]]] = {
        "The request": [],
        "Headers": [],
        "Server and connection": [],
        "WSGI and Fulgate": [],
    }
    for name, value in sorted(environ.items()):
        if "." in name:
            group = "WSGI and Fulgate"
            value = value if isinstance(value, (str, bool, int, tuple)) else type(value).__name__
        elif name in REQUEST_NAMES:
            group = "The request"
        elif name.startswith("HTTP_"):
            group = "Headers"
            value = f"({len(value)} characters, hidden)" if name in SECRETS else value
        else:
            group = "Server and connection"
        groups[group].append((name, value))
    groups["WSGI and Fulgate"] += [
        ("process", os.getpid()),
        ("thread", threading.current_thread().name),
        ("interpreter", sys.implementation.name + " " + platform.python_version()),
    ]
    tables = "".join(_table(name, rows) for name, rows in groups.items() if rows)
    return f"""<section>
<h2>What the application was told</h2>
<p>The environ of this very request: CGI variables as they came over FastCGI, then what WSGI
adds.</p>
{tables}</section>
"""


def _table(name: str, rows: list[tuple[str, object]]) -> str:
    body = "".join(
        f"<tr><th scope=row class=mono>{escape(_text(name))}</th><td>{_shown(value)}</td></tr>"
        for name, value in rows
    )
    return (
        f"<details open><summary>{escape(name)}<span>{len(rows)}</span></summary>"
        f"<table>{body}</table></details>\n"
    )


# what it does


def _upload(environ: Environ, start_response: StartResponse) -> list[bytes]:
    total = Digest()
    next_piece = body_reader(environ, total)
    pieces = 0
    parts: list[Part] = []
    try:
        boundary = boundary_of(environ.get("CONTENT_TYPE", ""))
        if boundary is not None:
            parts = list(digest_parts(next_piece, boundary))
        while next_piece():
            pieces += 1
    except BadBody as error:
        return _answer(start_response, "400 Bad Request", f"{error}\n")
    if "application/json" in environ.get("HTTP_ACCEPT", ""):
        facts = {
            "bytes": total.size,
            "sha256": total.sha256,
            "pieces": pieces,
            "parts": [
                {"name": p.name, "filename": p.filename, "bytes": p.size, "sha256": p.sha256}
                for p in parts
            ],
        }
        return _answer(start_response, "200 OK", json.dumps(facts), "application/json")
    cards = "".join(_part_card(part) for part in parts)
    page = f"""{_start(environ, "Fulgate: what arrived")}{cards}<section>
<h2>The whole body</h2>
<p>As it came, with all that multipart/form-data puts around the parts.</p>
{_facts([("Arrived", f"{total.size:,} bytes"), ("SHA-256", total.sha256)])}
</section>
<p><a class="button" href="{escape(_link(environ, "/"))}">Back</a></p>
{document_end()}"""
    return _answer(start_response, "200 OK", page, HTML)


def _part_card(part: Part) -> str:
    title = part.name if part.filename is None else part.filename or "no file"
    facts = [
        ("Field", part.name),
        ("Type", part.content_type),
        ("Arrived", f"{part.size:,} bytes"),
        ("SHA-256", part.sha256),
    ]
    return f"<section><h2>{escape(_printable(title))}</h2>{_facts(facts)}</section>\n"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _facts(facts: list[tuple[str, str]]) -> str:
    rows = "".join(
        f'<div><dt>{name}</dt><dd class="mono">{escape(_printable(value))}</dd></div>'
        for name, value in facts
        if value
    )
    return f'<dl class="facts">{rows}</dl>'


def _stream(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    plain = "text/plain" in environ.get("HTTP_ACCEPT", "")
    start_response("200 OK", _headers("text/plain; charset=utf-8" if plain else HTML))
    if environ["REQUEST_METHOD"] == "HEAD":
        return
    if not plain:
        yield (
            _start(environ, "Fulgate: streaming")
            + "<section><h2>Streaming</h2><p>This page is being written while it is shown.</p>"
            + '<ol id="lines">'
        ).encode()
    aborted = environ.get("fulgate.aborted", bool)  # bool() is False: other servers do not tell
    began = time.monotonic()
    for number in range(1, PIECES + 1):
        time.sleep(PAUSE)
        if aborted():
            return
        written = f"{time.monotonic() - began:.2f} s"
        if plain:
            yield f"piece {number} of {PIECES}, written at {written}\n".encode()
        else:
            yield f"<li>piece {number} of {PIECES} <span>{written}</span></li>\n".encode()
    if not plain:
        back = escape(_link(environ, "/"))
        end = f'</ol></section><p><a class="button" href="{back}">Back</a></p>{document_end()}'
        yield end.encode()
