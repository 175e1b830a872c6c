"""X-Sendfile: what may be named, and who sends it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fulgate import Config, ConfigError
from fulgate.gateways.xsendfile import XSendfile, open_below, split_root, uri_of
from tests.driver_suite.kit import TEXT, Environ, Start
from tests.gateway import Body, run
from tests.servers import Fulgate, Lighttpd, Nginx, Running
from tests.servers.nginx import location
from tests.servers.web import request

APP = "tests.file_site:app"
ASYNC = "tests.file_site:asgi"


@pytest.fixture
def files(folder: Path) -> Path:
    """Files, and what is beside them."""
    files = folder / "files"
    (files / "in ner").mkdir(parents=True)
    for path in (folder, files, files / "in ner"):
        path.chmod(0o755)
    (files / "large").write_bytes(bytes(range(256)) * 2000)
    (files / "in ner" / "50% é?.txt").write_bytes(b"inner\n")
    (folder / "secret").write_bytes(b"secret\n")
    (folder / "files2").mkdir()
    (folder / "files2" / "secret").write_bytes(b"secret\n")
    (files / "out").symlink_to(folder / "secret")
    (files / "outer").symlink_to(folder)
    (files / "within").symlink_to("large")
    (files / "folder").symlink_to(files / "in ner")
    os.mkfifo(files / "fifo")
    return files


ALLOWED = ["large", "within", "./in ner/../large", "outer/files/large"]
REFUSED = ["out", "../secret", "outer/secret", "../files2/secret", "in ner/../../secret", "", "."]
MISSING = ["none", "in ner", "fifo", "large/x", "folder/none"]


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_below_a_root_is_opened(files: Path, name: str) -> None:
    with open_below(f"{files}/{name}", [str(files)]) as file:
        assert file.read() == (files / "large").read_bytes()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_below_no_root_is_not(files: Path, name: str) -> None:
    for root in (str(files), f"{files}/", f"{files}/in ner"):
        with pytest.raises(PermissionError):
            open_below(f"{files}/{name}", [root])
    with pytest.raises(PermissionError):
        open_below(f"{files}/large", [])
    with pytest.raises(PermissionError):
        open_below("large", ["/"])
    with pytest.raises(PermissionError):
        open_below(f"{files}/large\0", [str(files)])


@pytest.mark.parametrize("name", MISSING)
def test_what_is_no_file_is_not_found(files: Path, name: str) -> None:
    with pytest.raises(OSError, match=r"No such|Not a dir|no regular"):
        open_below(f"{files}/{name}", [str(files)])


def test_a_link_that_comes_after_the_check_is_not_followed(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.path.realpath

    def slow(path: Any) -> Any:
        found = real(path)
        if found == os.fsencode(files / "large"):
            (files / "large").unlink()
            (files / "large").symlink_to(files.parent / "secret")
        return found

    monkeypatch.setattr(os.path, "realpath", slow)
    with pytest.raises(OSError, match="symbolic links"):
        open_below(f"{files}/large", [str(files)])


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("/srv/files/a b/c%.txt", "/protected/a%20b/c%25.txt"),
        ("/srv/files//./a?x#y", "/protected/a%3Fx%23y"),
        ("/srv/files/caf\xc3\xa9", "/protected/caf%C3%A9"),
        ("/srv/files/more/a", "/more/a"),
        ("/srv/files", None),
        ("/srv/files2/a", None),
        ("/srv/files/../secret", None),
        ("srv/files/a", None),
        ("/srv/files/a\0", None),
    ],
)
def test_a_path_becomes_a_uri_of_nginx(path: str, uri: str | None) -> None:
    roots = [split_root("/srv/files=/protected/"), split_root("/srv/files/more/=/more")]
    assert uri_of(path, roots) == uri


def naming(path: str, body: Any = (), headers: Any = TEXT) -> Any:
    def app(environ: Environ, start: Start) -> Any:
        start("200 OK", [*headers, ("X-Sendfile", path)])
        return body

    return app


def test_the_body_of_the_application_is_left_out_and_closed(files: Path) -> None:
    body = Body([b"body"])
    app = XSendfile(naming(f"{files}/large", body), "serve", [str(files)])
    made, carrier = run(app)
    assert body.closed == 1
    assert b"".join(data for _, data in carrier.calls) == (files / "large").read_bytes()
    assert [name for name, _ in made.headers] == ["Content-Type", "Content-Length"]


def test_a_generator_that_starts_late(files: Path) -> None:
    def app(environ: Environ, start: Start) -> Iterator[bytes]:
        named = environ["QUERY_STRING"] == "named"
        start("200 OK", [*TEXT, ("X-Sendfile", f"{files}/large")] if named else TEXT)
        yield b"one"
        yield b"two"

    served = XSendfile(app, "serve", [str(files)])
    _, carrier = run(served, QUERY_STRING="named")
    assert b"".join(data for _, data in carrier.calls) == (files / "large").read_bytes()
    _, carrier = run(served)
    assert b"".join(data for _, data in carrier.calls) == b"onetwo"


def test_what_names_no_file_is_left_alone() -> None:
    def app(environ: Environ, start: Start) -> Any:
        start("201 Created", TEXT)(b"written")
        return [b" returned"]

    made, carrier = run(XSendfile(app, "serve", ["/"]))
    assert made.status == "201 Created"
    assert b"".join(data for _, data in carrier.calls) == b"written returned"


def test_an_error_takes_the_file_back() -> None:
    def app(environ: Environ, start: Start) -> Any:
        start("200 OK", [("X-Sendfile", "/x")])
        with pytest.raises(RuntimeError):
            start("200 OK", [])
        try:
            raise LookupError
        except LookupError as error:
            start("500 Oh", TEXT, (LookupError, error, error.__traceback__))
        return [b"error"]

    made, carrier = run(XSendfile(app, "serve", ["/"]))
    assert made.status == "500 Oh"
    assert carrier.calls == [("finish", b"error")]


@pytest.mark.parametrize(
    "settings",
    [
        {"x_sendfile": "serve"},
        {"x_sendfile": "accel", "x_sendfile_root": ("/srv/files",)},
        {"x_sendfile": "serve", "x_sendfile_root": ("files",)},
        {"x_sendfile": "serve", "x_sendfile_root": ("/srv/../etc",)},
        {"x_sendfile": "accel", "x_sendfile_root": ("/srv/files=protected",)},
    ],
)
def test_settings_that_cannot_be_right(settings: Any) -> None:
    with pytest.raises(ConfigError, match="x_sendfile"):
        Config(**settings)


# Behind real servers


def check(port: int, files: Path, missing: int, refused: int) -> None:
    for name, path in (("large", "large"), ("in%20ner/50%25%20%C3%A9%3F.txt", "in ner/50% é?.txt")):
        answer = request(port, f"/x/{name}")
        assert answer.status == 200, name
        assert answer.body == (files / path).read_bytes()
        assert answer.headers["content-type"] == "text/plain"
        assert "x-sendfile" not in answer.headers
        assert answer.headers["content-length"] == str(len(answer.body))
    head = request(port, "/x/large", method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert request(port, "/x/none").status == missing
    assert request(port, "/x/out").status == refused


@pytest.mark.requires_server("nginx")
@pytest.mark.parametrize("how", ["serve", "accel"])
@pytest.mark.parametrize(
    ("app", "more"),
    [(APP, ()), (ASYNC, ("--loop", "asyncio")), (ASYNC, ("--workers", "2"))],
    ids=["wsgi", "asgi", "asgi-master"],
)
def test_behind_nginx(
    running: Running, files: Path, how: str, app: str, more: tuple[str, ...]
) -> None:
    root = f"{files}=/protected/" if how == "accel" else str(files)
    options = ("--x-sendfile", how, "--x-sendfile-root", root, *more)
    fulgate = running(Fulgate, app, *options, env={"FILE_SITE": str(files)})
    inner = (
        f"location /protected/ {{ internal; alias {files}/; disable_symlinks on from={files}; }}"
    )
    web = running(Nginx, fulgate.backend, location("/"), inner)
    check(web.port, files, 404, 403)
    assert request(web.port, "/x/../../secret").status in (400, 403)
    assert request(web.port, "/protected/large").status == 404  # not for everybody
    if how == "accel":  # it is nginx that does ranges
        part = request(web.port, "/x/large", headers={"Range": "bytes=2-5"})
        assert (part.status, part.body) == (206, b"\2\3\4\5")


@pytest.mark.requires_server("lighttpd")
@pytest.mark.parametrize("app", [APP, ASYNC], ids=["wsgi", "asgi"])
def test_passed_on_to_lighttpd(running: Running, files: Path, app: str) -> None:
    fulgate = running(Fulgate, app, env={"FILE_SITE": str(files)})
    options = f"""\
"fix-root-scriptname" => "enable",
"x-sendfile" => "enable",
"x-sendfile-docroot" => ("{files}")"""
    web = running(Lighttpd, fulgate.backend, options=options.replace(",\n", "\n"))
    answer = request(web.port, "/x/large")
    assert answer.body == (files / "large").read_bytes()
    part = request(web.port, "/x/large", headers={"Range": "bytes=2-5"})
    assert (part.status, part.body) == (206, b"\2\3\4\5")
