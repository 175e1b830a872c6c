"""The CGI variables of each web server, and the SCRIPT_NAME and PATH_INFO that they mean."""

from __future__ import annotations

from urllib.parse import unquote

NGINX = "nginx/1.22.1"
APACHE = "Apache/2.4.62 (Debian)"
LIGHTTPD = "lighttpd/1.4.69"
CADDY = "Caddy/v2.6.2"
HAPROXY = "HAProxy 2.6.12"
H2O = "h2o/2.2.5"
OPENBSD = "OpenBSD httpd"


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
