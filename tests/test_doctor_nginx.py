"""`fulgate doctor --nginx`: it finds each mistake in a real nginx, and its lines put it right."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fulgate.doctor.mistakes import Mistake
from fulgate.doctor.nginx import command, findings
from fulgate.doctor.nginx_conf import read
from fulgate.errors import ConfigError
from tests.command import Served, here
from tests.doctored import bind_of, found, mends
from tests.responder import responder, serve_params
from tests.servers import RealServer, Running

FRAME = """\
{user}
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/t1; fastcgi_temp_path {folder}/t2;
    proxy_temp_path {folder}/t3; uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
    upstream pool {{
        server {backend};
        keepalive 4;
    }}
    upstream plain {{
        server {backend};
    }}
    server {{
        listen 127.0.0.1:{port};
{text}
    }}
}}
"""


class Configured(RealServer):
    """nginx with a frame around some text; `apply` does what the doctor says."""

    program: ClassVar[str] = "nginx"

    def __init__(self, folder: Path, backend: str, text: str, user: str = "root root") -> None:
        super().__init__(folder)
        self.backend = backend
        self.text = text
        self.user = f"user {user};" if os.geteuid() == 0 else ""
        self.file = folder / "nginx.conf"

    def configure(self) -> None:
        if not self.file.exists() or f":{self.port};" not in self.file.read_text():
            text = FRAME.format(
                user=self.user,
                folder=self.folder,
                backend=self.backend,
                port=self.port,
                text=self.text.replace("BACKEND", self.backend),
            )
            self.file.write_text(text)

    def command(self) -> list[str]:
        return ["nginx", "-p", f"{self.folder}/", "-c", str(self.file), "-e", "error.log"]

    def apply(self, said: str) -> None:
        """Change the files as the doctor's report says, and start anew."""
        self.stop()
        self.fixed_port = self.port
        changes: list[tuple[str, int, bool, list[str]]] = []
        for line in said.splitlines():
            if match := re.fullmatch(r"    (replace|behind) line (\d+) of (.+):", line):
                changes.append((match[3], int(match[2]), match[1] == "replace", []))
            elif line.startswith("        "):
                changes[-1][3].append(line.strip())
        assert changes, said
        for file, number, replace, new in sorted(changes, key=lambda one: -one[1]):
            lines = Path(file).read_text().splitlines()
            lines[number - 1 if replace else number : number] = new
            Path(file).write_text("\n".join(lines) + "\n")
        self.start()

    def ask(
        self, path: str = "/a/b?q", body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Give the status, and what the application was told."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("POST" if body else "GET", path, body or None, headers or {})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, json.loads(data) if answer.status == 200 else {}


GOOD = """
location / {
    include /etc/nginx/fastcgi_params;
    fastcgi_param HTTP_PROXY "";
    fastcgi_pass pool;
    fastcgi_keep_conn on;
}
"""
SMALL = "http { upstream pool { server BACKEND; keepalive 1; } server {" + GOOD + "} }"


def connections(nginx: Configured) -> int:
    """Give how many connections four requests took."""
    return len({nginx.ask()[1]["connection"] for _ in range(4)})


# A configuration, what the doctor says of it, and what is seen, wrong and then right.
MISTAKES: dict[str, tuple[Mistake, str, str, Callable[[Configured], object], object, object]] = {
    "no params": (
        Mistake.NO_VARIABLES,
        GOOD.replace("include /etc/nginx/fastcgi_params;", ""),
        "the application is not told REQUEST_METHOD, QUERY_STRING",
        lambda nginx: nginx.ask()[1].get("REQUEST_METHOD"),
        None,
        "GET",
    ),
    "params that are not inherited": (
        Mistake.NO_VARIABLES,
        "include /etc/nginx/fastcgi_params;\n"
        + GOOD.replace("include /etc/nginx/fastcgi_params;", ""),
        "a fastcgi_param here keeps those around it from being inherited",
        lambda nginx: nginx.ask()[1].get("QUERY_STRING"),
        None,
        "q",
    ),
    "no PATH_INFO": (
        Mistake.NO_PATH_INFO,
        GOOD.replace("fastcgi_pass ", "fastcgi_split_path_info ^(/a)(/.*)$;\nfastcgi_pass "),
        "fastcgi_split_path_info takes a part off SCRIPT_NAME",
        lambda nginx: [nginx.ask()[1].get(name) for name in ("SCRIPT_NAME", "PATH_INFO")],
        ["/a", None],
        ["/a", "/b"],
    ),
    "no headers": (
        Mistake.NO_HEADERS,
        GOOD.replace("fastcgi_pass ", "fastcgi_pass_request_headers off;\nfastcgi_pass "),
        "not even Authorization and Cookie",
        lambda nginx: nginx.ask(headers={"Authorization": "Basic x"})[1].get("HTTP_AUTHORIZATION"),
        None,
        "Basic x",
    ),
    "httpoxy": (
        Mistake.HTTPOXY,
        GOOD.replace('fastcgi_param HTTP_PROXY "";', ""),
        "a client's header Proxy reaches the application as HTTP_PROXY",
        lambda nginx: nginx.ask(headers={"Proxy": "evil:1"})[1].get("HTTP_PROXY"),
        "evil:1",
        None,
    ),
    "a small body": (
        Mistake.SMALL_BODY,
        GOOD.replace("fastcgi_pass ", "fastcgi_request_buffering off;\nfastcgi_pass "),
        "nginx refuses bodies of more than 1m",
        lambda nginx: nginx.ask(body=bytes(1_100_000))[0],
        413,
        200,
    ),
    "a small body, said": (
        Mistake.SMALL_BODY,
        GOOD.replace(
            "fastcgi_pass ",
            "client_max_body_size 8k; fastcgi_request_buffering off;\nfastcgi_pass ",
        ).replace("8k; ", "8k;\n"),
        "nginx refuses bodies of more than 8k",
        lambda nginx: nginx.ask(body=bytes(10_000))[0],
        413,
        200,
    ),
    "no keep_conn": (
        Mistake.NO_KEEP_ALIVE,
        GOOD.replace("fastcgi_keep_conn on;", ""),
        "each request has a new connection",
        connections,
        4,
        1,
    ),
    "no keepalive in the upstream": (
        Mistake.NO_KEEP_ALIVE,
        GOOD.replace("pool", "plain"),
        "each request has a new connection",
        connections,
        4,
        1,
    ),
    "no upstream": (
        Mistake.NO_KEEP_ALIVE,
        GOOD.replace("pool", "BACKEND").replace("fastcgi_keep_conn on;", ""),
        "each request has a new connection",
        connections,
        4,
        1,
    ),
}


@pytest.mark.requires_server("nginx")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=mends(mistake, by="--nginx", web="nginx"))
        for name, (mistake, *_) in MISTAKES.items()
    ],
)
def test_a_mistake_is_found_and_its_lines_put_it_right(
    name: str, folder: Path, running: Running
) -> None:
    mistake, text, words, seen, wrong, right = MISTAKES[name]
    with responder(folder / "app", serve_params) as one:
        nginx = running(Configured, one.endpoint, text)
        assert seen(nginx) == wrong
        done = here("doctor", "--nginx", str(nginx.file), cwd=folder)
        assert done.returncode == 1
        assert [f.text for f in findings(str(nginx.file)) if words in f.text], done.stdout
        assert [one.mistake for one in findings(str(nginx.file))] == [mistake], done.stdout
        assert found(done.stdout) == {mistake}
        nginx.apply(done.stdout)
        assert seen(nginx) == right
        done = here("doctor", "--nginx", str(nginx.file), cwd=folder)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith("Findings\n  nothing that is known to be wrong\n")
        nginx.stop()


@pytest.mark.requires_server("nginx")
def test_lines_go_into_the_file_that_the_block_stands_in(folder: Path, running: Running) -> None:
    """As in Debian's sites-enabled, whose files have blocks, and include fastcgi_params there."""
    site = folder / "site.conf"
    text = GOOD.replace('fastcgi_param HTTP_PROXY "";', "").replace("fastcgi_keep_conn on;", "")
    site.write_text(text)
    with responder(folder / "app", serve_params) as one:
        nginx = running(Configured, one.endpoint, f"include {site};")
        before = nginx.file.read_text()
        said = here("doctor", "--nginx", str(nginx.file), cwd=folder).stdout
        assert found(said) == {Mistake.HTTPOXY, Mistake.NO_KEEP_ALIVE}
        nginx.apply(said)
        assert nginx.file.read_text() == before
        assert nginx.ask(headers={"Proxy": "evil:1"})[1].get("HTTP_PROXY") is None
        assert connections(nginx) == 1
        assert findings(str(nginx.file)) == []
        nginx.stop()


@mends(Mistake.SOCKET, Mistake.FOLDER, by="--nginx", web="nginx")
@pytest.mark.requires_root
@pytest.mark.requires_server("nginx")
def test_a_socket_that_nginx_may_not_use(folder: Path, running: Running) -> None:
    (folder / "tiny_site.py").write_text(
        "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'{}']\n"
    )
    endpoint = f"unix:{folder}/app"
    nginx = running(Configured, endpoint, GOOD, "nobody nogroup")
    with Served("tiny_site:app", "--bind", endpoint, cwd=folder):
        assert nginx.ask()[0] == 502
        done = here("doctor", "--nginx", str(nginx.file), cwd=folder)
        assert found(done.stdout) == {Mistake.SOCKET}
        assert f"run as nobody, who may not connect to the socket {folder}/app" in done.stdout
    with Served("tiny_site:app", "--bind", bind_of(done.stdout), cwd=folder):
        assert nginx.ask()[0] == 200
        assert findings(str(nginx.file)) == []
        nginx.stop()  # the connection that it keeps goes on to be good
        nginx.start()
        folder.chmod(0o700)
        (one,) = findings(str(nginx.file))
        assert nginx.ask()[0] == 502
        assert one.mistake is Mistake.FOLDER
        assert one.advice == (f"let them pass: chmod o+x {folder}",)
        folder.chmod(0o701)
        assert nginx.ask()[0] == 200
        assert findings(str(nginx.file)) == []


def test_a_port_that_other_machines_reach(folder: Path) -> None:
    for address, wrong in (("0.0.0.0", True), ("127.0.0.1", False), ("127.0.0.2", False)):
        with socket.socket() as listener:
            listener.bind((address, 0))
            listener.listen()
            port = listener.getsockname()[1]
            (folder / "nginx.conf").write_text(SMALL.replace("BACKEND", f"127.0.0.1:{port}"))
            advice = [finding.advice for finding in findings(str(folder / "nginx.conf"))]
            assert advice == (
                [(f"start Fulgate with: --bind tcp:127.0.0.1:{port}",)] if wrong else []
            )


def test_it_says_how_requests_are_passed_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "nginx.conf"
    file.write_text(SMALL.replace("BACKEND", "unix:/s"))
    assert command(str(file)) == 0
    assert capsys.readouterr().out == (
        f"nginx, location / ({file}:2)\n"
        "  passes to unix:/s; connections kept alive: yes\n"
        "  SCRIPT_NAME is $fastcgi_script_name, the whole path, and PATH_INFO is not sent: Fulgate"
        " makes it PATH_INFO\n"
        "Findings\n"
        "  nothing that is known to be wrong\n"
    )
    file.write_text("http { }")
    assert command(str(file)) == 1
    assert "there is no fastcgi_pass" in capsys.readouterr().out


# the reader


def test_a_configuration_is_read_with_its_quotes_and_includes(folder: Path) -> None:
    (folder / "conf.d").mkdir()
    (folder / "conf.d" / "b.conf").write_text("set $b 2;\n")
    (folder / "conf.d" / "a.conf").write_text("server {\n  listen 80;\n}\n")
    (folder / "nginx.conf").write_text(
        "# a comment { ; }\n"
        "http {\n"
        "  log_format x '$a {b}; \"c\" '\n"
        '     "it\'s \\" ";  # more }\n'
        "  include conf.d/*.conf; set ${d}e \\;f;\n"
        "}\n"
    )
    (http_block,) = read(str(folder / "nginx.conf")).block
    names = [(one.name, one.arguments, one.line, one.end) for one in http_block.block]
    assert names == [
        ("log_format", ["x", '$a {b}; "c" ', "it's \" "], 3, 4),
        ("include", ["conf.d/*.conf"], 5, 5),
        ("server", [], 1, 1),
        ("set", ["$b", "2"], 1, 1),
        ("set", ["${d}e", "\\;f"], 5, 5),
    ]
    listen = http_block.block[2].block[0]
    assert (listen.file, listen.line) == (f"{folder}/conf.d/a.conf", 2)
    assert http_block.block[3].place.line == 5


@pytest.mark.parametrize(
    "text", ["http {", "http }", "a b", "{}", ";", "include nginx.conf;", "include none.conf;"]
)
def test_what_nginx_would_not_read_is_told(text: str, folder: Path) -> None:
    (folder / "nginx.conf").write_text(text)
    with pytest.raises(ConfigError):
        read(str(folder / "nginx.conf"))


def test_misuse_is_told(folder: Path) -> None:
    for arguments in ([], ["--pid", "1", "--nginx", "x"], ["--nginx", "none.conf"]):
        assert here("doctor", *arguments, cwd=folder).returncode == 2
