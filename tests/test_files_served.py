"""Files through real web servers."""

from __future__ import annotations

import http.client
import os
import random
from pathlib import Path

import pytest

from tests.servers import Fulgate, Lighttpd, Nginx, RealServer, Running
from tests.servers.web import request

APP = "tests.file_site:app"
LARGE = random.Random(4).randbytes(3_000_000)


@pytest.fixture
def files(folder: Path) -> Path:
    files = folder / "files"
    files.mkdir(mode=0o755)
    (files / "large").write_bytes(LARGE)
    (files / "small").write_bytes(b"small\n")
    return files


def front(running: Running, kind: str, fulgate: Fulgate) -> RealServer:
    if kind == "lighttpd":
        at_once = "server.stream-response-body = 2"
        options = '"fix-root-scriptname" => "enable"'
        return running(Lighttpd, fulgate.backend, at_once, options=options)
    return running(Nginx, fulgate.backend, keepalive=kind == "nginx-keepalive")


FRONTS = [
    pytest.param("nginx", marks=pytest.mark.requires_server("nginx")),
    pytest.param("nginx-keepalive", marks=pytest.mark.requires_server("nginx")),
    pytest.param("lighttpd", marks=pytest.mark.requires_server("lighttpd")),
]


@pytest.mark.parametrize("kind", FRONTS)
def test_files_come_whole(running: Running, files: Path, kind: str) -> None:
    fulgate = running(Fulgate, APP, env={"FILE_SITE": str(files)})
    web = front(running, kind, fulgate)
    for _ in range(3):
        for name in ("large", "small"):
            answer = request(web.port, f"/file/{name}")
            assert answer.status == 200
            assert answer.body == (files / name).read_bytes()
            assert answer.headers["content-length"] == str(len(answer.body))


@pytest.mark.parametrize("kind", FRONTS)
def test_a_file_that_is_cut_off_is_an_error_to_the_client(
    running: Running, files: Path, kind: str
) -> None:
    size = 200_000_000  # a hole, of which no server keeps all
    with (files / "cut").open("wb") as file:
        file.truncate(size)
    fulgate = running(Fulgate, APP, env={"FILE_SITE": str(files)})
    web = front(running, kind, fulgate)
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=30)
    connection.request("GET", "/file/cut", headers={"Connection": "close"})
    answer = connection.getresponse()
    assert answer.read(1000) == bytes(1000)
    os.truncate(files / "cut", 50_000_000)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        answer.read()
    connection.close()
    assert request(web.port, "/file/small").body == b"small\n"
