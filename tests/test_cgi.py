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
from fulgate.protocols.fastcgi import (
    FastCGI,
)
from fulgate.protocols.fastcgi_client import FastCGIClient
from fulgate.protocols.fastcgi_records import (
    record,
)
from tests.cgi_params import (
    CADDY,
    HAPROXY,
    LIGHTTPD,
    NGINX,
    SERVERS,
    URL,
    apache,
    nginx,
    other,
)

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


def test_a_host_that_nginx_is_told_twice_is_its_configuration() -> None:
    hosts = ("HTTP_HOST", "app.example"), ("HTTP_HOST", "app.example:8443")
    made = exchange(*hosts, SERVER_SOFTWARE="nginx/1.22.1")
    repair(made)
    assert made.refused is None
    assert made.params["HTTP_HOST"] == "app.example:8443"
    made = exchange(*hosts, SERVER_SOFTWARE="Caddy/2.6.2")
    repair(made)
    assert made.refused is not None
