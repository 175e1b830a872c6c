"""Turn the CGI variables that a web server sent into an exact WSGI environ. No I/O.

Each web server has its own idea of SCRIPT_NAME and PATH_INFO (RFC 3875, sections 4.1.13 and 4.1.5),
so there is a rule for each, and `auto` finds the rule by SERVER_SOFTWARE. The rules rest on this:

- SCRIPT_NAME + PATH_INFO is the path of REQUEST_URI, percent-decoded once, its bytes as latin-1
  text (PEP 3333). REQUEST_URI tells where a server's split or decoding went astray.
- Where the server cleaned the path (`//`, `/./`, `/../`) or rewrote it, the server's path counts,
  since that is what its own access rules were applied to. What the client sent as it came is
  what the policy `uri` gives.
- A mount point is never taken from a part of REQUEST_URI that is not clean: an application puts
  SCRIPT_NAME before the links that it makes, and `//host` there is a link to another site.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote

from fulgate.errors import LimitExceeded
from fulgate.exchange import Exchange

__all__ = ["PATH_POLICIES", "REPEATED_POLICIES", "repair"]

Params = dict[str, Any]

# Fields whose value is a list, so that repeating them means to join them (RFC 9110, section 5.3).
LISTS: Final = frozenset(
    "HTTP_" + name
    for name in (
        "ACCEPT", "ACCEPT_CHARSET", "ACCEPT_ENCODING", "ACCEPT_LANGUAGE",
        "ACCESS_CONTROL_REQUEST_HEADERS", "A_IM", "BAGGAGE", "CACHE_CONTROL", "CONNECTION",
        "EXPECT", "FORWARDED", "IF_MATCH", "IF_NONE_MATCH", "KEEP_ALIVE", "LINK", "PRAGMA",
        "PREFER", "PRIORITY", "SEC_CH_UA", "SEC_CH_UA_FULL_VERSION_LIST",
        "SEC_WEBSOCKET_EXTENSIONS", "SEC_WEBSOCKET_PROTOCOL", "TE", "TRACESTATE", "TRAILER",
        "TRANSFER_ENCODING", "UPGRADE", "VARY", "VIA", "WARNING", "X_FORWARDED_FOR",
    )
)  # fmt: skip

# What a FastCGI script that Apache finds on disk may be called.
SCRIPTS: Final = (".fcgi", ".fcg", ".fpl", ".cgi", ".py", ".wsgi")

REPEATED_POLICIES: Final = ("refuse", "join", "first", "last")


def repair(
    exchange: Exchange,
    path: str = "auto",
    script_name: str = "",
    repeated_params: str = "refuse",
) -> None:
    """Make `exchange.params` an exact CGI environ (PEP 3333, RFC 3875), in place, once.

    `path` is one of PATH_POLICIES: `auto`, or the rule of a server, or

    - `cgi`: SCRIPT_NAME and PATH_INFO as they came;
    - `root`: SCRIPT_NAME is empty, PATH_INFO the whole path as the server sees it;
    - `uri`: SCRIPT_NAME is empty, PATH_INFO the path of REQUEST_URI, not cleaned.

    `script_name`, such as "/app", forces SCRIPT_NAME, and PATH_INFO is what remains of the path.
    A request outside that prefix keeps its whole path as PATH_INFO: a server in front that takes
    the prefix away is served too. SCRIPT_NAME is what was forced in any case.

    Of a variable that came more than once, the last counts (as with PHP), so that an nginx
    `fastcgi_param` after `include fastcgi_params` wins; with nginx, HTTP_HOST too, which Debian's
    file sets. HTTP_ fields that are lists are joined
    with ", " (Cookie with "; ", RFC 6265, section 5.4). For other HTTP_ fields with different
    values `repeated_params` is one of REPEATED_POLICIES: `refuse` sets `exchange.refused`, a
    LimitExceeded with status 400; `join` joins them with ", ", `first` and `last` take that one.

    CONTENT_LENGTH stays where it is a number, and is absent otherwise; an empty CONTENT_TYPE is
    absent. HTTP_PROXY (httpoxy), HTTP_CONTENT_LENGTH and HTTP_CONTENT_TYPE are dropped.
    "wsgi.url_scheme" is set from HTTPS or REQUEST_SCHEME.

    Raises ValueError for a policy that does not exist.
    """
    params = exchange.params
    if exchange.repeated:
        _merge(exchange, repeated_params)
    if "HTTP_PROXY" in params:
        del params["HTTP_PROXY"]
    if "HTTP_CONTENT_LENGTH" in params:
        del params["HTTP_CONTENT_LENGTH"]
    if "HTTP_CONTENT_TYPE" in params:
        del params["HTTP_CONTENT_TYPE"]
    if exchange.content_length < 0 and "CONTENT_LENGTH" in params:
        del params["CONTENT_LENGTH"]
    if params.get("CONTENT_TYPE") == "":
        del params["CONTENT_TYPE"]

    https = params.get("HTTPS") or params.get("REQUEST_SCHEME", "http")
    params["wsgi.url_scheme"] = "http" if https == "http" or https == "off" else _scheme(https)

    script = params.get("SCRIPT_NAME")
    if (
        path == "auto"
        and script
        and script == params.get("DOCUMENT_URI")
        and "PATH_INFO" not in params
        and not script_name
        and _is_plain(script, params)
    ):
        # The common case: nginx's stock fastcgi_params, for a path that needed no decoding.
        params["SCRIPT_NAME"] = ""
        params["PATH_INFO"] = script
    else:
        _set_path(params, path, script_name)

    if not (
        params.get("SERVER_NAME")
        and params.get("SERVER_PORT")
        and params.get("REQUEST_METHOD")
        and params.get("SERVER_PROTOCOL")
        and "QUERY_STRING" in params
    ):
        _add_missing(params)


def _scheme(https: str) -> str:
    """Give what a value of HTTPS or of REQUEST_SCHEME means."""
    return "https" if https.lower() in ("on", "1", "https", "yes", "true") else "http"


def _is_plain(script: str, params: Params) -> bool:
    """Is the request's path just what nginx has in `script`, without escapes or a mount?"""
    uri = params.get("REQUEST_URI")
    if script != uri:
        query = params.get("QUERY_STRING")
        if not query or uri != script + "?" + query:
            return False
    if "%" in script or script[0] != "/":
        return False
    software: str = params.get("SERVER_SOFTWARE", "")
    return software.startswith("nginx")


def _add_missing(params: Params) -> None:
    """Add what PEP 3333 says is never missing, and never empty but for QUERY_STRING.

    SERVER_NAME is empty for nginx's `server_name ""`, SERVER_PORT where it listens on a Unix
    socket. HTTP_HOST is the client's word, so it is no source for SERVER_NAME.
    """
    if not params.get("SERVER_NAME"):
        params["SERVER_NAME"] = params.get("SERVER_ADDR") or "localhost"
    if not params.get("SERVER_PORT"):
        params["SERVER_PORT"] = "443" if params["wsgi.url_scheme"] == "https" else "80"
    if not params.get("REQUEST_METHOD"):
        params["REQUEST_METHOD"] = "GET"
    if not params.get("SERVER_PROTOCOL"):
        params["SERVER_PROTOCOL"] = "HTTP/1.0"
    if "QUERY_STRING" not in params:
        _, mark, query = params.get("REQUEST_URI", "").partition("?")
        params["QUERY_STRING"] = query if mark else ""


# Repeated parameters


def _merge(exchange: Exchange, policy: str) -> None:
    """Give each name that came more than once its one value."""
    if policy not in REPEATED_POLICIES:
        raise ValueError(f"no policy for repeated parameters: {policy!r}")
    params = exchange.params
    values: dict[str, list[str]] = {}
    for name, value in exchange.pairs():
        values.setdefault(name, []).append(value)
    for name, several in values.items():
        if len(several) == 1:
            continue
        if name == "HTTP_COOKIE":
            params[name] = "; ".join([value for value in several if value])
        elif name in LISTS:
            params[name] = ", ".join([value for value in several if value])
        elif not name.startswith("HTTP_") or policy == "last" or _all_equal(several):
            params[name] = several[-1]
        elif name == "HTTP_HOST" and _is_nginx(params):
            # Both are the configuration's: nginx sends a field that a fastcgi_param names no more.
            params[name] = several[-1]
        elif policy == "first":
            params[name] = several[0]
        elif policy == "join":
            params[name] = ", ".join(several)
        elif name not in ("HTTP_PROXY", "HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE"):
            field = name[5:].replace("_", "-").title()
            if exchange.refused is None:
                exchange.refused = LimitExceeded(
                    "400 Bad Request", f"the header {field} came {len(several)} times"
                )
    exchange.repeated = False


def _is_nginx(params: Params) -> bool:
    """Its scgi_params name no SERVER_SOFTWARE; but DOCUMENT_URI is a word of nginx's alone."""
    software: str | None = params.get("SERVER_SOFTWARE")
    return "DOCUMENT_URI" in params if software is None else software.startswith("nginx")


def _all_equal(values: list[str]) -> bool:
    first = values[0]
    return all([value == first for value in values])  # noqa: C419 - mypyc inlines it


# SCRIPT_NAME and PATH_INFO


def _set_path(params: Params, policy: str, script_name: str) -> None:
    rule = RULES.get(policy)
    if rule is None:
        raise ValueError(f"no policy for paths: {policy!r}")
    script, info = rule(params)
    if policy != "cgi":
        script, info = _tidy(script, info)
    if script_name:
        prefix = script_name.rstrip("/")
        if prefix and prefix[0] != "/":
            prefix = "/" + prefix
        whole = script + info
        if whole == prefix or whole.startswith(prefix + "/"):
            info = whole[len(prefix) :]
        else:
            info = whole
        script = prefix
    params["SCRIPT_NAME"] = script
    params["PATH_INFO"] = info


def _tidy(script: str, info: str) -> tuple[str, str]:
    """Hold what PEP 3333 and links need: no "/" at SCRIPT_NAME's end, one at each beginning."""
    if script == "*" and not info:  # OPTIONS *
        return "", ""
    if info == "*" and not script:
        return "", ""
    if script and script[0] != "/":
        script = "/" + script
    if script[:2] == "//":  # a link to another site, when an application puts it before its paths
        return "", script + info
    while script and script[-1] == "/":
        script = script[:-1]
        if info[:1] != "/":
            info = "/" + info
    if info and info[0] != "/":
        info = "/" + info
    return script, info


def _auto(params: Params) -> tuple[str, str]:
    software: str = params.get("SERVER_SOFTWARE", "")
    if software.startswith("Apache"):
        return _apache(params)
    if software.startswith("lighttpd"):
        return _lighttpd(params)
    if software.startswith("OpenBSD httpd"):
        return _openbsd(params)
    return _nginx(params)


def _cgi(params: Params) -> tuple[str, str]:
    """Leave both as they came; without either, the whole path is PATH_INFO."""
    if not params.get("SCRIPT_NAME") and "PATH_INFO" not in params:
        return "", _server_path(params)
    return params.get("SCRIPT_NAME", ""), params.get("PATH_INFO", "")


def _uri(params: Params) -> tuple[str, str]:
    return "", _requested(params) or _server_path(params)


def _root(params: Params) -> tuple[str, str]:
    script, info = _auto(params)
    return "", script + info


def _nginx(params: Params) -> tuple[str, str]:
    """SCRIPT_NAME is the whole path unless PATH_INFO came too (nginx, HAProxy).

    A PATH_INFO that came was configured, or is the default of Caddy and H2O: it holds.
    """
    script: str = params.get("SCRIPT_NAME", "")
    info: str | None = params.get("PATH_INFO")
    if info is not None:
        return _reconcile(params, script, info)
    path = _server_path(params)
    if not script:
        return _reconcile(params, "", path)
    clean = _clean(path)
    if clean[-1:] == "/" and script.startswith(clean) and "/" not in script[len(clean) :]:
        return _reconcile(params, "", path)  # `fastcgi_index`, HAProxy's `index`: appended
    if clean != script and clean.startswith(script if script[-1] == "/" else script + "/"):
        # `fastcgi_param SCRIPT_NAME /app;` says where the application is mounted.
        return _reconcile(params, script, clean[len(script) :])
    return _reconcile(params, "", script)


def _apache(params: Params) -> tuple[str, str]:
    """mod_proxy_fcgi, by the URL that it puts in SCRIPT_FILENAME, else mod_fcgid.

    ProxyPass and SetHandler give "proxy:fcgi://host:port/path". For ProxyPass that path is what
    follows the mount. For SetHandler it is a file, and SCRIPT_NAME whatever exists of it on disk,
    which says nothing about an application: that one is at the root then.
    """
    filename: str = params.get("SCRIPT_FILENAME", "")
    if not filename.startswith("proxy:"):
        return _fcgid(params)
    script: str = params.get("SCRIPT_NAME", "")
    info: str | None = params.get("PATH_INFO")
    _, _, rest = filename.partition("://")
    query: str = params.get("QUERY_STRING", "")
    if query and rest.endswith("?" + query):
        rest = rest[: -len(query) - 1]
    _, _, backend = rest.partition("/")
    backend = "/" + unquote(backend.lstrip("/"), "latin-1")
    root: str = params.get("DOCUMENT_ROOT", "").rstrip("/")
    if root and (backend + "/").startswith(root + "/"):
        if _is_script(script):
            return _reconcile(params, script, info or "")
        return "", script + (info or "")
    if info is not None:
        return _reconcile(params, script, info)
    if script.endswith(backend):
        return _reconcile(params, script[: -len(backend)], backend)
    if backend == "/":
        return script, ""
    return _reconcile(params, "", script)


def _fcgid(params: Params) -> tuple[str, str]:
    """SCRIPT_NAME is the script, unless rewriting (`RewriteRule ^(.*)$ /x.fcgi/$1`) hides it."""
    script: str = params.get("SCRIPT_NAME", "")
    info: str = params.get("PATH_INFO", "")
    if info:
        return _reconcile(params, script, info)
    if not (_is_script(params.get("SCRIPT_FILENAME", "")) or _is_script(script)):
        return _nginx(params)
    path = _clean(_requested(params))
    folder = script[: script.rfind("/")]
    if path and path != script and not path.startswith(script + "/"):
        if path == folder or path.startswith(folder + "/"):
            return folder, path[len(folder) :]
        return "", path
    return script, ""


def _lighttpd(params: Params) -> tuple[str, str]:
    """SCRIPT_NAME is the prefix of `fastcgi.server`; PATH_INFO what follows, if anything does.

    A prefix "/" without `fix-root-scriptname` is split at the next slash, and looks just like
    another prefix: such a configuration needs the policy `root`.
    """
    script: str = params.get("SCRIPT_NAME", "")
    info: str = params.get("PATH_INFO", "")
    if not script and not info:
        info = _server_path(params)
    return _reconcile(params, script, info)


def _openbsd(params: Params) -> tuple[str, str]:
    """SCRIPT_NAME is the path, PATH_INFO empty, or what follows a file that happens to exist."""
    whole = params.get("SCRIPT_NAME", "") + params.get("PATH_INFO", "")
    return _reconcile(params, "", whole or _server_path(params))


def _is_script(filename: str) -> bool:
    return filename.lower().endswith(SCRIPTS)


RULES: Final[dict[str, Callable[[Params], tuple[str, str]]]] = {
    "auto": _auto,
    "cgi": _cgi,
    "root": _root,
    "uri": _uri,
    "nginx": _nginx,
    "apache": _apache,
    "fcgid": _fcgid,
    "lighttpd": _lighttpd,
    "caddy": _nginx,
    "haproxy": _nginx,
    "h2o": _nginx,
    "openbsd": _openbsd,
}
PATH_POLICIES: Final = tuple(RULES)


def _reconcile(params: Params, script: str, info: str) -> tuple[str, str]:
    """Hold a split against REQUEST_URI, and mend what can be mended."""
    whole = script + info
    raw = _raw_path(params)
    full = unquote(raw, "latin-1") if "%" in raw else raw
    if whole == full or not full:
        return script, info
    if whole in (raw, params.get("REQUEST_URI")):
        # Not decoded: `fastcgi_param PATH_INFO $request_uri`
        script = unquote(script, "latin-1")
        return (script, full[len(script) :]) if full.startswith(script) else ("", full)
    clean = _clean(full)
    if whole == clean:
        return script, info
    if not info and clean == whole + "/":
        return script, "/"  # Caddy's php_fastcgi loses it; an application would redirect for ever
    if info[:1] == "/":
        # PATH_INFO is right, and before it stands the mount: a script that rewriting hides, or a
        # prefix that the server took away.
        if clean.endswith(info):
            return clean[: -len(info)], info
        if "%" in info:  # proxy-fcgi-pathinfo, which does not decode it
            decoded = unquote(info, "latin-1")
            if clean.endswith(decoded):
                return clean[: -len(decoded)], decoded
    return script, info  # rewritten by the server: its own path counts


def _raw_path(params: Params) -> str:
    """Give the path of REQUEST_URI as it came; "" without one."""
    uri: str = params.get("REQUEST_URI", "")
    if uri and uri[0] != "/":  # absolute-form (RFC 9112, section 3.2.2)
        scheme, found, rest = uri.partition("://")
        if found and scheme.isalpha():
            _, slash, path = rest.partition("/")
            uri = slash + path or "/"
    return uri.partition("?")[0]


def _requested(params: Params) -> str:
    """Give the path of REQUEST_URI, decoded once; "" without one."""
    return unquote(_raw_path(params), "latin-1")


def _server_path(params: Params) -> str:
    """Give the path as the server sees it: DOCUMENT_URI where that comes, as with nginx."""
    return params.get("DOCUMENT_URI") or _requested(params)


def _clean(path: str) -> str:
    """Give a path without empty segments and dot segments (RFC 3986, section 5.2.4)."""
    if "//" not in path and "/." not in path:
        return path
    kept: list[str] = []
    parts = path.split("/")
    for part in parts:
        if part == "..":
            if kept:
                kept.pop()
        elif part and part != ".":
            kept.append(part)
    clean = "/" + "/".join(kept)
    return clean + "/" if kept and parts[-1] in ("", ".", "..") else clean
