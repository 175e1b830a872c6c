"""Capture the requests of tests/corpus from the real web servers.

    python -m tests.servers.capture tests/corpus [SERVER ...]

Each case is NAME.bin, the bytes that the server sent over FastCGI, or over SCGI or AJP in a folder
whose name ends with -scgi or -ajp; and NAME.json: the HTTP request that was made, the server's
version and configuration, and what an application is to see. That follows from the HTTP request and
from where the application is mounted, by RFC 3875 and PEP 3333; no code of Fulgate's has a part in
it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from tests.servers.apache import Apache, jk_lines
from tests.servers.base import PATH, RealServer, connect
from tests.servers.caddy import Caddy
from tests.servers.h2o import H2O
from tests.servers.haproxy import HAProxy
from tests.servers.lighttpd import Lighttpd
from tests.servers.nginx import Nginx, location, scgi_location
from tests.servers.recorder import AjpRecorder, Recorder, ScgiRecorder

# The same folder and ports each time, so that captures made on different machines agree.
FOLDER = Path("/tmp/fulgate-corpus")
WEB_PORT = 18080
FASTCGI_PORT = 19000
UNIX = f"unix:{FOLDER}/app.sock"

Header = tuple[str, str]


@dataclass(frozen=True)
class Request:
    """An HTTP request, to be sent with `mount` put before the target."""

    target: str
    method: str = "GET"
    headers: tuple[Header, ...] = ()
    body: bytes = b""
    chunked: bool = False

    def wire(self, mount: str) -> bytes:
        lines = [f"{self.method} {mount}{self.target} HTTP/1.1", "Host: app.example"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.chunked:
            lines.append("Transfer-Encoding: chunked")
        elif self.method == "POST":
            lines.append(f"Content-Length: {len(self.body)}")
        lines += ["Connection: close", "", ""]
        head = "\r\n".join(lines).encode("utf-8")
        if not self.chunked:
            return head + self.body
        middle = len(self.body) // 2
        pieces = [self.body[:middle], self.body[middle:], b""]
        return head + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


FORM = ("Content-Type", "application/x-www-form-urlencoded")
BINARY = ("Content-Type", "application/octet-stream")
LARGE = bytes(range(256)) * 280  # more than one record holds

REQUESTS = {
    "root": Request("/"),
    "get": Request("/hello?x=1&y=a%20b", headers=(("Accept", "text/html"), ("X-Thing", "b\xe9"))),
    "head": Request("/hello", "HEAD"),
    "percent": Request("/caf%C3%A9/a%20b%2Bc%25/%E2%82%AC?q=%E2%82%AC"),
    "utf8": Request("/caf\xe9/\u20ac"),
    "encoded-slash": Request("/a%2Fb/c"),
    "post": Request("/form", "POST", (FORM,), b"a=1&b=caf%C3%A9"),
    "post-empty": Request("/form", "POST", (FORM,)),
    "post-large": Request("/upload", "POST", (BINARY,), LARGE),
    "chunked": Request("/upload", "POST", (BINARY,), LARGE[:3000], chunked=True),
    "cookies": Request(
        "/", headers=(("Cookie", "; ".join(f"c{n}={'v' * 90}" for n in range(43))),)
    ),
    "repeated": Request(
        "/",
        headers=(
            ("X-Forwarded-For", "192.0.2.1"),
            ("X-Forwarded-For", "192.0.2.2"),
            ("Accept", "text/html"),
            ("Accept", "text/plain;q=0.5"),
            ("Cookie", "a=1"),
            ("Cookie", "b=2"),
        ),
    ),
    "httpoxy": Request("/", headers=(("Proxy", "http://192.0.2.66:3128"),)),
}
ALL = tuple(name for name in REQUESTS if name != "chunked")
FEW = ("root", "get", "percent", "post")


@dataclass(frozen=True)
class Setup:
    """A configuration of a server, with the application mounted at `mount`.

    `settings` are Fulgate's, for a configuration that does not tell where the mount is.
    """

    name: str
    start: Callable[[Path], RealServer]
    requests: tuple[str, ...]
    mount: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    adds: tuple[str, ...] = ()  # HTTP_ names that the server adds by itself
    note: str = ""
    # Where the server has changed what the client sent: request, variable, what comes of it.
    changes: dict[str, dict[str, str]] = field(default_factory=dict)


def nginx(*locations: str, **options: Any) -> Callable[[Path], RealServer]:
    return lambda folder: Nginx(folder, UNIX, *locations, **options)


def apache(*lines: str) -> Callable[[Path], RealServer]:
    return lambda folder: Apache(folder, *lines)


def jk(folder: Path) -> RealServer:
    lines = jk_lines(folder, "/*", FASTCGI_PORT, ping=False)
    return Apache(folder, *lines, modules=("jk",))


def nginx_scgi(*lines: str, prefix: str = "/") -> Callable[[Path], RealServer]:
    return lambda folder: Nginx(folder, UNIX, scgi_location(prefix, *lines))


def lighttpd(*lines: str, **options: str) -> Callable[[Path], RealServer]:
    return lambda folder: Lighttpd(folder, UNIX, *lines, **options)


def haproxy(*lines: str, server: str = "") -> Callable[[Path], RealServer]:
    return lambda folder: HAProxy(folder, UNIX, *lines, server=server)


def caddy(*lines: str, root: str = "/srv/www") -> Callable[[Path], RealServer]:
    return lambda folder: Caddy(folder, *lines, root=root)


def h2o(*options: str, backend: str = UNIX, prefix: str = "/") -> Callable[[Path], RealServer]:
    return lambda folder: H2O(folder, backend, *options, prefix=prefix)


OWN_PARAMS = """\
fastcgi_param REQUEST_METHOD $request_method;
fastcgi_param QUERY_STRING $query_string;
fastcgi_param CONTENT_TYPE $content_type;
fastcgi_param CONTENT_LENGTH $content_length;
fastcgi_param SERVER_PROTOCOL $server_protocol;
fastcgi_param SERVER_NAME $server_name;
fastcgi_param SERVER_PORT $server_port;
fastcgi_param REMOTE_ADDR $remote_addr;
fastcgi_param SCRIPT_NAME "";
fastcgi_param PATH_INFO $uri;"""

SPLIT = r"fastcgi_split_path_info ^(/app)(/.*)$;"
PATH_INFO = "fastcgi_param PATH_INFO $fastcgi_path_info;"
FCGI = f"{UNIX}|fcgi://localhost"
PATHINFO = "SetEnvIf Request_URI . proxy-fcgi-pathinfo="
FORWARDED = (
    "HTTP_USER_AGENT",
    "HTTP_X_FORWARDED_FOR",
    "HTTP_X_FORWARDED_HOST",
    "HTTP_X_FORWARDED_PROTO",
)
MOUNTED = {"script_name": "/app"}

# Apache and Caddy join all fields alike.
JOINED = {"repeated": {"HTTP_COOKIE": "a=1, b=2"}}

SETUPS: dict[str, list[Setup]] = {
    "nginx": [
        Setup("stock", nginx(), ALL),
        Setup("own", nginx(location(params=OWN_PARAMS)), FEW),
        Setup("keep", nginx(keepalive=True), ("get", "post-large")),
        Setup("prefix", nginx(location("/app")), FEW, "/app", MOUNTED),
        Setup("split", nginx(location("/app", SPLIT, PATH_INFO)), FEW, "/app"),
        Setup("unbuffered", nginx(buffer_requests=False), ("post", "post-large", "chunked")),
    ],
    "apache": [
        Setup("plain", apache(f'ProxyPass "/" "{FCGI}/"'), ALL, changes=JOINED),
        Setup("tcp", apache(f'ProxyPass "/" "fcgi://127.0.0.1:{FASTCGI_PORT}/"'), FEW),
        Setup("prefix", apache(f'ProxyPass "/app" "{FCGI}/app"'), FEW, "/app", MOUNTED),
        Setup(
            "pathinfo",
            apache(PATHINFO + "unescape", f'ProxyPass "/app/" "{FCGI}/"'),
            FEW,
            "/app",
            note="proxy-fcgi-pathinfo=unescape",
        ),
        Setup(
            "pathinfo-raw",
            apache(PATHINFO + "1", f'ProxyPass "/app/" "{FCGI}/"'),
            FEW,
            "/app",
            note="proxy-fcgi-pathinfo=1",
        ),
        Setup(
            "pathinfo-dot",
            apache(PATHINFO + "first-dot", f'ProxyPass "/" "{FCGI}/"'),
            FEW,
            "/app.py",
            note="proxy-fcgi-pathinfo=first-dot",
        ),
        Setup(
            "match-strip",
            apache(f'ProxyPassMatch "^/app(/.*)$" "fcgi://127.0.0.1:{FASTCGI_PORT}$1"'),
            FEW,
            "/app",
        ),
        Setup("mount", apache(f'ProxyPass "/app/" "{FCGI}/"'), FEW, "/app"),
        Setup(
            "match",
            apache(f'ProxyPassMatch "^/app(/.*)?$" "fcgi://127.0.0.1:{FASTCGI_PORT}/app$1"'),
            FEW,
            "/app",
            MOUNTED,
        ),
        Setup(
            "handler",
            apache("<Location /app>", f'SetHandler "proxy:{FCGI}"', "</Location>"),
            FEW,
            "/app",
            MOUNTED,
        ),
        Setup("chunked", apache(f'ProxyPass "/" "{FCGI}/"'), ("chunked",)),
        Setup("reuse", apache(f'ProxyPass "/" "{FCGI}/" enablereuse=on'), ("get", "post")),
    ],
    "lighttpd": [
        Setup(
            "fix-root",
            lighttpd(options='"fix-root-scriptname" => "enable"'),
            ALL,
        ),
        Setup("root", lighttpd(), FEW, settings={"path": "root"}, note="no fix-root-scriptname"),
        Setup("prefix", lighttpd(prefix="/app"), FEW, "/app"),
        Setup(
            "stream",
            lighttpd("server.stream-request-body = 2", options='"fix-root-scriptname" => "enable"'),
            ("post", "post-large", "chunked"),
        ),
    ],
    "haproxy": [
        Setup("plain", haproxy(), ALL),
        Setup(
            "path-info",
            haproxy(r"path-info ^(/app)(/.*)?$"),
            FEW,
            "/app",
        ),
        Setup("mpxs", haproxy("option mpxs-conns", "option max-reqs 8", "option get-values"), FEW),
        Setup("close", haproxy("no option keep-conn"), ("get",)),
    ],
    "caddy": [
        Setup(
            "bare",
            caddy(f"reverse_proxy unix/{FOLDER}/app.sock {{", "    transport fastcgi", "}"),
            ALL,
            adds=FORWARDED,
            # It does not pass on what a client that it does not trust says of who is behind it.
            changes={"repeated": {**JOINED["repeated"], "HTTP_X_FORWARDED_FOR": "127.0.0.1"}},
        ),
        Setup(
            "prefix",
            caddy(
                "handle_path /app/* {",
                f"    reverse_proxy unix/{FOLDER}/app.sock {{",
                "        transport fastcgi",
                "    }",
                "}",
            ),
            FEW,
            "/app",
            MOUNTED,
            adds=FORWARDED,
        ),
        Setup(
            "php",
            caddy(f"php_fastcgi unix/{FOLDER}/app.sock", root=f"{FOLDER}/www"),
            FEW,
            "/app.php",
            adds=FORWARDED,
        ),
    ],
    "h2o": [
        # It joins cookies without the space of RFC 6265, section 5.4.
        Setup("plain", h2o(), ALL, changes={"repeated": {"HTTP_COOKIE": "a=1;b=2"}}),
        Setup("tcp", h2o(backend=f"127.0.0.1:{FASTCGI_PORT}"), FEW),
        Setup("prefix", h2o(prefix="/app"), FEW, "/app", MOUNTED),
        Setup("keep", h2o("fastcgi.timeout.keepalive: 5000"), ("get", "post-large")),
        Setup("chunked", h2o(), ("chunked",)),
    ],
}

SCGI = f"{UNIX}|scgi://localhost"
BY_SCGI = {"protocol": "scgi"}
SETUPS |= {
    "nginx-scgi": [
        Setup("stock", nginx_scgi(), (*ALL, "chunked")),
        Setup("prefix", nginx_scgi(prefix="/app"), FEW, "/app", MOUNTED),
        Setup("mount", nginx_scgi("scgi_param SCRIPT_NAME /app;", prefix="/app/"), FEW, "/app"),
    ],
    "apache-scgi": [
        Setup("plain", apache(f'ProxyPass "/" "{SCGI}/"'), ALL, changes=JOINED),
        Setup("tcp", apache(f'ProxyPass "/" "scgi://127.0.0.1:{FASTCGI_PORT}/"'), FEW),
        Setup("prefix", apache(f'ProxyPass "/app" "{SCGI}/app"'), FEW, "/app", MOUNTED),
        Setup("mount", apache(f'ProxyPass "/app/" "{SCGI}/"'), FEW, "/app"),
        Setup(
            "pathinfo",
            apache("SetEnvIf Request_URI . proxy-scgi-pathinfo=1", f'ProxyPass "/app/" "{SCGI}/"'),
            FEW,
            "/app",
            note="proxy-scgi-pathinfo=1",
        ),
        Setup(
            "handler",
            apache("<Location /app>", f'SetHandler "proxy:{SCGI}"', "</Location>"),
            FEW,
            "/app",
            MOUNTED,
        ),
    ],
    "lighttpd-scgi": [
        Setup(
            "fix-root",
            lighttpd(options='"fix-root-scriptname" => "enable"', **BY_SCGI),
            (*ALL, "chunked"),
        ),
        Setup(
            "root",
            lighttpd(**BY_SCGI),
            FEW,
            settings={"path": "root"},
            note="no fix-root-scriptname",
        ),
        Setup("prefix", lighttpd(prefix="/app", **BY_SCGI), FEW, "/app"),
        Setup(
            "stream",
            lighttpd(
                "server.stream-request-body = 2",
                options='"fix-root-scriptname" => "enable"',
                **BY_SCGI,
            ),
            ("post", "post-large"),
        ),
    ],
}

AJP = f"{UNIX}|ajp://localhost"
SETUPS |= {
    "apache-ajp": [
        Setup("plain", apache(f'ProxyPass "/" "{AJP}/"'), (*ALL, "chunked"), changes=JOINED),
        Setup("tcp", apache(f'ProxyPass "/" "ajp://127.0.0.1:{FASTCGI_PORT}/"'), FEW),
        Setup("prefix", apache(f'ProxyPass "/app/" "{AJP}/app/"'), FEW, "/app", MOUNTED),
    ],
    "jk-ajp": [
        Setup("plain", jk, (*ALL, "chunked"), changes=JOINED),
    ],
}

VERSIONS = {
    "nginx": ["nginx", "-v"],
    "apache": ["apache2", "-v"],
    "lighttpd": ["lighttpd", "-v"],
    "haproxy": ["haproxy", "-v"],
    "caddy": ["caddy", "version"],
    "h2o": ["h2o", "--version"],
    "jk": ["apache2", "-v"],
}

RECORDERS: dict[str, type[Recorder]] = {"": Recorder, "scgi": ScgiRecorder, "ajp": AjpRecorder}

LISTS = {"cookie": "; "}


def expectation(request: Request, mount: str) -> dict[str, str]:
    """Derive what PEP 3333 has an application see from the HTTP request and the mount."""
    path, _, query = request.target.partition("?")
    seen = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": mount,
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "app.example",
    }
    if request.method == "POST":
        # A body of a length that nobody told ends with its stream.
        seen["CONTENT_LENGTH"] = "" if request.chunked else str(len(request.body))
    for name, value in request.headers:
        if name == "Proxy":
            continue
        key = name.upper().replace("-", "_")
        if key != "CONTENT_TYPE":
            key = "HTTP_" + key
        text = value.encode("utf-8").decode("latin-1")
        glue = LISTS.get(name.lower(), ", ")
        seen[key] = seen[key] + glue + text if key in seen else text
    return seen


def exchange(port: int, data: bytes) -> bytes:
    with connect(port) as client:
        client.sendall(data)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    return answer


def captures(setup: Setup, server: RealServer, recorder: Recorder) -> Iterator[tuple[str, bytes]]:
    for name in setup.requests:
        request = REQUESTS[name]
        answer = exchange(server.port, request.wire(setup.mount))
        taken = recorder.take()
        if len(taken) != 1 or b" 200 " not in answer.split(b"\r\n", 1)[0]:
            print(f"  {setup.name}-{name}: {answer[:40]!r}, {len(taken)} requests: left out")
            continue
        yield name, taken[0]


def describe(kind: str, version: str, setup: Setup, name: str) -> dict[str, Any]:
    request = REQUESTS[name]
    return {
        "server": kind.partition("-")[0],
        "protocol": kind.partition("-")[2] or "fastcgi",
        "version": version,
        "configuration": setup.name + (f": {setup.note}" if setup.note else ""),
        "request": {
            "method": request.method,
            "target": setup.mount + request.target,
            "headers": [list(header) for header in request.headers],
            "chunked": request.chunked,
        },
        "settings": setup.settings,
        "environ": {**expectation(request, setup.mount), **setup.changes.get(name, {})},
        "server_adds": list(setup.adds),
        "body": {
            "length": len(request.body),
            "sha256": hashlib.sha256(request.body).hexdigest(),
        },
    }


def main(target: Path, kinds: list[str]) -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / "www").mkdir(parents=True)
    FOLDER.chmod(0o755)
    (FOLDER / "www" / "app.php").touch()
    for kind in kinds:
        web, _, protocol = kind.partition("-")
        record = RECORDERS[protocol]
        (FOLDER / "app.sock").unlink(missing_ok=True)
        with record(FOLDER / "app.sock", FASTCGI_PORT) as recorder:
            run = subprocess.run(
                VERSIONS[web],
                capture_output=True,
                text=True,
                check=True,
                env={"PATH": PATH, "HOME": str(FOLDER)},
            )
            version = (run.stderr or run.stdout).splitlines()[0]
            print(version)
            out = target / kind
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            for setup in SETUPS[kind]:
                folder = FOLDER / kind
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                server = setup.start(folder)
                server.fixed_port = WEB_PORT
                with server:
                    for name, raw in captures(setup, server, recorder):
                        case = describe(kind, version, setup, name)
                        path = out / f"{setup.name}-{name}"
                        path.with_suffix(".bin").write_bytes(raw)
                        text = json.dumps(case, indent=2, ensure_ascii=True)
                        path.with_suffix(".json").write_text(text + "\n")
                    recorder.take()
                time.sleep(0.05)
    shutil.rmtree(FOLDER, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(SETUPS))
