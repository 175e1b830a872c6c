"""The repair of CGI variables: what each web server sends, and the environ that it becomes."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fulgate.cgi import PATH_POLICIES, REPEATED_POLICIES, repair
from fulgate.exchange import Exchange, Limits
from fulgate.protocols.fastcgi import FastCGI, record
from fulgate.protocols.fastcgi_client import FastCGIClient

NGINX = "nginx/1.22.1"
APACHE = "Apache/2.4.62 (Debian)"
LIGHTTPD = "lighttpd/1.4.69"
CADDY = "Caddy/v2.6.2"
HAPROXY = "HAProxy 2.6.12"
H2O = "h2o/2.2.5"
OPENBSD = "OpenBSD httpd"

DEFAULTS = {
    "REQUEST_METHOD": "GET",
    "QUERY_STRING": "",
    "SERVER_NAME": "app.example",
    "SERVER_PORT": "80",
    "SERVER_PROTOCOL": "HTTP/1.1",
}


def exchange(*pairs: tuple[str, str], **params: str) -> Exchange:
    """Give the exchange that the protocol makes of these parameters, in their order."""
    sent = [(name, value) for name, value in DEFAULTS.items() if name not in params]
    sent += [*params.items(), *pairs]
    protocol = FastCGI(Limits(), {})
    _, out = FastCGIClient().begin(sent)
    (moved,) = protocol.feed(b"".join(out) + record(5, 1))
    return moved


def path_of(policy: str = "auto", script_name: str = "", **params: str) -> tuple[str, str]:
    made = exchange(**params)
    repair(made, policy, script_name)
    return made.params["SCRIPT_NAME"], made.params["PATH_INFO"]


def nginx(uri: str, path: str = "", **more: str) -> dict[str, str]:
    """What nginx's stock fastcgi_params send; `path` is $uri."""
    path = path or unquote(uri.partition("?")[0], "latin-1")
    return {
        "SERVER_SOFTWARE": NGINX,
        "REQUEST_URI": uri,
        "QUERY_STRING": uri.partition("?")[2],
        "SCRIPT_NAME": path,
        "DOCUMENT_URI": path,
        "DOCUMENT_ROOT": "/usr/share/nginx/html",
        **more,
    }


def apache(uri: str, script: str, info: str = "", **more: str) -> dict[str, str]:
    sent = {
        "SERVER_SOFTWARE": APACHE,
        "REQUEST_URI": uri,
        "QUERY_STRING": uri.partition("?")[2],
        "SCRIPT_NAME": script,
        "DOCUMENT_ROOT": "/var/www",
        **more,
    }
    return {**sent, "PATH_INFO": info} if info else sent


def other(software: str, uri: str, script: str, info: str | None = None) -> dict[str, str]:
    sent = {"SERVER_SOFTWARE": software, "REQUEST_URI": uri, "SCRIPT_NAME": script}
    return sent if info is None else {**sent, "PATH_INFO": info}


URL = "proxy:fcgi://127.0.0.1:9000"
CAFE = "/caf\xc3\xa9"  # the bytes of "/café" in UTF-8, as latin-1 (PEP 3333)

SERVERS = {
    # nginx: SCRIPT_NAME is the whole path, decoded; PATH_INFO only where it was configured
    "nginx": (nginx("/hello"), ("", "/hello")),
    "nginx root": (nginx("/"), ("", "/")),
    "nginx query": (nginx("/hello?a=/b?c"), ("", "/hello")),
    "nginx utf-8": (nginx("/caf%C3%A9?x"), ("", CAFE)),
    "nginx percent": (nginx("/100%25"), ("", "/100%")),
    "nginx escaped escape": (nginx("/a%2525b"), ("", "/a%25b")),
    "nginx question mark": (nginx("/a%3Fb?c"), ("", "/a?b")),
    "nginx query like path": (nginx("/a?/a"), ("", "/a")),
    "nginx merges slashes": (nginx("//evil.example//x", "/evil.example/x"),
                             ("", "/evil.example/x")),
    "nginx resolves dots": (nginx("/admin/../x", "/x"), ("", "/x")),
    "nginx dots and slashes": (nginx("//evil.example/..//x", "/x"), ("", "/x")),
    "nginx encoded slashes": (nginx("/%2Fevil.example/x", "/evil.example/x"),
                              ("", "/evil.example/x")),
    "nginx encoded dots": (nginx("/a/%2E%2E/x", "/x"), ("", "/x")),
    "nginx dots cannot make a mount": (nginx("//evil.example/%2e%2e//a/x", "/a/x"), ("", "/a/x")),
    "nginx dots before a mount": (nginx("//evil.example/..//app/x", "/x"), ("/app", "/x")),
    "nginx encoded dots before a mount": (nginx("/%2fevil.example/%2e%2E/%2Fapp/x", "/x"),
                                          ("/app", "/x")),
    "nginx slashes behind a mount": (nginx("/app/b//c", "/b/c"), ("/app", "/b/c")),
    "nginx without merge_slashes": (nginx("//x", "//x"), ("", "//x")),
    "nginx with all of $request_uri": (nginx("/caf%C3%A9", "/caf%C3%A9"), ("", CAFE)),
    "nginx index": (nginx("/dir/", "/dir/", SCRIPT_NAME="/dir/index.py"), ("", "/dir/")),
    "nginx rewrite": (nginx("/old", "/new/thing"), ("", "/new/thing")),
    "nginx rewrite takes prefix": (nginx("/app/x", "/x"), ("/app", "/x")),
    "nginx param SCRIPT_NAME": (nginx("/app/x%20y", "/app/x y", SCRIPT_NAME="/app"),
                                ("/app", "/x y")),
    "nginx split": (nginx("/app/x", SCRIPT_NAME="/app", PATH_INFO="/x"), ("/app", "/x")),
    "nginx split at the end": (nginx("/app", SCRIPT_NAME="/app", PATH_INFO=""), ("/app", "")),
    "nginx split fails": (nginx("/app/", SCRIPT_NAME="/app/", PATH_INFO=""), ("/app", "/")),
    "nginx param PATH_INFO alone": (nginx("/x/y", PATH_INFO="/x/y"), ("", "/x/y")),
    "nginx PATH_INFO is $uri": (nginx("/x%20y", SCRIPT_NAME="", PATH_INFO="/x y"), ("", "/x y")),
    "nginx PATH_INFO is $request_uri": (
        nginx("/caf%C3%A9?a=b", SCRIPT_NAME="", PATH_INFO="/caf%C3%A9?a=b"), ("", CAFE)),
    "nginx stock scgi_params": (
        {"REQUEST_URI": "/x%20y?z", "DOCUMENT_URI": "/x y"}, ("", "/x y")),
    # Apache mod_proxy_fcgi
    "apache ProxyPass /": (apache("/x/y?z", "/x/y", SCRIPT_FILENAME=f"{URL}/x/y"), ("", "/x/y")),
    "apache ProxyPass / root": (apache("/", "/", SCRIPT_FILENAME=f"{URL}/"), ("", "/")),
    "apache ProxyPass /app/": (
        apache("/app/x", "/app/x", SCRIPT_FILENAME=f"{URL}/x"), ("/app", "/x")),
    "apache ProxyPass /app": (
        apache("/app/x", "/app/x", SCRIPT_FILENAME=f"{URL}//x"), ("/app", "/x")),
    "apache ProxyPass /app at the end": (
        apache("/app", "/app", SCRIPT_FILENAME=f"{URL}/"), ("/app", "")),
    "apache SCRIPT_FILENAME with query": (
        apache("/app/x?a=/b", "/app/x", SCRIPT_FILENAME=f"{URL}/x?a=/b"), ("/app", "/x")),
    "apache escapes": (
        apache("/app/a%20b%25", "/app/a b%", SCRIPT_FILENAME=f"{URL}/a%20b%25"),
        ("/app", "/a b%")),
    "apache SetHandler, nothing on disk": (
        apache("/x/y", "/x", "/y", SCRIPT_FILENAME=f"{URL}/var/www/x"), ("", "/x/y")),
    "apache SetHandler, a folder on disk": (
        apache("/x/y/z", "/x/y", "/z", SCRIPT_FILENAME=f"{URL}//var/www/x/y"), ("", "/x/y/z")),
    "apache SetHandler root": (
        apache("/", "/", SCRIPT_FILENAME=f"{URL}/var/www/"), ("", "/")),
    "apache script on disk": (
        apache("/x.py/y", "/x.py", "/y", SCRIPT_FILENAME=f"{URL}/var/www/x.py"), ("/x.py", "/y")),
    "apache script on disk, alone": (
        apache("/x.py", "/x.py", SCRIPT_FILENAME=f"{URL}/var/www/x.py"), ("/x.py", "")),
    "apache proxy-fcgi-pathinfo": (
        apache("/app/x", "/app", "/x", SCRIPT_FILENAME=f"{URL}/x"), ("/app", "/x")),
    "apache proxy-fcgi-pathinfo /": (
        apache("/x", "", "/x", SCRIPT_FILENAME=f"{URL}/x"), ("", "/x")),
    "apache proxy-fcgi-pathinfo, encoded": (
        apache("/app/a%20b", "/app/a b", "/a%20b", SCRIPT_FILENAME=f"{URL}/a%20b"),
        ("/app", "/a b")),
    "apache proxy-fcgi-pathinfo, half encoded": (
        apache("/app/a%20b/c", "/app/a b", "/a%20b/c", SCRIPT_FILENAME=f"{URL}/a%20b/c"),
        ("/app", "/a b/c")),
    "apache proxy-fcgi-pathinfo, escaped escape": (
        apache("/app/a%2520b", "/app/a%20b", "/a%2520b", SCRIPT_FILENAME=f"{URL}/a%2520b"),
        ("/app", "/a%20b")),
    "apache generic backend": (apache("/x/y", "/x/y", SCRIPT_FILENAME="/x/y"), ("", "/x/y")),
    "apache OPTIONS *": (apache("*", "*", SCRIPT_FILENAME=f"{URL}/*"), ("", "")),
    # Apache mod_fcgid
    "fcgid": (apache("/x.fcgi/y", "/x.fcgi", "/y", SCRIPT_FILENAME="/var/www/x.fcgi"),
              ("/x.fcgi", "/y")),
    "fcgid, script alone": (apache("/x.fcgi", "/x.fcgi", SCRIPT_FILENAME="/var/www/x.fcgi"),
                            ("/x.fcgi", "")),
    "fcgid, alias": (apache("/app", "/app", SCRIPT_FILENAME="/srv/x.fcgi"), ("/app", "")),
    "fcgid, rewritten": (
        apache("/y%20z", "/x.fcgi", "/y z", SCRIPT_FILENAME="/var/www/x.fcgi"), ("", "/y z")),
    "fcgid, rewritten in a folder": (
        apache("/app/y", "/app/x.fcgi", "/y", SCRIPT_FILENAME="/var/www/app/x.fcgi"),
        ("/app", "/y")),
    "fcgid, rewritten root": (
        apache("/app/", "/app/x.fcgi", SCRIPT_FILENAME="/var/www/app/x.fcgi"), ("/app", "/")),
    "fcgid, rewritten to another folder": (
        apache("/y", "/cgi/x.fcgi", SCRIPT_FILENAME="/srv/cgi/x.fcgi"), ("", "/y")),
    # lighttpd
    "lighttpd prefix": (other(LIGHTTPD, "/app/x?y", "/app", "/x"), ("/app", "/x")),
    "lighttpd prefix alone": (other(LIGHTTPD, "/app", "/app"), ("/app", "")),
    "lighttpd prefix with slash": (other(LIGHTTPD, "/app/", "/app/"), ("/app", "/")),
    "lighttpd fix-root-scriptname": (other(LIGHTTPD, "/caf%C3%A9/x", "", CAFE + "/x"),
                                     ("", CAFE + "/x")),
    "lighttpd prefix /, root": (other(LIGHTTPD, "/", "/"), ("", "/")),
    # Caddy
    "caddy": (other(CADDY, "/x//y%3F", "", "/x//y?"), ("", "/x//y?")),
    "caddy slashes first": (other(CADDY, "//evil.example/x", "", "//evil.example/x"),
                            ("", "//evil.example/x")),
    "caddy handle_path": (other(CADDY, "/app/x", "", "/x"), ("/app", "/x")),
    "caddy split": (other(CADDY, "/index.py/x", "/index.py", "/x"), ("/index.py", "/x")),
    "caddy split, slash at the end": (other(CADDY, "/index.py/", "/index.py", ""),
                                      ("/index.py", "/")),
    # HAProxy
    "haproxy": (other(HAPROXY, "/x%20y?z", "/x y"), ("", "/x y")),
    "haproxy does not clean": (other(HAPROXY, "//x/../y", "//x/../y"), ("", "//x/../y")),
    "haproxy index": (other(HAPROXY, "/dir/", "/dir/index.py"), ("", "/dir/")),
    "haproxy path-info": (other(HAPROXY, "/app.py/x", "/app.py", "/x"), ("/app.py", "/x")),
    # H2O, OpenBSD, and what nobody knows
    "h2o": (other(H2O, "/x/%2e%2e/y", "", "/y"), ("", "/y")),
    "openbsd": (other(OPENBSD, "/x", "/x", ""), ("", "/x")),
    "openbsd, a file on disk": (other(OPENBSD, "/x/y", "/x", "/y"), ("", "/x/y")),
    "unknown, both": (other("", "/app/x", "/app", "/x"), ("/app", "/x")),
    "unknown, slashes first": (other("", "//evil.example/x", "//evil.example", "/x"),
                               ("", "//evil.example/x")),
    "unknown, nothing": ({}, ("", "")),
    "unknown, only REQUEST_URI": ({"REQUEST_URI": "/caf%C3%A9?x"}, ("", CAFE)),
    "absolute form": ({"REQUEST_URI": "http://app.example/x%20y?z"}, ("", "/x y")),
    "absolute form without path": ({"REQUEST_URI": "http://app.example"}, ("", "/")),
    "no slash first": (other("", "x", "x"), ("", "/x")),
}  # fmt: skip


@pytest.mark.parametrize("name", SERVERS)
def test_path_of_each_server(name: str) -> None:
    params, expected = SERVERS[name]
    assert path_of(**params) == expected


@pytest.mark.parametrize("name", SERVERS)
def test_path_holds_what_links_and_validators_need(name: str) -> None:
    script, info = path_of(**SERVERS[name][0])
    assert not script.endswith("/")
    assert not script.startswith("//")
    assert script[:1] in ("", "/")
    assert info[:1] in ("", "/")


def test_repair_twice_changes_nothing_that_matters() -> None:
    for params, expected in SERVERS.values():
        made = exchange(**params)
        repair(made)
        repair(made, "cgi")
        assert (made.params["SCRIPT_NAME"], made.params["PATH_INFO"]) == expected


segments = st.text(st.characters(max_codepoint=0x7FF, exclude_characters="/\0"), max_size=6).filter(
    lambda text: text not in ("", ".", "..")
)
paths = st.lists(segments, max_size=4).map(lambda parts: "/" + "/".join(parts))
queries = st.sampled_from(["", "?", "?a=b", "?/a?b%2F"])


def decoded(path: str) -> str:
    return path.encode().decode("latin-1")


@given(paths, queries)
@example("/%", "")
@example("/%41", "?x")
@example("/?", "?x")
def test_identity_where_the_whole_path_is_script_name(path: str, query: str) -> None:
    uri = quote(path) + query
    assert path_of(**nginx(uri, decoded(path))) == ("", decoded(path))
    assert path_of(**other(HAPROXY, uri, decoded(path))) == ("", decoded(path))


@given(paths, queries)
@example("/a%20b", "")
def test_identity_behind_a_mount(path: str, query: str) -> None:
    uri = "/app" + quote(path) + query
    whole = "/app" + decoded(path)
    expected = "/app", decoded(path)
    filename = f"{URL}{quote(path)}"
    for sent in (
        nginx(uri, whole, SCRIPT_NAME="/app", PATH_INFO=decoded(path)),
        apache(uri, whole, SCRIPT_FILENAME=filename),
        apache(uri, "/app", decoded(path), SCRIPT_FILENAME=filename),
        other(LIGHTTPD, uri, "/app", decoded(path)),
        other(CADDY, uri, "", decoded(path)),
    ):
        sent["QUERY_STRING"] = query[1:]
        assert path_of(**sent) == expected


@given(st.text(st.sampled_from("/.%2Fe5?abx"), max_size=24), st.sampled_from(PATH_POLICIES))
def test_no_uri_gives_a_mount_that_leads_elsewhere(text: str, policy: str) -> None:
    uri = "/" + text
    raw = unquote(uri.partition("?")[0], "latin-1")
    kept: list[str] = []
    for part in raw.split("/"):
        if part == "..":
            del kept[-1:]
        elif part not in ("", "."):
            kept.append(part)
    clean = "/" + "/".join(kept)
    for sent in (nginx(uri, clean), other(CADDY, uri, "", clean), other(CADDY, uri, "", raw)):
        script, info = path_of(policy, **sent)
        if policy != "cgi":
            assert not script.startswith("//")
            assert "/../" not in script + "/"
        if policy not in ("uri", "cgi"):
            assert raw.startswith(script) or clean.startswith(script)
        assert info[:1] in ("", "/")


# Policies that are named


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("auto", ("/x", "/y")),
        ("lighttpd", ("/x", "/y")),
        ("root", ("", "/x/y")),
        ("cgi", ("/x", "/y")),
        ("uri", ("", "/x/y")),
        ("openbsd", ("", "/x/y")),
    ],
)
def test_lighttpd_prefix_root_needs_a_named_policy(policy: str, expected: tuple[str, str]) -> None:
    assert path_of(policy, **other(LIGHTTPD, "/x/y", "/x", "/y")) == expected


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("nginx", ("", "/x")),
        ("haproxy", ("", "/x")),
        ("caddy", ("", "/x")),
        ("h2o", ("", "/x")),
        ("openbsd", ("", "/x")),
        ("root", ("", "/x")),
        ("lighttpd", ("/x", "")),
        ("cgi", ("/x", "")),
        ("apache", ("", "/x")),
        ("fcgid", ("", "/x")),
    ],
)
def test_named_policy_needs_no_server_software(policy: str, expected: tuple[str, str]) -> None:
    assert path_of(policy, **other("", "/x", "/x")) == expected


def test_policy_cgi_leaves_all_as_it_came() -> None:
    assert path_of("cgi", **other(NGINX, "/a//b", "/odd/", "info")) == ("/odd/", "info")
    assert path_of("cgi", REQUEST_URI="/a%20b?c") == ("", "/a b")


def test_policy_uri_keeps_what_the_client_sent() -> None:
    assert path_of("uri", **nginx("/a//b/../%63", "/a/c")) == ("", "/a//b/../c")
    assert path_of("uri", SCRIPT_NAME="/x", DOCUMENT_URI="/x") == ("", "/x")


def test_unknown_policies_are_misuse() -> None:
    with pytest.raises(ValueError, match="no policy for paths: 'iis'"):
        repair(exchange(), "iis")
    with pytest.raises(ValueError, match="no policy for repeated parameters: 'never'"):
        repair(exchange(("HTTP_A", "1"), ("HTTP_A", "2")), repeated_params="never")


def test_policies_for_the_configuration() -> None:
    assert PATH_POLICIES[0] == "auto"
    assert {"cgi", "root", "uri", "nginx", "apache", "fcgid", "lighttpd", "caddy", "haproxy"} <= {
        *PATH_POLICIES
    }
    assert REPEATED_POLICIES == ("refuse", "join", "first", "last")


# A forced SCRIPT_NAME


@pytest.mark.parametrize("script_name", ["/app", "/app/", "app"])
@pytest.mark.parametrize(
    ("params", "info"),
    [
        (nginx("/app/x"), "/x"),
        (nginx("/app/"), "/"),
        (nginx("/app"), ""),
        (nginx("/app//x%20y", "/app/x y"), "/x y"),
        (nginx("/app/app/x"), "/app/x"),
        (nginx("/app/x", "/x"), "/x"),  # a rewrite took the prefix away
        (nginx("/app/x", SCRIPT_NAME="/app", PATH_INFO="/x"), "/x"),
        (other(LIGHTTPD, "/app/x/y", "/app/x", "/y"), "/x/y"),
        # outside of the prefix: the whole path
        (nginx("/x"), "/x"),
        (nginx("/apple"), "/apple"),
        (nginx("/"), "/"),
    ],
)
def test_forced_script_name(script_name: str, params: dict[str, str], info: str) -> None:
    assert path_of("auto", script_name, **params) == ("/app", info)


def test_forced_script_name_of_the_root_is_empty() -> None:
    assert path_of("auto", "/", **other(LIGHTTPD, "/x/y", "/x", "/y")) == ("", "/x/y")


# What else environ needs


def test_headers_that_are_dropped() -> None:
    made = exchange(HTTP_PROXY="http://evil.example", HTTP_CONTENT_LENGTH="7", HTTP_CONTENT_TYPE="")
    repair(made)
    assert not [name for name in made.params if name.startswith("HTTP_")]


def test_repeated_headers_that_are_dropped_refuse_nothing() -> None:
    made = exchange(("HTTP_PROXY", "a"), ("HTTP_PROXY", "b"), ("HTTP_CONTENT_LENGTH", "1"),
                    ("HTTP_CONTENT_LENGTH", "2"))  # fmt: skip
    repair(made)
    assert made.refused is None
    assert not [name for name in made.params if name.startswith("HTTP_")]


@pytest.mark.parametrize(
    ("sent", "length", "seen"),
    [("", -1, None), ("-1", -1, None), ("12a", -1, None), ("0", 0, "0"), ("42", 42, "42")],
)
def test_content_length(sent: str, length: int, seen: str | None) -> None:
    made = exchange(CONTENT_LENGTH=sent)
    repair(made)
    assert made.content_length == length
    assert made.params.get("CONTENT_LENGTH") == seen


def test_content_length_absent() -> None:
    made = exchange()
    repair(made)
    assert "CONTENT_LENGTH" not in made.params
    assert made.content_length == -1


def test_empty_content_type_is_absent() -> None:
    made = exchange(CONTENT_TYPE="")
    repair(made)
    assert "CONTENT_TYPE" not in made.params
    made = exchange(CONTENT_TYPE="text/plain")
    repair(made)
    assert made.params["CONTENT_TYPE"] == "text/plain"


@pytest.mark.parametrize(
    ("params", "scheme", "port"),
    [
        ({}, "http", "80"),
        ({"HTTPS": "on"}, "https", "443"),
        ({"HTTPS": "On", "REQUEST_SCHEME": "http"}, "https", "443"),
        ({"HTTPS": "1"}, "https", "443"),
        ({"HTTPS": "off"}, "http", "80"),
        ({"HTTPS": ""}, "http", "80"),
        ({"HTTPS": "", "REQUEST_SCHEME": "https"}, "https", "443"),
        ({"REQUEST_SCHEME": "https"}, "https", "443"),
        ({"REQUEST_SCHEME": "http"}, "http", "80"),
        ({"REQUEST_SCHEME": "gopher"}, "http", "80"),
        ({"HTTP_X_FORWARDED_PROTO": "https"}, "http", "80"),
    ],
)
def test_url_scheme(params: dict[str, str], scheme: str, port: str) -> None:
    made = exchange(SERVER_PORT="", **params)
    repair(made)
    assert made.params["wsgi.url_scheme"] == scheme
    assert made.params["SERVER_PORT"] == port


def test_what_is_never_missing() -> None:
    protocol = FastCGI(Limits(), {})
    _, out = FastCGIClient().begin([("REQUEST_URI", "/x?y=z"), ("HTTP_HOST", "evil.example")])
    (made,) = protocol.feed(b"".join(out))
    repair(made)
    assert made.params == {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/x",
        "QUERY_STRING": "y=z",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.0",
        "REQUEST_URI": "/x?y=z",
        "HTTP_HOST": "evil.example",
        "wsgi.url_scheme": "http",
    }


def test_empty_server_name_becomes_the_address() -> None:
    made = exchange(SERVER_NAME="", SERVER_ADDR="192.0.2.1")
    repair(made)
    assert made.params["SERVER_NAME"] == "192.0.2.1"


# Repeated parameters


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("HTTP_ACCEPT", ["text/html", "text/plain;q=0.5"], "text/html, text/plain;q=0.5"),
        ("HTTP_X_FORWARDED_FOR", ["1.1.1.1", "2.2.2.2", "1.1.1.1"], "1.1.1.1, 2.2.2.2, 1.1.1.1"),
        ("HTTP_COOKIE", ["a=1; b=2", "", "c=3"], "a=1; b=2; c=3"),
        ("HTTP_IF_NONE_MATCH", ['"a"', "", '"b"'], '"a", "b"'),
        ("HTTP_HOST", ["a.example", "a.example"], "a.example"),
        ("HTTP_X_UNKNOWN", ["same", "same", "same"], "same"),
        ("SCRIPT_FILENAME", ["/first", "/last"], "/last"),
        ("CONTENT_LENGTH", ["1", "2"], "2"),
        ("HTTPS", ["on", ""], ""),
    ],
)
@pytest.mark.parametrize("policy", REPEATED_POLICIES)
def test_repeated_where_no_policy_is_needed(
    policy: str, name: str, values: list[str], expected: str
) -> None:
    made = exchange(*[(name, value) for value in values])
    repair(made, repeated_params=policy)
    assert made.refused is None
    assert made.params[name] == expected


@pytest.mark.parametrize(
    "name",
    ["HTTP_HOST", "HTTP_AUTHORIZATION", "HTTP_CONTENT_ENCODING", "HTTP_X_USER", "HTTP_REFERER"],
)
def test_repeated_singleton(name: str) -> None:
    def values(policy: str) -> Exchange:
        made = exchange((name, "one"), ("HTTP_ACCEPT", "x"), (name, "two"))
        repair(made, repeated_params=policy)
        return made

    refused = values("refuse").refused
    assert refused is not None
    assert refused.status == "400 Bad Request"
    assert name[5:].replace("_", "-").title() in str(refused)
    for policy, expected in ("join", "one, two"), ("first", "one"), ("last", "two"):
        made = values(policy)
        assert made.refused is None
        assert made.params[name] == expected
        assert made.params["HTTP_ACCEPT"] == "x"


def test_last_server_variable_wins_as_in_an_nginx_location() -> None:
    sent = [*nginx("/app/x").items(), ("SCRIPT_NAME", "/app"), ("PATH_INFO", "/x")]
    made = exchange(*sent)
    repair(made)
    assert (made.params["SCRIPT_NAME"], made.params["PATH_INFO"]) == ("/app", "/x")


def test_a_refusal_by_the_protocol_is_not_replaced() -> None:
    protocol = FastCGI(Limits(body=10), {})
    _, out = FastCGIClient().begin(
        [("CONTENT_LENGTH", "11"), ("HTTP_HOST", "a"), ("HTTP_HOST", "b")]
    )
    (made,) = protocol.feed(b"".join(out))
    repair(made)
    assert made.refused is not None
    assert made.refused.status == "413 Content Too Large"


def test_cost_of_long_paths_is_linear() -> None:
    """Memory stands for time here: neither may grow with the square of a hostile path."""
    peaks = []
    for size in 2_000, 20_000, 200_000:
        uri = "/" + "../%2F%41//" * (size // 11)
        sent = exchange(**nginx(uri[:60_000], "/x"))
        sent.params["REQUEST_URI"] = uri
        tracemalloc.start()
        repair(sent)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    for small, large in pairwise(peaks):
        assert large < 40 * small
