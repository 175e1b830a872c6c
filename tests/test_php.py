"""FastCGIProxy in front of PHP-FPM: another's FastCGI, and paths that choose files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.servers import Running
from tests.servers.php import PHP_FPM, PhpFpm
from tests.web import Web, web

__all__ = ["web"]


@pytest.fixture
def php(web: Web, running: Running) -> Path:
    server = running(PhpFpm)
    root = web.folder / "www"
    (root / "sub").mkdir(parents=True)
    script = """<?php
        header("Content-Type: application/json");
        $keys = ["SCRIPT_NAME", "SCRIPT_FILENAME", "PATH_INFO", "DOCUMENT_ROOT", "REQUEST_URI"];
        echo json_encode(array_intersect_key($_SERVER, array_flip($keys)) + [
            "script" => __FILE__, "get" => $_GET, "post" => $_POST,
            "body" => hash("sha256", file_get_contents("php://input")),
            "file" => isset($_FILES["f"]) ? $_FILES["f"]["size"] : null]);
    """
    for name in ("index.php", "other.php", "sub/index.php"):
        (root / name).write_text(script)
    (root / "fails.php").write_text("<?php error_log('a complaint'); http_response_code(500);")
    (web.folder / "secret.php").write_text("<?php echo 'secret';")
    web.proxy(server.endpoint, root=str(root))
    return root


@pytest.mark.requires_server(PHP_FPM)
def test_php_runs_the_script_that_the_path_chooses(web: Web, php: Path) -> None:
    for target, script, info in (
        ("/", "index.php", None),
        ("/pretty/url?a=b", "index.php", None),
        ("/other.php?a=b", "other.php", None),
        ("/other.php/more/info", "other.php", "/more/info"),
        ("/sub/", "sub/index.php", None),
    ):
        answer = web.ask("GET", target)
        found = json.loads(answer.read())
        assert found["script"] == found["SCRIPT_FILENAME"] == str(php / script)
        assert found["SCRIPT_NAME"] == "/" + script
        assert (found.get("PATH_INFO") or None) == info
        assert found["REQUEST_URI"] == target
        assert found["get"] == ({"a": "b"} if "?" in target else [])


@pytest.mark.requires_server(PHP_FPM)
def test_php_reads_bodies(web: Web, php: Path) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert json.loads(web.ask("POST", "/", b"x=1&y=2", form).read())["post"]["x"] == "1"
    part = b'--B\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\n'
    body = part + bytes(300_000) + b"\r\n--B--\r\n"
    multipart = {"Content-Type": "multipart/form-data; boundary=B"}
    assert json.loads(web.ask("POST", "/", body, multipart).read())["file"] == 300_000


@pytest.mark.requires_server(PHP_FPM)
@pytest.mark.parametrize(
    "target",
    [
        "/../secret.php",
        "/%2e%2e/secret.php",
        "/..%2fsecret.php",
        "/sub/..%2f..%2fsecret.php",
        "/none.php",
        "/other.php%00",
        "/other.php/../../secret.php",
    ],
)
def test_php_never_runs_what_is_outside(web: Web, php: Path, target: str) -> None:
    answer = web.ask("GET", target)
    assert answer.status in (400, 404)
    assert b"secret" not in answer.read()


@pytest.mark.requires_server(PHP_FPM)
def test_php_keeps_the_connection_and_complains(
    web: Web, php: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        assert web.ask("GET", "/").status == 200
    assert web.ask("GET", "/fails.php").status == 500
    assert any("a complaint" in r.getMessage() for r in caplog.records)
