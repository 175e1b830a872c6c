"""The demo: by itself, and through the front and a real server, as a browser asks for it."""

from __future__ import annotations

import hashlib
import html
import http.client
import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fulgate
from fulgate import demo
from fulgate.config import Config
from fulgate.demo.upload import BadBody, Digest, body_reader, boundary_of, digest_parts
from fulgate.front import Front
from fulgate.server import Server

VOID = {"meta", "link", "input", "br"}


class Checker(HTMLParser):
    """Notes the tags, and that each one that opens is closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def check(page: bytes) -> Checker:
    checker = Checker()
    checker.feed(page.decode("utf-8"))
    checker.close()
    assert checker.open == []
    return checker


def ask(path: str = "/", body: bytes = b"", **variables: str) -> tuple[str, dict[str, str], bytes]:
    environ: dict[str, Any] = {
        "PATH_INFO": path,
        "SCRIPT_NAME": "",
        "QUERY_STRING": "",
        **variables,
    }
    setup_testing_defaults(environ)
    environ["wsgi.input"] = io.BytesIO(body)
    environ["CONTENT_LENGTH"] = str(len(body))
    answer: list[Any] = []

    def start_response(*args: Any) -> Any:
        answer.extend(args)
        return answer.append

    result: Any = validator(demo.app)(environ, start_response)
    try:
        body = b"".join(result)  # a generator starts its answer only now
        return answer[0], dict(answer[1]), body
    finally:
        result.close()


# the page


def test_the_page_shows_the_request() -> None:
    status, headers, body = ask(
        "/caf\xc3\xa9/x", SCRIPT_NAME="/app", QUERY_STRING="a=1&b=2", HTTP_X_THING="thing"
    )
    assert (status, headers["Content-Type"]) == ("200 OK", "text/html; charset=utf-8")
    page = check(body)
    for text in ("/caf\u00e9/x", "/app", "a=1&b=2", "HTTP_X_THING", "thing", fulgate.__version__):
        assert text in page.text
    targets = [attrs["href"] for tag, attrs in page.seen if tag == "a"]
    assert targets
    assert all(target and target.startswith("/app/") for target in targets)
    (form,) = (attrs for tag, attrs in page.seen if tag == "form")
    assert (form["action"], form["enctype"]) == ("/app/upload", "multipart/form-data")


def test_nothing_comes_from_elsewhere() -> None:
    _, headers, body = ask()
    urls = re.findall(rb'(?:src|href|action)="([^"]*)"', body)
    assert urls
    assert all(url.startswith((b"/", b"data:image/svg+xml;base64,")) for url in urls)
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert b" style=" not in body  # which the policy would not let pass
    assert not re.search(rb" on[a-z]+=", body)


EVIL = "<script>alert(1)</script>\"'&\x00\x1b"


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(max_codepoint=255), max_size=60))
@pytest.mark.parametrize(
    "name", ["PATH_INFO", "SCRIPT_NAME", "QUERY_STRING", "HTTP_HOST", "X", "X.Y"]
)
def test_whatever_came_is_escaped(name: str, text: str) -> None:
    plain = {(tag, tuple(attrs)) for tag, attrs in check(ask("/x")[2]).seen}
    for value in (text, EVIL):
        environ: dict[str, Any] = {"REQUEST_METHOD": "GET", "PATH_INFO": "/x", name: value}
        if environ["PATH_INFO"] == "/stream":
            continue
        (body,) = demo.app(environ, lambda *args: None)
        page = check(body)
        assert {(tag, tuple(attrs)) for tag, attrs in page.seen} <= plain
        assert [tag for tag, _ in page.seen].count("script") == 1
        assert not [c for c in body.decode() if c != "\n" and not c.isprintable()]


def test_no_mount_point_leads_to_another_host() -> None:
    page = check(ask("/", SCRIPT_NAME="//example.org")[2])
    targets = [attrs["href"] for tag, attrs in page.seen if tag == "a"]
    assert all(target and target.startswith("/example.org/") for target in targets)


def test_secrets_of_the_client_are_not_shown() -> None:
    _, _, body = ask(HTTP_COOKIE="session=abc", HTTP_AUTHORIZATION="Basic xyz")
    assert b"abc" not in body
    assert b"xyz" not in body
    assert b"HTTP_COOKIE" in body


def test_head_and_other_methods() -> None:
    status, headers, _ = ask(REQUEST_METHOD="POST")
    assert (status, headers["Allow"]) == ("405 Method Not Allowed", "GET, HEAD")
    assert ask("/stream", REQUEST_METHOD="HEAD")[2] == b""


# uploads


def multipart(parts: list[tuple[str, bytes]], boundary: str = "B") -> bytes:
    body = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n"
        for head, data in parts
    )
    return body + f"--{boundary}--\r\n".encode()


def test_a_raw_body_is_digested() -> None:
    body = os.urandom(200_000)
    status, _, answer = ask("/upload", body, REQUEST_METHOD="POST", HTTP_ACCEPT="application/json")
    assert status == "200 OK"
    facts = json.loads(answer)
    assert facts["bytes"] == len(body)
    assert facts["sha256"] == hashlib.sha256(body).hexdigest()


def test_a_form_is_digested_part_by_part() -> None:
    content = os.urandom(200_000)
    body = multipart(
        [
            ('name="file"; filename="<u>%22\u00fc.bin"\r\nContent-Type: image/png', content),
            ('name="note"', b"hello"),
            ('name="none"; filename=""', b""),
        ]
    )
    form = {"REQUEST_METHOD": "POST", "CONTENT_TYPE": 'multipart/form-data; boundary="B"'}
    _, _, answer = ask("/upload", body, **form)
    page = check(answer)
    for text in ('<u>"\u00fc.bin', "image/png", "200,000 bytes", "note", f"{len(body):,} bytes"):
        assert text in page.text
    assert hashlib.sha256(content).hexdigest() in page.text
    assert "u" not in [tag for tag, _ in page.seen]
    _, _, answer = ask("/upload", body, **form, HTTP_ACCEPT="application/json")
    assert [(p["name"], p["filename"], p["bytes"]) for p in json.loads(answer)["parts"]] == [
        ("file", '<u>"\u00fc.bin', 200_000),
        ("note", None, 5),
        ("none", "", 0),
    ]


contents = st.lists(st.sampled_from([b"\r\n", b"--", b"B", b"-", b"\r", b"\n", b"x" * 50]))


@settings(deadline=None)
@given(st.lists(contents.map(b"".join), max_size=4), st.randoms())
def test_parts_do_not_depend_on_cuts(found: list[bytes], cuts: Any) -> None:
    found = [data for data in found if b"\r\n--B" not in b"\r\n" + data]
    body = b"preamble\r\n" * cuts.randrange(2) + multipart([('name="x"', d) for d in found])
    pieces = []
    rest = body + b"epilogue"
    while rest:
        cut = cuts.randrange(1, 20)
        pieces.append(rest[:cut])
        rest = rest[cut:]
    source: Iterator[bytes] = iter(pieces)
    parts = list(digest_parts(lambda: next(source, b""), b"B"))
    assert [(p.size, p.sha256) for p in parts] == [
        (len(d), hashlib.sha256(d).hexdigest()) for d in found
    ]
    assert next(source, None) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--B",
        b"--B\r\n",
        multipart([('name="x"', b"data")])[:-8],
        b"--Bx\r\n\r\n--B--",
        b"--B\r\n" + b"x" * 9000 + b"\r\n\r\n--B--",
        b"--B\r\n" + b"x: y\r\n" * 3000 + b"\r\n\r\n--B--",
        multipart([('name="x"', b"")] * 101),
    ],
    ids=range(8),
)
def test_a_malformed_form_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(BadBody):
        list(digest_parts(io.BytesIO(body).read1, b"B"))
    form = {"REQUEST_METHOD": "POST", "CONTENT_TYPE": "multipart/form-data; boundary=B"}
    assert ask("/upload", body, **form)[0] == "400 Bad Request"


def test_boundaries() -> None:
    assert boundary_of("text/plain; boundary=x") is None
    assert boundary_of("") is None
    assert boundary_of('Multipart/Form-Data; x=y; boundary="a b"') == b"a b"
    for content_type in ("multipart/form-data", "multipart/form-data; boundary=" + "x" * 71):
        with pytest.raises(BadBody):
            boundary_of(content_type)


def test_the_end_of_a_body_is_known() -> None:
    """By CONTENT_LENGTH, or by the server where it says so."""
    for environ, expected in (
        ({"CONTENT_LENGTH": "3"}, b"bod"),
        ({"CONTENT_LENGTH": ""}, b""),
        ({"CONTENT_LENGTH": "-1"}, b""),
        ({}, b""),
        ({"wsgi.input_terminated": True}, b"body"),
        ({"CONTENT_LENGTH": "", "wsgi.input_terminated": True}, b"body"),
    ):
        total = Digest()
        next_piece = body_reader({**environ, "wsgi.input": io.BytesIO(b"body")}, total)
        assert b"".join(iter(next_piece, b"")) == expected
        assert total.size == len(expected)


# through the front


@pytest.fixture
def client(folder: Path) -> Iterator[http.client.HTTPConnection]:
    config = Config(bind=(f"unix:{folder}/app.sock",), graceful_timeout=0)
    with ExitStack() as stack:
        server = stack.enter_context(Server(demo.app, config))
        front = Front("127.0.0.1:0", server.endpoints[0])
        front.start()
        stack.callback(front.stop)
        client = http.client.HTTPConnection(front.url.removeprefix("http://"), timeout=30)
        stack.callback(client.close)
        yield client


def test_a_browser_sees_the_page(client: http.client.HTTPConnection) -> None:
    client.request("GET", "/caf%C3%A9/?q=%3Cb%3E", headers={"User-Agent": "a <b>rowser"})
    answer = client.getresponse()
    body = answer.read()
    assert answer.status == 200
    page = check(body)
    assert "a <b>rowser" in page.text
    assert "/caf\u00e9/" in page.text
    assert html.escape("a <b>rowser").encode() in body


def test_a_browser_uploads(client: http.client.HTTPConnection) -> None:
    content = os.urandom(2_000_000)
    body = multipart([('name="file"; filename="x"', content)])
    client.request("POST", "/upload", body, {"Content-Type": "multipart/form-data; boundary=B"})
    page = check(client.getresponse().read())
    assert "2,000,000 bytes" in page.text
    assert hashlib.sha256(content).hexdigest() in page.text
    client.request("POST", "/upload", iter([content]), {"Accept": "application/json"})
    facts = json.loads(client.getresponse().read())
    assert (facts["bytes"], facts["sha256"]) == (
        len(content),
        hashlib.sha256(content).hexdigest(),
    )


def test_the_stream_is_seen_piece_by_piece(
    client: http.client.HTTPConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "PAUSE", 0.05)
    client.request("GET", "/stream", headers={"Accept": "text/plain"})
    answer = client.getresponse()
    pieces = [answer.readline() for _ in range(demo.PIECES)]
    assert [piece.split(b",")[0] for piece in pieces] == [
        b"piece %d of %d" % (n, demo.PIECES) for n in range(1, demo.PIECES + 1)
    ]
    assert answer.read() == b""
    client.request("GET", "/stream")
    page = check(client.getresponse().read())
    assert [tag for tag, _ in page.seen].count("li") == demo.PIECES
