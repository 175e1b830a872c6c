"""Django, Flask and web.py behind a real nginx, used as a browser uses them."""

from __future__ import annotations

import hashlib
import http.cookiejar
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.driver_suite.kit import until
from tests.servers import Fulgate, Nginx, Running
from tests.servers.fulgate import ROOT
from tests.servers.nginx import location
from tests.servers.web import Answer

pytestmark = pytest.mark.requires_server("nginx")

NUMBERS = "".join(f"{n}\n" for n in range(1000))
FILE = bytes(range(256)) * 12_000  # 3 MB, more than Django and nginx keep in memory


class Browser:
    """Keeps cookies and follows redirects."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(self.cookies)
        )
        self.at = ""

    def open(self, target: str, data: bytes | None = None, kind: str = "") -> Answer:
        headers = {"Referer": self.base + target}
        if kind:
            headers["Content-Type"] = kind
        ask = urllib.request.Request(self.base + target, data, headers)
        try:
            with self._opener.open(ask, timeout=30) as response:
                self.at = response.url.removeprefix(self.base)
                return Answer(response.status, response.headers, response.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    def get(self, target: str) -> str:
        answer = self.open(target)
        assert answer.status == 200, answer
        return answer.body.decode()

    def post(self, target: str, **fields: str) -> Answer:
        return self.open(target, urllib.parse.urlencode(fields).encode())

    def upload(self, target: str, file: bytes, **fields: str) -> Answer:
        edge = "----an-edge-that-is-not-within"
        parts = [
            f'--{edge}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        ]
        parts.append(
            f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="f.bin"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        data = "".join(parts).encode() + file + f"\r\n--{edge}--\r\n".encode()
        return self.open(target, data, f"multipart/form-data; boundary={edge}")


Site = Callable[..., Browser]


@pytest.fixture
def site(running: Running) -> Site:
    """Serve an application of tests/frameworks behind nginx, at "/" or at a prefix."""

    def start(app: str, folder: Path, prefix: str = "") -> Browser:
        options = ["--script-name", prefix] if prefix else []
        # What a framework warns of is not what is tested here.
        env = {"FULGATE_TEST_FOLDER": str(folder), "PYTHONWARNINGS": "default"}
        fulgate = running(Fulgate, f"tests.frameworks.{app}", *options, env=env)
        nginx = running(
            Nginx, fulgate.backend, location(prefix or "/", params="port"), keepalive=True
        )
        return Browser(nginx.url)

    return start


@pytest.fixture(scope="module")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("django")
    subprocess.run(
        [sys.executable, "-m", "tests.frameworks.django_site"],
        cwd=ROOT,
        env={**os.environ, "FULGATE_TEST_FOLDER": str(folder)},
        check=True,
        timeout=100,
    )
    return folder


@pytest.fixture
def database(new_database: Path, tmp_path: Path) -> Path:
    """The folder with the Django site's database, as nobody has used it."""
    return Path(shutil.copytree(new_database, tmp_path, dirs_exist_ok=True))


def token(page: str) -> str:
    found = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
    assert found, page
    return found[1]


def facts(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer
    shown: dict[str, Any] = json.loads(answer.body)
    return shown


@pytest.mark.parametrize("prefix", ["", "/site"])
def test_django_admin(site: Site, database: Path, prefix: str) -> None:
    browser = site("django_site:application", database, prefix)
    page = browser.get(f"{prefix}/admin/")
    assert browser.at.startswith(f"{prefix}/admin/login/")

    fields = {"username": "admin", "csrfmiddlewaretoken": token(page), "next": f"{prefix}/admin/"}
    answer = browser.post(f"{prefix}/admin/login/", password="wrong", **fields)
    assert b"Please enter the correct username" in answer.body
    answer = browser.post(
        f"{prefix}/admin/login/", password="correct horse battery staple", **fields
    )
    assert answer.status == 200
    assert browser.at == f"{prefix}/admin/"
    assert b"Site administration" in answer.body

    page = browser.get(f"{prefix}/admin/auth/group/add/")
    answer = browser.post(
        f"{prefix}/admin/auth/group/add/", name="Café €", csrfmiddlewaretoken=token(page)
    )
    assert browser.at == f"{prefix}/admin/auth/group/"
    assert "Café €" in answer.body.decode()
    assert "Café €" in browser.get(f"{prefix}/admin/auth/group/")


def test_django_static_file(site: Site, database: Path) -> None:
    from django.contrib import admin

    source = Path(admin.__file__).parent / "static/admin/css/base.css"
    browser = site("django_site:application", database)
    answer = browser.open("/static/admin/css/base.css")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/css")
    assert answer.body == source.read_bytes()
    assert browser.open("/static/admin/nothing.css").status == 404


def test_django_form_with_csrf(site: Site, database: Path) -> None:
    browser = site("django_site:application", database)
    assert browser.upload("/form/", b"x", name="x").status == 403
    page = browser.get("/form/")
    shown = facts(
        browser.upload("/form/", FILE, name="Ærø", csrfmiddlewaretoken=token(page)),
    )
    assert shown == {
        "name": "Ærø",
        "size": len(FILE),
        "sha256": hashlib.sha256(FILE).hexdigest(),
    }
    assert browser.upload("/form/", b"x", name="x", csrfmiddlewaretoken="wrong").status == 403


def test_django_stream_and_links(site: Site, database: Path) -> None:
    browser = site("django_site:application", database, "/site")
    assert browser.get("/site/numbers/") == NUMBERS
    shown = json.loads(browser.get("/site/links/caf%C3%A9%20au%20lait/?q=1"))
    assert shown == {
        "name": "café au lait",
        "admin": "/site/admin/",
        "here": f"{browser.base}/site/links/caf%C3%A9%20au%20lait/?q=1",
    }
    assert browser.open("/site/nothing/").status == 404


@pytest.mark.parametrize("prefix", ["", "/site"])
def test_flask(site: Site, tmp_path: Path, prefix: str) -> None:
    browser = site("flask_site:app", tmp_path, prefix)
    assert browser.get(f"{prefix}/") == f"Hello, stranger! Log in at {prefix}/login"
    answer = browser.post(f"{prefix}/login", name="Zoë")
    assert browser.at == f"{prefix}/"
    assert answer.body.decode() == f"Hello, Zoë! Log in at {prefix}/login"
    assert "Zoë" in browser.get(f"{prefix}/")

    shown = facts(browser.upload(f"{prefix}/upload", FILE, note="a note"))
    assert shown == {
        "name": "f.bin",
        "size": len(FILE),
        "sha256": hashlib.sha256(FILE).hexdigest(),
        "note": "a note",
    }
    assert browser.get(f"{prefix}/numbers") == NUMBERS
    shown = json.loads(browser.get(f"{prefix}/hello/caf%C3%A9?a=1&b=%C3%A9"))
    assert shown["name"] == "café"
    assert shown["query"] == {"a": "1", "b": "é"}
    assert shown["url"] == f"{browser.base}{prefix}/hello/café?a=1&b=é"
    assert browser.open(f"{prefix}/forbidden").status == 403
    assert browser.open(f"{prefix}/nothing").status == 404


@pytest.mark.parametrize("prefix", ["", "/site"])
def test_webpy(site: Site, tmp_path: Path, prefix: str) -> None:
    browser = site("webpy_site:application", tmp_path, prefix)
    assert browser.get(f"{prefix}/") == f"Hello! Notes are at {browser.base}{prefix}/notes"
    assert browser.post(f"{prefix}/notes", text="the first, café").status == 200
    assert browser.at == f"{prefix}/notes"
    browser.post(f"{prefix}/notes", text="the second")
    assert browser.get(f"{prefix}/notes") == "the first, café\nthe second"
    answer = browser.open(f"{prefix}/upload", FILE, "application/octet-stream")
    assert answer.body.decode() == str(len(FILE))
    assert browser.get(f"{prefix}/numbers") == NUMBERS
    assert browser.get(f"{prefix}/hello/caf%C3%A9?q=%C3%A9") == "Hello, café! é"
    assert browser.open(f"{prefix}/nothing").status == 404


@pytest.mark.parametrize("prefix", ["", "/site"])
def test_starlette(site: Site, tmp_path: Path, prefix: str) -> None:
    (tmp_path / "file.bin").write_bytes(FILE)
    browser = site("starlette_site:app", tmp_path, prefix)
    shown = browser.get(f"{prefix}/")
    assert shown.startswith("Hello, Address(host='127.0.0.1', port=")
    assert shown.endswith(f"! See {browser.base}{prefix}/links/x")
    sent = facts(browser.open(f"{prefix}/upload", FILE, "application/octet-stream"))
    assert sent == {"size": len(FILE), "sha256": hashlib.sha256(FILE).hexdigest()}
    assert browser.get(f"{prefix}/numbers") == NUMBERS
    links = json.loads(browser.get(f"{prefix}/links/caf%C3%A9%20au?q=%C3%A9"))
    assert links == {
        "name": "café au",
        "url": f"{browser.base}{prefix}/links/café au?q=%C3%A9",  # as Starlette writes it
        "query": {"q": "é"},
    }
    assert browser.open(f"{prefix}/file").body == FILE
    assert browser.open(f"{prefix}/broken").status == 500
    assert browser.open(f"{prefix}/nothing").status == 404


def test_starlette_events_are_missed(site: Site, tmp_path: Path) -> None:
    browser = site("starlette_site:app", tmp_path)
    with urllib.request.urlopen(browser.base + "/events", timeout=30) as stream:
        assert stream.readline() == b"data: tick\n"
    until((tmp_path / "missed").exists, "it was not missed")


def test_fastapi(site: Site, tmp_path: Path) -> None:
    browser = site("fastapi_site:app", tmp_path)
    item = json.dumps({"name": "café", "price": 1.25}).encode()
    shown = facts(browser.open("/items", item, "application/json"))
    assert shown["name"] == "café"
    assert shown["double"] == 2.5
    until((tmp_path / "café").exists, "the work after the answer was not done")
    assert browser.open("/items", b"{}", "application/json").status == 422
    assert json.loads(browser.get("/hello/you?times=2")) == {"hello": ["you", "you"]}
    assert json.loads(browser.get("/openapi.json"))["info"]["title"] == "FastAPI"


@pytest.mark.parametrize("prefix", ["", "/site"])
def test_quart(site: Site, tmp_path: Path, prefix: str) -> None:
    browser = site("quart_site:app", tmp_path, prefix)
    assert browser.get(f"{prefix}/") == f"Hello, stranger! Log in at {prefix}/login"
    answer = browser.post(f"{prefix}/login", name="Zoë")
    assert answer.body.decode() == f"Hello, Zoë! Log in at {prefix}/login"
    shown = facts(browser.upload(f"{prefix}/upload", FILE))
    assert shown == {"size": len(FILE), "sha256": hashlib.sha256(FILE).hexdigest()}
    assert browser.get(f"{prefix}/numbers") == NUMBERS


@pytest.mark.parametrize("prefix", ["", "/site"])
def test_django_asgi(site: Site, database: Path, prefix: str) -> None:
    browser = site("django_site:asgi", database, prefix)
    page = browser.get(f"{prefix}/form/")
    shown = facts(
        browser.upload(f"{prefix}/form/", FILE, name="Ærø", csrfmiddlewaretoken=token(page))
    )
    assert shown["sha256"] == hashlib.sha256(FILE).hexdigest()
    links = json.loads(browser.get(f"{prefix}/links/caf%C3%A9%20au%20lait/?q=1"))
    assert links["name"] == "café au lait"
    assert links["here"] == f"{browser.base}{prefix}/links/caf%C3%A9%20au%20lait/?q=1"
    assert browser.get(f"{prefix}/admin/")
    assert browser.at.startswith(f"{prefix}/admin/login/")
