"""An authorizer, the site behind it, and a filter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fulgate import (
    Allow,
    AuthorizerRequest,
    Deny,
    Filtered,
    FilterRequest,
    Roles,
    authorizer,
    filter,
)


@authorizer
def check(request: AuthorizerRequest) -> Allow | Deny:
    if request.uri.startswith("/raise"):
        raise LookupError("broken")
    if request.uri.startswith("/away"):
        return Deny("302 Found", [("Location", "http://elsewhere.example/")])
    found = request.credentials
    if found is None or found[1] != "sesame":
        return Deny("401 Unauthorized", [("WWW-Authenticate", 'Basic realm="test"')], b"who?\n")
    return Allow({"WHO": found[0], "METHOD_SEEN": request.method}, [("Set-Cookie", "a=b")])


def site(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/exit":
        raise SystemExit(7)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ.get('WHO')} {environ.get('METHOD_SEEN')}\n".encode()]


@filter
def upper(request: FilterRequest) -> Filtered:
    if request.uri == "/exit":
        raise SystemExit(7)
    told = f"{request.data_length} {request.data_modified:%Y-%m-%d}\n".encode()
    body = request.body.read()
    return Filtered(told + request.data.read().upper() + body, [("Content-Type", "text/html")])


both = Roles(site, check)
three = Roles(site, check, upper)
